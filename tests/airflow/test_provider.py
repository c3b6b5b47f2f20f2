"""Airflow knows us as a provider, pays nothing for us elsewhere, and says in one line what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.airflow_command import HEALTH, RunAirflow
from harness.asking import ask
from harness.starting import Start
from harness.waiting import eventually

OURS = {
    "gunicorn_arbiter": "airflow_arbiter",
    "worker_refresh_jitter": "0.1",
    "worker_boot_timeout": "120",
    "min_ready_seconds": "0",
    "health_check_path": "",
    "health_check_timeout": "5",
    "termination_grace_period": "0",
    "reload_on_plugin_change": "False",
    "reload_check_interval": "10",
}


def _run(code: str, *arguments: str, env: dict[str, str]) -> Any:
    """Run a piece of Python in a process of its own, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return json.loads(done.stdout.splitlines()[-1])


# -- what Airflow knows --------------------------------------------------------------------------------------


def test_our_options_are_part_of_airflows_configuration(run_airflow: RunAirflow) -> None:
    """`airflow config list` shows them with descriptions and defaults, beside Airflow's own."""
    shown = run_airflow("config", "list", "--section=api", "--include-descriptions").stdout
    for name in ("workers", *OURS):
        assert re.search(rf"^# .*\n(# )?{name} =", shown, re.MULTILINE), name
    assert "# Seconds that a new worker has to start and prove itself" in shown


@pytest.mark.parametrize("name", ["worker_boot_timeout", "reload_on_plugin_change"])
def test_our_defaults_are_airflows_to_read(run_airflow: RunAirflow, name: str) -> None:
    """`airflow config get-value` knows our options."""
    assert run_airflow("config", "get-value", "api", name).stdout.split() == [OURS[name]]


def test_we_are_a_provider(run_airflow: RunAirflow) -> None:
    """`airflow providers list` shows us."""
    providers = json.loads(run_airflow("providers", "list", "--output=json").stdout)
    assert [p["version"] for p in providers if p["package_name"] == "airflow-arbiter"] == ["0.1.0"]


def test_declared_defaults_are_those_of_the_settings(airflow_env: dict[str, str]) -> None:
    """What Airflow shows as a default is what holds without Airflow, too."""
    code = """
import json
from airflow_arbiter.provider_info import get_provider_info
from airflow_arbiter.settings import OURS
declared = get_provider_info()["config"]["api"]["options"]
print(json.dumps([[s.name, s.default, declared[s.name]["default"]] for s in OURS if s.name in declared]))
"""
    rows = _run(code, env=airflow_env)
    shown = [(name, default, declared) for name, default, declared in rows if declared]
    assert {name: _read(declared, like=default) for name, default, declared in shown} == {
        name: default for name, default, _ in shown
    }


def _read(text: str, *, like: object) -> object:
    """Read an option as Airflow does that wants a value of this type."""
    return text == "True" if isinstance(like, bool) else type(like)(text)  # type: ignore[call-arg]


# -- what it costs -------------------------------------------------------------------------------------------


def test_other_processes_pay_nothing(airflow_env: dict[str, str]) -> None:
    """A process that loads all providers and the scheduler imports no gunicorn and nothing of our server."""
    code = """
import json, sys
import airflow
from airflow.providers_manager import ProvidersManager
before = set(sys.modules)
ProvidersManager().initialize_providers_configuration()
import airflow.jobs.scheduler_job_runner
print(json.dumps({
    "gunicorn": [name for name in sys.modules if name.partition(".")[0] == "gunicorn"],
    "ours": sorted(name for name in sys.modules if name.partition(".")[0] == "airflow_arbiter"),
    "finders": [type(finder).__module__ for finder in sys.meta_path],
    "hook": sys.excepthook.__module__ if hasattr(sys.excepthook, "__module__") else "functools",
}))
"""
    seen = _run(code, "scheduler", env=airflow_env)
    assert seen["gunicorn"] == []
    assert seen["ours"] == ["airflow_arbiter", "airflow_arbiter.errors", "airflow_arbiter.provider_info"]
    assert "airflow_arbiter.seam" not in seen["finders"]
    assert seen["hook"] == "sys"


def test_reading_our_information_costs_no_measurable_time(airflow_env: dict[str, str]) -> None:
    """Importing and calling it takes milliseconds at the most; Airflow itself takes seconds."""
    code = """
import json, time
import importlib.metadata, typing  # Airflow has them
began = time.process_time()
from airflow_arbiter.provider_info import get_provider_info
get_provider_info()
print(json.dumps(time.process_time() - began))
"""
    assert min(_run(code, env=airflow_env) for _ in range(3)) < 0.02


