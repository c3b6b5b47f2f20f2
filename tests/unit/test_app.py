"""The gunicorn application: which options win, and what a person is told of wrong ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from airflow_arbiter import AirflowGunicornApp, IntegrationError, SettingsError

APP = {"wsgi_app": "no_such_module:app"}
"""Named, and not loaded by what is tested here."""

WITHOUT_AIRFLOW = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "airflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in an empty folder, with nothing in the environment; gunicorn adds folders to the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "__config__", raising=False)


def written(path: Path, text: str) -> str:
    """Write a configuration file; a new size and no cache, so that it is read anew."""
    path.write_text(text)
    return str(path)


# -- layers
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["workers", "worker_refresh_batch_size"])
@pytest.mark.parametrize(
    ("layers", "winner"),
    [
        pytest.param(["cfg"], "cfg", id="cfg-wins-over-the-default"),
        pytest.param(["cfg", "file"], "file", id="the-file-wins-over-cfg"),
        pytest.param(["cfg", "file", "environment"], "environment", id="GUNICORN_CMD_ARGS-win-over-the-file"),
        pytest.param(["cfg", "file", "environment", "arguments"], "arguments", id="arguments-win-over-all"),
        pytest.param(["cfg", "environment"], "environment", id="GUNICORN_CMD_ARGS-win-over-cfg"),
        pytest.param(["file", "arguments"], "arguments", id="arguments-win-over-the-file"),
        pytest.param(["environment", "arguments"], "arguments", id="arguments-win-over-GUNICORN_CMD_ARGS"),
    ],
)
def test_layers(
    option: str, layers: list[str], winner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lowest first: the mapping, the configuration file, GUNICORN_CMD_ARGS, the command line."""
    values = {"cfg": 12, "file": 13, "environment": 14, "arguments": 15}
    flag = f"--{option.replace('_', '-')}"
    given: dict[str, Any] = dict(APP)
    if "cfg" in layers:
        given[option] = values["cfg"]
    if "file" in layers:
        given["config"] = written(tmp_path / "conf.py", f"{option} = {values['file']}")
    if "environment" in layers:
        monkeypatch.setenv("GUNICORN_CMD_ARGS", f"{flag} {values['environment']}")
    arguments = [f"{flag}={values['arguments']}"] if "arguments" in layers else None
    app = AirflowGunicornApp(given, arguments=arguments)
    assert app.cfg.settings[option].get() == values[winner]


def test_own_defaults() -> None:
    """Our worker, place for the control socket and log, and no health check of an app that we do not know."""
    app = AirflowGunicornApp(APP)
    assert (
        app.cfg.worker_class_str,
        app.cfg.control_socket,
        app.cfg.default_proc_name,
        app.cfg.health_check_path,
        sorted(app.cfg.logconfig_dict),
    ) == (
        "airflow_arbiter.workers.AirflowUvicornWorker",
        "",
        "no_such_module:app",
        None,
        ["disable_existing_loggers", "formatters", "handlers", "loggers", "root", "version"],
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("logconfig_dict", {"version": 1, "disable_existing_loggers": False}), ("logconfig", "log.ini")],
)
def test_log_of_the_operator_stays(name: str, value: object, tmp_path: Path) -> None:
    """Who configures logging gets that, and not ours."""
    if name == "logconfig":
        value = written(tmp_path / "log.ini", "")
    app = AirflowGunicornApp({**APP, name: value})
    assert app.cfg.settings[name].get() == value
    assert app.cfg.logconfig_dict == (value if name == "logconfig_dict" else {})


@pytest.mark.parametrize(
    ("given", "arguments", "uri"),
    [
        pytest.param({"wsgi_app": "a:app"}, None, "a:app", id="cfg"),
        pytest.param({}, ["b:app"], "b:app", id="positional"),
        pytest.param({"wsgi_app": "a:app"}, ["b:app"], "b:app", id="positional-wins"),
        pytest.param({"wsgi_app": "a:app"}, ["--workers=2"], "a:app", id="options-alone-name-no-app"),
    ],
)
def test_which_app(given: dict[str, Any], arguments: list[str] | None, uri: str) -> None:
    """The app is named by the last layer that names one."""
    assert AirflowGunicornApp(given, arguments=arguments).served.name == uri


