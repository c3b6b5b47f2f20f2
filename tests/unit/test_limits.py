"""What a single value may be: every setting of gunicorn's and ours, with every kind of senseless value."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from airflow_arbiter import checks, ignored, limits, settings
from airflow_arbiter.errors import SettingsError

VALUES: dict[str, Any] = {
    "None": None, "True": True, "False": False, "1.5": 1.5, "b''": b"x", "[]": [], "{}": {},
    "object": object(), "[3]": [3], "[None]": [None], "-1": -1, "'-1'": "-1", "0": 0, "'0'": "0", "1": 1,
    "1e308": 1e308, "10**30": 10**30, "10**5000": 10**5000, "inf": math.inf, "nan": math.nan,
    "'9'*400": "9" * 400, "'9'*5000": "9" * 5000, "'inf'": "inf", "'nan'": "nan", "''": "",
    "'rubbish'": "rubbish", "NUL": "a\0b", "escape": "a\x1b[31m", "newline": "a\nb", "'søk✓'": "søk✓",
    "surrogate": "\udcff",
}  # fmt: skip

TEXT = ("'-1'", "'0'", "'9'*400", "'9'*5000", "'inf'", "'nan'", "'rubbish'", "'søk✓'")
SMALL = ("0", "'0'", "1")
SWITCH = ("None", "True", "False")

ACCEPTED: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    (
        "ours: seconds",
        ("1.5", *SMALL),
        ("worker_refresh_interval", "min_ready_seconds", "worker_min_lifetime"),
    ),
    (
        "ours: seconds above 0",
        ("1.5", "1"),
        (
            "worker_boot_timeout", "health_check_timeout", "worker_memory_interval", "reload_check_interval",
        ),
    ),
    ("ours: long seconds", ("0", "'0'"), ("termination_grace_period",)),
    ("ours: fraction and count", SMALL, ("worker_refresh_jitter", "worker_refresh_batch_size")),
    ("ours: size", SMALL, ("worker_max_memory",)),
    ("ours: URL path", ("None", "''"), ("health_check_path",)),
    ("ours: URL paths", ("None", "[]", "[None]", "''"), ("warmup_path",)),
    ("ours: choice", ("None",), ("log_format",)),
    ("ours: a mode", (), ("fork_safety",)),
    (
        "seconds, counts, modes",
        SMALL,
        (
            "backlog", "max_requests", "max_requests_jitter", "timeout", "graceful_timeout", "keepalive",
            "umask", "cert_reqs",
        ),
    ),
    ("workers", ("1",), ("workers",)),
    ("users and groups", ("None", *SMALL), ("user", "group")),
    (
        "switches",
        SWITCH,
        (
            "spew", "check_config", "print_config", "preload_app", "daemon", "initgroups", "capture_output",
            "syslog", "enable_stdio_inheritance", "reload_on_plugin_change", "memory_merge",
            "immortal_preload", "control_socket_disable",
        ),
    ),
    ("switches that stay off", ("None", "False"), ("reload", "reuse_port")),
    (
        "text",
        ("None", "''", *TEXT),
        (
            "config", "wsgi_app", "accesslog", "errorlog", "syslog_addr", "syslog_prefix", "syslog_facility",
            "proc_name", "default_proc_name", "pythonpath", "ciphers", "statsd_host", "statsd_prefix",
            "dogstatsd_tags",
        ),
    ),
    ("short text", ("None", "''", *(value for value in TEXT if "9" not in value)), ("control_socket",)),
    ("hosts with a port", tuple(value for value in TEXT if "9" not in value), ("bind",)),
    (
        "files to be made, shorter than a system's longest name",
        ("None", *(value for value in TEXT if "9" not in value)),
        ("pidfile",),
    ),
    (
        "files and directories that exist",
        ("None", "''"),
        ("worker_tmp_dir", "logconfig", "logconfig_json", "keyfile", "certfile", "ca_certs"),
    ),
    ("a directory, empty for this one", ("''",), ("chdir",)),
    ("addresses", ("None", "''"), ("forwarded_allow_ips",)),
    ("NAME=VALUE", ("None", "False", "[]", "{}", "0", "''"), ("raw_env", "reload_path")),
    ("a mapping", ("{}",), ("logconfig_dict",)),
    ("names that must exist", (), ("worker_class", "logger_class", "loglevel")),
    (
        "functions",
        (),
        (
            "on_starting", "on_reload", "when_ready", "pre_fork", "post_fork", "post_worker_init", "pre_exec",
            "child_exit", "worker_exit", "nworkers_changed", "on_exit",
        ),
    ),
]  # fmt: skip
"""Which of the values each setting takes; all others are refused."""

CLASSIFIED = {name: (kind, accepted) for kind, accepted, names in ACCEPTED for name in names}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(options: Mapping[str, Any]) -> Config:
    cfg = Config()
    ours = {"worker_class": settings.WORKER_CLASS}
    settings.apply(cfg, {**ours, **options}, source="cfg")
    checks.check(cfg)
    return cfg


def test_every_setting_is_classified() -> None:
    """A setting that a new gunicorn brings is looked at by a person before it is let through."""
    known = set(CLASSIFIED) | set(ignored.IGNORED)
    assert set(Config().settings) - known == set()
    assert not set(CLASSIFIED) & set(ignored.IGNORED)
    assert {setting.name for setting in settings.OURS} <= set(CLASSIFIED)
    assert set(limits.GUNICORNS) | set(limits.PLACES) <= known


@pytest.mark.parametrize("name", sorted(Config().settings))
def test_each_value(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A senseless value is refused in one line that names option, value and what is allowed."""
    accepted = set()
    for label, value in VALUES.items():
        try:
            load({name: value})
        except SettingsError as error:
            message = str(error)
            assert f"{name} cannot be " in message
            assert "; allowed: " in message
            assert message.isprintable()
            assert len(message) < 1000
        else:
            accepted.add(label)
    capsys.readouterr()  # gunicorn warns of ssl_version there
    if name not in ignored.IGNORED:
        assert accepted == set(CLASSIFIED[name][1])


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("workers", "08", 8),
        ("workers", 1000, 1000),
        ("timeout", "0x10", 16),
        ("timeout", 31_536_000, 31_536_000),
        ("keepalive", 0, 0),
        ("max_requests", 10**9, 10**9),
        ("backlog", 2**31 - 1, 2**31 - 1),
        ("umask", "022", 0o22),
        ("umask", "0o22", 0o22),
        ("umask", "18", 18),
        ("umask", 0o777, 0o777),
        ("user", str(2**32 - 2), 2**32 - 2),
        ("user", "root", 0),
        ("user", None, os.geteuid()),
        ("cert_reqs", "0", 0),
        ("loglevel", "WARNING", "WARNING"),
        ("loglevel", "trace", "trace"),
        ("preload_app", None, None),
        ("raw_env", ["KEY=a\nb"], ["KEY=a\nb"]),
        ("access_log_format", "a\tb", "a\tb"),
        ("bind", "[::1]:0", ["[::1]:0"]),
        ("bind", ["unix:server.sock", "fd://3"], ["unix:server.sock", "fd://3"]),
        ("forwarded_allow_ips", "*, 10.0.0.0/8", ["*", "10.0.0.0/8"]),
    ],
)
def test_good_value(name: str, value: object, read: object) -> None:
    """The last value within the bounds is taken, and text means what it means on a command line."""
    assert load({name: value}).settings[name].get() == read