def test_uvicorn_mode_is_left_alone(start_command: Start) -> None:
    """With `server_type = uvicorn` nothing of gunicorn is imported, and nothing is exchanged."""
    server = start_command(env={"AIRFLOW__API__SERVER_TYPE": "uvicorn"}, workers=1)
    eventually(lambda: server.answers(HEALTH), what="uvicorn serves", within_s=60)
    modules = ask(server.port, "/probe/modules").json()
    assert [name for name in modules if name.partition(".")[0] == "gunicorn"] == []
    assert "airflow_arbiter.command" not in modules
    assert server.events("arbiter.chosen") == []
    server.end()


def test_development_mode_is_left_alone(start_command: Start) -> None:
    """`--dev` serves with uvicorn and reloads, whatever the server type."""
    server = start_command("--dev", workers=None)
    eventually(lambda: server.answers(HEALTH), what="the development server serves", within_s=60)
    assert "development mode" in server.log()
    assert server.events("arbiter.chosen") == []
    server.end()


# -- what is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ((), {"AIRFLOW__API__WORKER_BOOT_TIMEOUT": "soon"}, "worker_boot_timeout cannot be 'soon'"),
        ((), {"AIRFLOW__API__WORKER_REFRESH_INTERVAL": "1h"}, "worker_refresh_interval"),
        ((), {"AIRFLOW__API__GUNICORN_ARBITER": "mine"}, "gunicorn_arbiter cannot be 'mine'"),
        ((), {"AIRFLOW__API__TERMINATION_GRACE_PERIOD": "2"}, "termination_grace_period cannot be '2'"),
        ((), {"GUNICORN_CMD_ARGS": "--no-such-option"}, "unrecognized arguments"),
        ((), {"WEB_CONCURRENCY": "many"}, "WEB_CONCURRENCY cannot be 'many'"),
        (("--worker-timeout=99999999",), {}, "timeout cannot be 99999999"),
        (("--workers=0",), {}, "workers cannot be 0"),
        (("--port=77777",), {}, "port 77777"),
        (("--ssl-cert=/no/cert", "--ssl-key=/no/key"), {}, "does not exist /no/cert"),
        (("--log-config=/no/log.ini",), {}, "/no/log.ini"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, (tuple, dict)) else "",
)
def test_a_wrong_value_ends_the_command_with_what_the_operator_needs(
    run_airflow: RunAirflow, arguments: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    """The option or its value is named, the exit code is not 0, and there is no traceback."""
    done = run_airflow(
        "api-server", *arguments, env={"AIRFLOW__API__SERVER_TYPE": "gunicorn", **env}, check=False
    )
    assert done.returncode not in (0, None)
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("del module.create_gunicorn_app", "supports Airflow 3.2 and 3.3"),
        ("module.create_gunicorn_app = lambda *args: None", "supports Airflow 3.2 and 3.3"),
        ("import sys; sys.platform = 'win32'", "which Windows has not"),
        (None, "gunicorn_app.create_gunicorn_app is not one that we know"),
    ],
    ids=["no function", "another function", "Windows", "no module"],
)
def test_what_we_do_not_know_ends_the_command(
    run_airflow: RunAirflow, tmp_path: Path, change: str | None, message: str
) -> None:
    """An Airflow without the seam, or a machine that cannot do it, is one clear error, and nothing serves."""
    _change_module(tmp_path, "airflow.api_fastapi.gunicorn_app", change)
    _assert_refused(run_airflow, tmp_path, message)


def test_an_unsupported_gunicorn_ends_the_command(run_airflow: RunAirflow, tmp_path: Path) -> None:
    """A gunicorn that we do not know is named, and so is the range of those that we do."""
    metadata = tmp_path / "gunicorn-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gunicorn\nVersion: 99.0\n")
    _assert_refused(run_airflow, tmp_path, "gunicorn >=25.2,<28, and 99.0 is installed")


def test_without_gunicorn_the_command_says_what_to_install(run_airflow: RunAirflow, tmp_path: Path) -> None:
    """gunicorn was removed: Airflow's own message, without its traceback."""
    _change_module(tmp_path, "gunicorn", None)
    _assert_refused(run_airflow, tmp_path, "Gunicorn is not installed. Install it with", code=1)


def _assert_refused(run_airflow: RunAirflow, path: Path, message: str, *, code: int = 2) -> None:
    env = {"AIRFLOW__API__SERVER_TYPE": "gunicorn", "PYTHONPATH": str(path)}
    done = run_airflow("api-server", env=env, check=False)
    assert done.returncode == code
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr


def _change_module(folder: Path, module: str, change: str | None) -> None:
    """Make Python run a piece of code when a module of that name has been imported; None hides the module."""
    (folder / "sitecustomize.py").write_text(f"""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def changed(name, path=None, target=None):
    if name != {module!r}:
        return find_spec(name, path, target)
    if {change!r} is None:
        return None
    spec = find_spec(name, path, target)
    execute = spec.loader.exec_module
    def exec_module(module):
        execute(module)
        exec({change!r}, {{"module": module}})
    spec.loader.exec_module = exec_module
    return spec

PathFinder.find_spec = changed
""")
