"""What options must not be together, and what is lowered to fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from gunicorn.config import Config

from airflow_arbiter import checks, ignored, settings
from airflow_arbiter.errors import SettingsError
from airflow_arbiter.pool import Event


@pytest.fixture
def cfg() -> Any:
    config = Config()
    config.set("worker_class", settings.WORKER_CLASS)
    return config


def test_ours_passes(cfg: Any) -> None:
    """Our worker, by its name, is what is wanted."""
    checks.check(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"worker_class": "sync"},
            "worker_class cannot be 'sync': only our worker proves itself before it listens and drains "
            "without losing a request; allowed: airflow_arbiter.workers.AirflowUvicornWorker or a subclass",
            id="another-worker-of-gunicorn's",
        ),
        pytest.param(
            {"worker_class": "uvicorn_worker.UvicornWorker"},
            "worker_class cannot be 'uvicorn_worker.UvicornWorker': only our worker proves itself before it "
            "listens and drains without losing a request; allowed: "
            "airflow_arbiter.workers.AirflowUvicornWorker or a subclass",
            id="the-base-of-ours",
        ),
        pytest.param(
            {"reuse_port": True},
            "reuse_port cannot be True: each worker would have a queue of its own, and the connections in "
            "it are lost when the worker leaves; allowed: False",
            id="reuse-port",
        ),
        pytest.param(
            {"reload": True},
            "reload cannot be True: gunicorn's reloader does not end a uvicorn worker, and lets one with a "
            "syntax error serve; allowed: False, and SIGHUP after a change",
            id="reloader",
        ),
        pytest.param(
            {"dirty_workers": 1, "dirty_apps": ["a:b"]},
            "dirty_workers is not supported; allowed: 0",
            id="dirty-workers",
        ),
        pytest.param(
            {"worker_refresh_interval": 60, "min_ready_seconds": 60},
            "min_ready_seconds cannot be 60.0 (workers would be due before they count); "
            "allowed: less than worker_refresh_interval, which is 60.0",
            id="due-before-it-counts",
        ),
        *(
            pytest.param(
                {"bind": bind},
                f"bind cannot be {listed!r} ({reason}); "
                "allowed: HOST:PORT with a port from 0 to 65535, unix:PATH, fd://N",
                id=name,
            )
            for name, bind, listed, reason in (
                ("port-above", "127.0.0.1:65536", ["127.0.0.1:65536"], "port 65536"),
                ("port-below", ["a:1", "b:-1"], ["a:1", "b:-1"], "port -1"),
                ("port-text", "a:b", ["a:b"], "'b' is not a valid port number."),
                ("no-descriptor", "fd://x", ["fd://x"], "'x' is not a valid file descriptor."),
                ("nowhere", [], [], "it names no address"),
                ("no-socket-name", "unix:", ["unix:"], "not the name of a file"),
                ("no-socket-folder", "unix:/none/x", ["unix:/none/x"], "no such directory"),
                (
                    "long-socket-name",
                    "unix:" + "x" * 108,
                    ["unix:" + "x" * 108],
                    "a path longer than 107 bytes",
                ),
            )
        ),
        pytest.param(
            {"raw_env": ["=x"]},
            "raw_env cannot be ['=x'] (a variable without a name); allowed: a list of NAME=VALUE",
            id="variable-without-a-name",
        ),
        pytest.param(
            {"keyfile": __file__},
            f"keyfile cannot be {__file__!r} ([Errno 2] No such file or directory); allowed: a certificate "
            "in PEM form, with its key there or in keyfile, without a pass phrase",
            id="key-without-a-certificate",
        ),
        pytest.param(
            {"certfile": __file__},
            f"certfile cannot be {__file__!r} ([SSL] PEM lib (_ssl.c:XXXX)); allowed: a certificate in "
            "PEM form, with its key there or in keyfile, without a pass phrase",
            id="no-certificate",
        ),
    ],
)
def test_check_refuses(cfg: Any, options: dict[str, Any], message: str) -> None:
    """What breaks a promise is refused with the reason."""
    settings.apply(cfg, options, source="cfg")
    with pytest.raises(SettingsError) as raised:
        checks.check(cfg)
    assert re.sub(r"_ssl\.c:\d+", "_ssl.c:XXXX", str(raised.value)) == message


def test_check_refuses_a_worker_that_does_not_exist(cfg: Any) -> None:
    """The message names the class, in one line."""
    settings.apply(cfg, {"worker_class": "no.such.Worker"}, source="cfg")
    with pytest.raises(SettingsError, match=r"^worker_class cannot be 'no\.such\.Worker' [^\n]+$"):
        checks.check(cfg)


# -- TLS
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A certificate with its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)


def test_certificate_passes(cfg: Any, certificate: str) -> None:
    """A certificate with its key in the same file is what the workers can use."""
    settings.apply(cfg, {"certfile": certificate, "ca_certs": certificate, "cert_reqs": 2}, source="cfg")
    checks.check(cfg)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"keyfile": __file__}, "certfile"),
        ({"ca_certs": __file__}, "ca_certs"),
        ({"ciphers": "none"}, "ciphers"),
        (
            {"cert_reqs": 2},
            "cert_reqs cannot be 2 (no client could be verified); allowed: 2 only with ca_certs",
        ),
    ],
)
def test_tls_refuses(cfg: Any, certificate: str, options: dict[str, Any], refused: str) -> None:
    """What would end every worker, or turn every client away, is told before there is one."""
    settings.apply(cfg, {"certfile": certificate, **options}, source="cfg")
    with pytest.raises(SettingsError) as raised:
        checks.check(cfg)
    assert str(raised.value).startswith(refused)


def test_encrypted_key_is_refused(cfg: Any, certificate: str, tmp_path: Path) -> None:
    """A key with a pass phrase is refused; OpenSSL would ask for it, on the terminal, in each worker."""
    key = load_pem_private_key(Path(certificate).read_bytes(), None)
    encrypted = tmp_path / "key.pem"
    encrypted.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    settings.apply(cfg, {"certfile": certificate, "keyfile": str(encrypted)}, source="cfg")
    with pytest.raises(SettingsError, match="without a pass phrase"):
        checks.check(cfg)


# -- corrections
# --------------------------------------------------------------------------------------------------


def lowered(option: str, value: float, to: float, because: str) -> Event:
    return Event(
        name="settings.lowered",
        level="warning",
        values=(("option", option), ("value", value), ("lowered_to", to), ("because", because)),
    )


GRACE = "termination_grace_period, less 2 s for the server itself"


@pytest.mark.parametrize(
    ("options", "values", "events"),
    [
        pytest.param({}, {}, (), id="defaults-fit"),
        pytest.param(
            {"workers": 2, "worker_refresh_batch_size": 3},
            {"worker_refresh_batch_size": 2},
            (lowered("worker_refresh_batch_size", 3, 2, "more than workers"),),
            id="surge-above-workers",
        ),
        pytest.param({"workers": 3, "worker_refresh_batch_size": 3}, {}, (), id="surge-of-workers"),
        pytest.param({"worker_refresh_batch_size": 0}, {}, (), id="surge-0"),
        pytest.param(
            {"worker_boot_timeout": 4},
            {"health_check_timeout": 4.0},
            (lowered("health_check_timeout", 5.0, 4.0, "more than worker_boot_timeout"),),
            id="probe-longer-than-the-boot",
        ),
        pytest.param({"worker_boot_timeout": 5}, {}, (), id="probe-as-long-as-the-boot"),
        pytest.param(
            {"termination_grace_period": 30},
            {"graceful_timeout": 28},
            (lowered("graceful_timeout", 30, 28, GRACE),),
            id="drain-longer-than-the-grace",
        ),
        pytest.param(
            {"termination_grace_period": 30.9, "graceful_timeout": 29},
            {"graceful_timeout": 28},
            (lowered("graceful_timeout", 29, 28, GRACE),),
            id="drain-a-whole-number",
        ),
        pytest.param({"termination_grace_period": 32}, {}, (), id="drain-that-just-fits"),
        pytest.param(
            {"termination_grace_period": 3},
            {"graceful_timeout": 1},
            (lowered("graceful_timeout", 30, 1, GRACE),),
            id="shortest-grace",
        ),
        pytest.param({"graceful_timeout": 3600}, {}, (), id="grace-not-known"),
        pytest.param({"timeout": 0}, {}, (), id="heartbeat-never"),
        pytest.param(
            {"threads": 4, "enable_backlog_metric": True},
            {},
            tuple(
                Event(
                    name="settings.ignored",
                    level="warning",
                    values=(("option", option), ("because", ignored.IGNORED[option])),
                )
                for option in ("threads", "enable_backlog_metric")
            ),
            id="ignored",
        ),
    ],
)
def test_corrections(
    cfg: Any, options: dict[str, Any], values: dict[str, float], events: tuple[Event, ...]
) -> None:
    """What does not fit is lowered until it does, and each correction is told; nothing is set meanwhile."""
    settings.apply(cfg, options, source="cfg")
    checks.check(cfg)
    before = {name: setting.get() for name, setting in cfg.settings.items()}
    assert checks.corrections(cfg) == checks.Corrections(values=values, events=events)
    assert {name: setting.get() for name, setting in cfg.settings.items()} == before
    for name, value in values.items():
        cfg.set(name, value)
    assert checks.corrections(cfg).values == {}


OTHERS = (
    7,
    20000,
    True,
    False,
    "h2c",
    "off",
    "v1",
    "uvloop",
    "on",
    "fast",
    "dangerous",
    "x",
    ["x"],
    {"x": "y"},
)
HOOKS = (lambda _: 0, lambda _, __: 0, lambda _, __, ___: 0, lambda _, __, ___, ____: 0)


@pytest.mark.parametrize("name", sorted(set(ignored.IGNORED) & set(Config().settings)))
def test_each_ignored_setting_is_told(cfg: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An operator who sets what has no effect is told once, with the reason; a default says nothing."""
    default = cfg.settings[name].get()
    for value in (*OTHERS, *HOOKS, ["h:1"], "127.0.0.2", "h1,h2", [__file__], "inotify"):
        try:
            settings.apply(cfg, {name: value}, source="cfg")
        except SettingsError:
            continue
        if cfg.settings[name].get() != default:
            break
    capsys.readouterr()  # gunicorn warns of ssl_version there
    (event,) = checks.corrections(cfg).events
    assert event.values == (("option", name), ("because", ignored.IGNORED[name]))