IDS = "a whole number from 0 to 4294967294"
LONG = "a number from 0 to 31536000"


@pytest.mark.parametrize(
    ("name", "value", "shown", "reason", "allowed"),
    [
        ("workers", 1001, "1001", "above 1000", "a whole number from 1 to 1000"),
        ("workers", "0", "'0'", "below 1", "a whole number from 1 to 1000"),
        pytest.param(
            "workers", 10**5000, "this int", "above 1000", "a whole number from 1 to 1000", id="endless"
        ),
        ("timeout", 31_536_001, "31536001", "above 31536000", "a whole number from 0 to 31536000"),
        ("min_ready_seconds", 31_536_000.5, "31536000.5", "above 31536000", LONG),
        ("min_ready_seconds", math.nan, "nan", "not a number", LONG),
        ("termination_grace_period", 2, "2", "below 3", f"0, or {LONG.replace('0', '3', 1)}"),
        ("umask", 0o1000, "512", "above 511", "a mode from 0 to 0o777"),
        ("user", "no-one", "'no-one'", "No such user: 'no-one'", f"the name of a user, or {IDS}"),
        ("proc_name", "a\nb", r"'a\nb'", "it has control characters", "text"),
    ],
)
def test_message(name: str, value: object, shown: str, reason: str, allowed: str) -> None:
    """The message has what an operator needs to mend it: where, what, why not, and what else."""
    with pytest.raises(SettingsError) as raised:
        load({name: value})
    assert str(raised.value) == f"cfg: {name} cannot be {shown} ({reason}); allowed: {allowed}"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("worker_tmp_dir", "none", "no such directory"),
        ("worker_tmp_dir", __file__, "no such directory"),
        ("pidfile", "none/server.pid", "no such directory"),
        ("pidfile", ".", "not the name of a file"),
        ("logconfig", "none.ini", "no such file"),
        ("certfile", ".", "no such file"),
    ],
)
def test_place(name: str, value: str, reason: str) -> None:
    """What must be there is looked for before anything is started."""
    with pytest.raises(SettingsError, match=re.escape(f"{name} cannot be {value!r} ({reason}); allowed: a ")):
        load({name: value})


def test_long_value_is_cut() -> None:
    """The message stays readable whatever the value."""
    with pytest.raises(SettingsError) as raised:
        load({"loglevel": "x" * 5000})
    assert len(str(raised.value)) < 300


def test_value_that_cannot_be_shown() -> None:
    """A value whose repr() raises is refused as any other."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("broken")

    with pytest.raises(SettingsError, match="timeout cannot be this Broken"):
        load({"timeout": Broken()})
