"""SIGHUP reads the configuration anew and rolls; an error in it changes nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from harness.load import Load
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A configuration file that a test may rewrite."""
    path = tmp_path / "gunicorn_conf.py"
    path.write_text("workers = 2\n")
    return path


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param("workers = ", "could not be read", id="syntax-error"),
        pytest.param("raise RuntimeError('broken')", "could not be read", id="raises"),
        pytest.param("worker_refresh_interval = -1", "worker_refresh_interval cannot be -1", id="bad-value"),
        pytest.param("reuse_port = True", "reuse_port cannot be True", id="refused"),
        pytest.param("raw_env = ['no equals sign']", "no equals sign", id="bad-environment"),
    ],
)
def test_a_broken_configuration_changes_nothing(
    start: Start, config_file: Path, text: str, error: str
) -> None:
    """The old workers serve on, the error is shown, and the next good configuration heals it."""
    server = start(f"--config={config_file}", workers=2)
    old = server.wait_ready(2)
    with Load(server.port, clients=2) as load:
        config_file.write_text(text)
        server.send(signal.SIGHUP)
        server.wait_event("reload.refused")
        assert error in server.log()
        assert server.ready() == old
        config_file.write_text("workers = 2\nworker_boot_timeout = 99\n")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        server.wait_ready(2, generation=2)
    assert load.failures == {}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param("import time\ntime.sleep(999)", "not ready within 3 s", id="hangs"),
        pytest.param("import os\nos._exit(0)", "ended its process", id="ends-the-process"),
    ],
)
def test_a_configuration_that_never_ends_holds_nobody_up(
    start: Start, config_file: Path, text: str, error: str
) -> None:
    """The loop turns and replaces a worker meanwhile; then it is refused, and tried again by itself."""
    server = start(f"--config={config_file}", "--worker-boot-timeout=3", workers=2)
    server.wait_ready(2)
    with Load(server.port, clients=2) as load:
        config_file.write_text(text)
        server.send(signal.SIGHUP)
        server.wait_event("reload.started")
        server.send_each(signal.SIGTTIN, times=1)
        server.wait_ready(3, generation=1)
        (refused,) = server.wait_event("reload.refused")[:1]
        assert error in refused.values["error"]
        config_file.write_text("")
        server.wait_event("rollout.completed")
        server.wait_ready(3, generation=2)
    assert load.failures == {}
    assert server.events("arbiter.turn_slow") == []


def test_preload_is_turned_on_and_off_by_a_reload(
    start: Start, config_file: Path, set_fault: SetFault
) -> None:
    """By way of the preflight: what fails when it is imported harms no later worker, and good code comes."""
    server = start(f"--config={config_file}", "--worker-boot-timeout=3", workers=2)
    old = server.wait_ready(2)
    with Load(server.port, clients=2) as load:
        for fault, error in (("raise", "import is broken"), ("sleep", "not ready within 3 s")):
            set_fault("import", fault)
            config_file.write_text("preload_app = True")
            server.send(signal.SIGHUP)
            eventually(lambda: error in _last_refusal(server), what=error)  # noqa: B023
            assert server.ready() == old
            set_fault("import", "")
            config_file.write_text("")
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed", int(old[0].generation))
            old = server.wait_ready(2)
        config_file.write_text("preload_app = True")
        server.send(signal.SIGHUP)
        server.wait_event("reload.resumed")
        server.wait_event("rollout.completed", 3)
        config_file.write_text("preload_app = False")
        server.send(signal.SIGHUP)
        server.wait_event("reload.resumed", 2)
        server.wait_event("rollout.completed", 4)
        server.wait_ready(2, generation=5)
    assert load.failures == {}


def _last_refusal(server: Server) -> str:
    refused = server.events("reload.refused")
    return refused[-1].values["error"] if refused else ""


def test_a_new_number_of_workers_is_taken_in(start: Start, config_file: Path) -> None:
    """`workers` is read anew; what only a restart can change is kept, with a warning."""
    server = start(f"--config={config_file}", env={"WEB_CONCURRENCY": "2"}, workers=None)
    server.wait_ready(2)
    config_file.write_text("workers = 3\nbind = '127.0.0.1:1'\npidfile = 'other.pid'\n")
    server.send(signal.SIGHUP)
    server.wait_ready(3, generation=2)
    ignored = {event.values["option"] for event in server.wait_event("reload.ignored")}
    assert ignored == {"pidfile"}  # the command line, which wins, says where to bind
    assert server.answers()


def test_scaling_survives_a_reload(serve: Start) -> None:
    """A number of workers set by signal stays: falling back would take capacity away."""
    server = serve(workers=2)
    server.send_each(signal.SIGTTIN, times=2)
    server.wait_ready(4)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    eventually(lambda: len(server.workers()) == 4, what="4 workers after the rollout")
    server.wait_ready(4, generation=2)


def test_raw_env_is_taken_back(start: Start, config_file: Path) -> None:
    """What `raw_env` sets no more goes back to what it was before, or away, for the workers that come."""
    asked = "/environment?name=KEPT&name=REPLACED&name=ADDED&name=LATER"
    config_file.write_text("raw_env = ['REPLACED=by the file', 'ADDED=by the file']\n")
    server = start(f"--config={config_file}", env={"KEPT": "ours", "REPLACED": "ours"}, workers=1)
    server.wait_ready(1)
    assert server.get(asked) == (200, b"ours,by the file,by the file,None")
    config_file.write_text("raw_env = ['LATER=by the file']\n")
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    assert server.get(asked) == (200, b"ours,ours,None,by the file")


def test_a_reload_waits_for_the_health_of_the_app(serve: Start, set_fault: SetFault) -> None:
    """With preload, a reload that is not ready in time is tried again, until the app is well."""
    server = serve("--preload", "--health-check-path=/health", "--worker-boot-timeout=3", workers=2)
    old = {worker.pid for worker in server.ready()}
    set_fault("health", "503")
    server.send(signal.SIGHUP)
    first, second = server.wait_event("reload.refused", 2)[:2]
    assert [float(event.values["retry_in_s"]) for event in (first, second)] == [1, 2]
    assert {worker.pid for worker in server.ready()} == old
    set_fault("health", "")
    server.wait_event("rollout.completed", within_s=60)
    assert not old & {worker.pid for worker in server.wait_ready(2)}