def test_app_named_in_the_file(tmp_path: Path) -> None:
    """A configuration file may name the app too."""
    config = written(tmp_path / "conf.py", "wsgi_app = 'c:app'")
    assert AirflowGunicornApp({"wsgi_app": "a:app", "config": config}).served.name == "c:app"


@pytest.mark.parametrize("where", ["cfg", "environment", "arguments"])
def test_where_the_file_is_named(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration file can be named by each of the other layers."""
    config = written(tmp_path / "conf.py", "min_ready_seconds = 7")
    if where == "environment":
        monkeypatch.setenv("GUNICORN_CMD_ARGS", f"--config {config}")
    app = AirflowGunicornApp(
        {**APP, "config": config} if where == "cfg" else APP,
        arguments=["--config", config] if where == "arguments" else None,
    )
    assert app.cfg.min_ready_seconds == 7.0


def test_other_names_in_the_file_are_its_own_affair(tmp_path: Path) -> None:
    """A configuration file is a program, with imports and helpers; its hooks are taken."""
    config = written(
        tmp_path / "conf.py", "import os\nhelper = 3\nworkers = helper\ndef on_reload(server): return 'mine'"
    )
    app = AirflowGunicornApp({**APP, "config": config})
    assert (app.cfg.workers, app.cfg.on_reload(None)) == (3, "mine")


def test_hook_as_a_callable() -> None:
    """A hook can be given in the mapping."""

    def on_reload(server: object) -> str:
        return "mine"

    assert AirflowGunicornApp({**APP, "on_reload": on_reload}).cfg.on_reload(None) == "mine"


# -- wrong options
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(
            {"worker_refresh_intervall": 5},
            "cfg: unknown option 'worker_refresh_intervall'; did you mean 'worker_refresh_interval'?",
            id="unknown-name",
        ),
        pytest.param(
            {"worker_refresh_batch_size": -1},
            "cfg: worker_refresh_batch_size cannot be -1 (below 0); allowed: a whole number from 0 to 1000",
            id="bad-value-of-ours",
        ),
        pytest.param(
            {"workers": "many"},
            "cfg: workers cannot be 'many' (invalid literal for int() with base 0: 'many'); "
            "allowed: a whole number from 1 to 1000",
            id="bad-value-of-gunicorn's",
        ),
        pytest.param(
            {"reuse_port": True},
            "reuse_port cannot be True: each worker would have a queue of its own, and the connections in "
            "it are lost when the worker leaves; allowed: False",
            id="what-breaks-a-promise",
        ),
    ],
)
def test_wrong_option_in_cfg(given: dict[str, Any], message: str) -> None:
    """The message names where, what and what is allowed."""
    with pytest.raises(SettingsError) as raised:
        AirflowGunicornApp({**APP, **given})
    assert str(raised.value) == message


@pytest.mark.skipif(not hasattr(Config, "validate"), reason="gunicorn before 27 looks at no two options")
def test_what_gunicorn_refuses_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn's own objection to a combination is ours to tell, in one line."""
    monkeypatch.setattr("gunicorn.http2.is_http2_available", lambda: False)
    with pytest.raises(SettingsError, match=r"^http_protocols includes h2 but the h2 package is not [^\n]*$"):
        AirflowGunicornApp({**APP, "http_protocols": "h2"})


def test_wrong_option_in_the_file(tmp_path: Path) -> None:
    """The message names the file."""
    config = written(tmp_path / "conf.py", "worker_refresh_jitter = 3")
    with pytest.raises(SettingsError) as raised:
        AirflowGunicornApp({**APP, "config": config})
    assert str(raised.value) == (
        f"{config}: worker_refresh_jitter cannot be 3 (above 1); allowed: a number from 0 to 1"
    )


@pytest.mark.parametrize(
    ("environment", "arguments", "source"),
    [
        pytest.param("--worker-boot-timeout=0", None, "GUNICORN_CMD_ARGS", id="environment"),
        pytest.param("", ["--worker-boot-timeout=0"], "command line", id="arguments"),
    ],
)
def test_wrong_option_in_a_command_line(
    environment: str, arguments: list[str] | None, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names which of the two command lines it is."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", environment)
    with pytest.raises(SettingsError) as raised:
        AirflowGunicornApp(APP, arguments=arguments)
    assert str(raised.value) == (
        f"{source}: worker_boot_timeout cannot be '0' (not above 0); "
        "allowed: a number above 0, up to 31536000"
    )


def test_file_that_does_not_exist(tmp_path: Path) -> None:
    """The message names the file."""
    config = str(tmp_path / "none.py")
    with pytest.raises(SettingsError) as raised:
        AirflowGunicornApp({**APP, "config": config})
    reason = f"FileNotFoundError: [Errno 2] No such file or directory: {config!r}"
    assert str(raised.value) == f"config: {config} could not be read ({reason})"


def test_file_that_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with an error in it is named with its error, and nothing is printed beside."""
    config = written(tmp_path / "conf.py", "workers = 1 / 0")
    with pytest.raises(SettingsError) as raised:
        AirflowGunicornApp({**APP, "config": config})
    assert str(raised.value) == f"config: {config} could not be read (ZeroDivisionError: division by zero)"
    assert capsys.readouterr() == ("", "")


# -- reload
# --------------------------------------------------------------------------------------------------


def test_reload_reads_all_anew(tmp_path: Path) -> None:
    """What the file says now is what holds."""
    config = tmp_path / "conf.py"
    app = AirflowGunicornApp({**APP, "workers": 2, "config": written(config, "min_ready_seconds = 5")})
    written(config, "workers = 3  # and no min_ready_seconds")
    app.reload()
    assert (app.cfg.workers, app.cfg.min_ready_seconds) == (3, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("workers = 'many, far too many'", id="bad-value"),
        pytest.param("def broken(:  # a syntax error", id="syntax-error"),
        pytest.param("raise SystemExit(0)  # it wants to leave", id="exit"),
        pytest.param("reuse_port = True  # breaks a promise", id="breaks-a-promise"),
        pytest.param("import no_such_module_anywhere", id="import-error"),
    ],
)
def test_bad_reload_keeps_the_old_options(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration with an error changes nothing, not even which app is served."""
    config = tmp_path / "conf.py"
    app = AirflowGunicornApp({**APP, "config": written(config, "workers = 3")})
    old, served = app.cfg, app.served
    written(config, f"wsgi_app = 'another:app'\n{text}")
    with pytest.raises(SettingsError):
        app.reload()
    assert (app.cfg, app.served) == (old, served)
    assert app.cfg.workers == 3
    capsys.readouterr()


def test_reload_without_the_file_keeps_the_old_options(tmp_path: Path) -> None:
    """A file that is gone is an error as well."""
    config = tmp_path / "conf.py"
    app = AirflowGunicornApp({**APP, "config": written(config, "workers = 3")})
    old = app.cfg
    config.unlink()
    with pytest.raises(SettingsError, match="FileNotFoundError"):
        app.reload()
    assert (app.cfg is old, app.cfg.workers) == (True, 3)


# -- without Airflow
# --------------------------------------------------------------------------------------------------

NO_AIRFLOW = (
    "Airflow is not installed and no APP_MODULE is given; install it "
    "(pip install 'airflow-arbiter[airflow]') or name an ASGI app (module:app)"
)


def run_without_airflow(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_AIRFLOW + program],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=60,
    )


