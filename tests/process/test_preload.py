"""What the master does with the app before its first fork: the warm-up, and the audit."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest
from harness.load import Load
from harness.starting import HARNESS, SetFault, Start
from harness.waiting import eventually

LEAVING = [sys.executable, "-m", "airflow_arbiter", "leaving:app", "--preload"]

FOUND = {
    "thread": ("thread", "'a-poller'"),
    "native": ("native thread", "'"),
    "socket": ("socket", "INET connected to 127.0.0.1:"),
    "loop": ("event loop", "that runs"),
}
"""What the audit says of each thing that the app can leave."""


# -- warm-up


def test_the_warm_up_lives_a_whole_life_in_the_master(serve: Start, faults: Path) -> None:
    """Startup, the requests, shutdown, all in the master, which has no thread afterwards."""
    server = serve("--preload", "--warmup-path=/", "--warmup-path=/health", workers=2)
    (warmed,) = server.events("preload.warmed")
    assert warmed.values["paths"] == "/ /health"
    assert (faults / f"shut-down-{server.pid}").exists()
    assert psutil.Process(server.pid).num_threads() == 1
    assert server.events("preload.warmup_failed") == []


def test_threads_of_the_warm_up_are_gone_before_the_fork(serve: Start) -> None:
    """A request that is answered in a thread leaves nothing that the strictest audit finds."""
    server = serve("--warmup-path=/", "--fork-safety=strict", command=LEAVING, workers=2)
    assert len(server.events("preload.warmed")) == 1
    assert server.answers()


def test_nothing_is_warmed_up_unasked(serve: Start, faults: Path) -> None:
    """Without a path the app's lifespan is not run in the master."""
    server = serve("--preload", workers=1)
    assert server.events("preload.warmed") == []
    assert not (faults / f"shut-down-{server.pid}").exists()


@pytest.mark.parametrize(
    ("path", "because"),
    [
        ("/raise", "it raised an exception"),
        ("/health", "it answered 503"),
        ("/hold?s=60", "it timed out"),
    ],
)
def test_a_path_that_fails_is_a_warning(serve: Start, set_fault: SetFault, path: str, because: str) -> None:
    """The failure is told, the other paths are asked all the same, and the server starts."""
    set_fault("health", "503")
    server = serve("--preload", f"--warmup-path={path}", "--warmup-path=/", workers=1)
    (failed,) = server.events("preload.warmup_failed")
    assert (failed.values["path"], failed.values["because"]) == (path, because)
    assert server.events("preload.warmed")[0].values["paths"] == "/"


def test_a_startup_that_fails_is_a_warning_of_the_warm_up(start: Start, set_fault: SetFault) -> None:
    """Whether an app that does not start can be served is for its first worker to find out."""
    set_fault("startup", "fail")
    server = start("--preload", "--warmup-path=/", workers=1)
    (failed,) = server.wait_event("preload.warmup_failed")
    assert failed.values["because"] == "StartupError: the app's startup failed"
    assert server.wait_exit() == 3
    assert len(server.events("worker.spawned")) == 1


def test_a_warm_up_that_blocks_is_broken_off(serve: Start) -> None:
    """A request that blocks the event loop delays the start by 20 s, and no more."""
    server = serve("--preload", "--warmup-path=/block?s=3600", workers=1)
    assert server.events("preload.warmup_failed") != []
    assert 19.0 < float(server.events("preload.warmed")[0].values["seconds"]) < 40.0


def test_a_stop_during_the_warm_up(start: Start, faults: Path) -> None:
    """SIGTERM ends a server that is warming up."""
    server = start("--preload", "--warmup-path=/hold?s=60", workers=1)
    eventually(lambda: "Application startup complete" in server.log(), what="it warms up")
    server.send(signal.SIGTERM)
    assert server.wait_exit(8) == 0


# -- audit


@pytest.mark.parametrize("left", FOUND)
def test_what_is_left_is_named_with_its_maker(serve: Start, left: str) -> None:
    """By default a warning tells what it is and which line of which module made it; the server serves."""
    server = serve(command=LEAVING, env={"LEAVES": left}, workers=1)
    kind, what = FOUND[left]
    (found,) = (
        event
        for event in server.events("fork_safety.found")
        if event.values["kind"] == kind and event.values["what"].startswith(what)
    )
    assert found.values["level"] == "warning"
    if left != "native":  # nothing of Python's tells who has made it
        assert found.values["made_by"].startswith(f"leaving ({HARNESS / 'leaving.py'}:")


def test_strict_refuses_and_names_all(start: Start) -> None:
    """With `fork_safety = strict` nothing is started: exit code 3, and one line that names every finding."""
    server = start("--fork-safety=strict", command=LEAVING, env={"LEAVES": ",".join(FOUND)})
    assert server.wait_exit() == 3
    (failed,) = server.events("app.load_failed")
    for kind, what in FOUND.values():
        assert f"{kind} {what}" in failed.values["error"]
    assert "Traceback" not in server.log()
    assert server.events("worker.spawned") == []


@pytest.mark.parametrize("option", ["--fork-safety=off", "--preload"])
def test_silence(serve: Start, option: str) -> None:
    """Nothing is said where nobody wants to know, and where there is nothing to say."""
    server = serve(
        option, command=LEAVING, env={"LEAVES": "thread,socket" if "off" in option else ""}, workers=1
    )
    assert server.events("fork_safety.found") == []


def test_new_code_that_is_not_safe_is_refused(start: Start, tmp_path: Path) -> None:
    """Strict is strict in a reload too: the preflight finds it, and the old code serves on."""
    code = tmp_path / "moving.py"
    shutil.copy(HARNESS / "leaving.py", code)
    server = start(
        f"--pythonpath={tmp_path}",
        "--fork-safety=strict",
        command=[sys.executable, "-m", "airflow_arbiter", "moving:app", "--preload"],
        workers=2,
    )
    old = server.wait_ready(2)
    with Load(server.port, clients=2) as load:
        code.write_text(code.read_text().replace('.get("LEAVES", "")', '.get("LEAVES", "thread")'))
        server.send(signal.SIGHUP)
        (refused,) = server.wait_event("reload.refused")
        assert "thread 'a-poller', made by moving (" in refused.values["error"]
        assert server.ready() == old
    assert load.failures == {}