def test_no_app_and_no_airflow(tmp_path: Path) -> None:
    """Who names no app and has no Airflow is told both ways out, as an IntegrationError."""
    program = f"""
from airflow_arbiter import AirflowGunicornApp, {IntegrationError.__name__}
try:
    AirflowGunicornApp({{"workers": 1}})
except IntegrationError as error:
    print(error)
"""
    ended = run_without_airflow(program, tmp_path)
    assert (ended.stdout, ended.stderr, ended.returncode) == (NO_AIRFLOW + "\n", "", 0)


def test_no_app_and_no_airflow_on_the_command_line(tmp_path: Path) -> None:
    """The command line says it in one line, and exits with 2."""
    ended = run_without_airflow("from airflow_arbiter.__main__ import main; main([])", tmp_path)
    assert (ended.stdout, ended.stderr, ended.returncode) == (
        "",
        f"airflow-arbiter: error: {NO_AIRFLOW}\n",
        2,
    )


def test_other_app_needs_no_airflow(tmp_path: Path) -> None:
    """An app that is named is served without Airflow."""
    program = """
from airflow_arbiter import AirflowGunicornApp
print(AirflowGunicornApp({"wsgi_app": "a:app"}).served.name)
"""
    ended = run_without_airflow(program, tmp_path)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("a:app\n", "", 0)
