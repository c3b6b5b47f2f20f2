"""What the master does with the app before its first fork: the warm-up, and the audit."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
from harness.load import Load
from harness.starting import HARNESS, SetFault, Start
from harness.waiting import eventually

from airflow_arbiter import immortal

STRICT = "--fork-safety=strict"
LEAVING = [sys.executable, "-m", "airflow_arbiter", "leaving:app", "--preload"]

FOUND = {
    "thread": ("thread", "'a-poller'"),
    "native": ("native thread", "'"),
    "socket": ("socket", "INET connected to 127.0.0.1:"),
    "loop": ("event loop", "that runs"),
}
"""What the audit says of each thing that the app can leave."""


# -- warm-up


def test_the_warm_up_is_requests_in_the_master(serve: Start, faults: Path) -> None:
    """Each path is asked in the master, which has no thread afterwards; the lifespan is for the workers."""
    server = serve("--preload", "--warmup-path=/", "--warmup-path=/health", workers=2)
    (warmed,) = server.events("preload.warmed")
    assert warmed.values["paths"] == "/ /health"
    assert not (faults / f"shut-down-{server.pid}").exists()
    assert psutil.Process(server.pid).num_threads() == 1
    assert server.events("preload.warmup_failed") == []


def test_threads_of_the_warm_up_are_gone_before_the_fork(serve: Start) -> None:
    """A request that is answered in a thread leaves nothing that the strictest audit finds."""
    server = serve("--warmup-path=/", "--fork-safety=strict", command=LEAVING, workers=2)
    assert len(server.events("preload.warmed")) == 1
    assert server.answers()


def test_nothing_is_warmed_up_unasked(serve: Start) -> None:
    """Without a path there is no warm-up, and nothing is said of it."""
    server = serve("--preload", workers=1)
    assert "preload.warm" not in server.log()


@pytest.mark.parametrize("switch", [(), ("--no-immortal-preload",)])
def test_what_is_preloaded_becomes_immortal(serve: Start, switch: tuple[str, ...]) -> None:
    """Where Python can, and unless it is not wanted; the server serves and ends as ever."""
    server = serve("--preload", *switch, workers=2)
    (settled,) = server.events("preload.settled")
    assert settled.values["immortal"] == str(not switch and not immortal.reason_against())
    assert server.answers()
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


@pytest.mark.parametrize(
    ("path", "because"),
    [
        ("/raise", "it raised an exception"),
        ("/health", "it answered 503"),
        ("/hold?s=60", "it timed out"),
        ("/health?cancel", "it raised an exception"),
    ],
)
def test_a_path_that_fails_is_a_warning(serve: Start, set_fault: SetFault, path: str, because: str) -> None:
    """The failure is told, the other paths are asked all the same, and the server starts."""
    set_fault("health", "cancel" if "cancel" in path else "503")
    server = serve("--preload", f"--warmup-path={path}", "--warmup-path=/", workers=1)
    (failed,) = server.events("preload.warmup_failed")
    assert (failed.values["path"], failed.values["because"]) == (path, because)
    assert server.events("preload.warmed")[0].values["paths"] == "/"


def test_a_path_that_wants_to_know_who_asks(serve: Start) -> None:
    """It is told apart from those that are warm, and no failure."""
    server = serve("--warmup-path=/private", "--warmup-path=/", command=LEAVING, workers=1)
    (warmed,) = server.events("preload.warmed")
    assert (warmed.values["paths"], warmed.values["refused"]) == ("/", "/private")
    assert server.events("preload.warmup_failed") == []


def test_an_app_that_leaves_in_the_warm_up(serve: Start) -> None:
    """SystemExit of the app's is a warning, as any exception of it is."""
    server = serve("--warmup-path=/exit", command=LEAVING, workers=1)
    (failed,) = server.events("preload.warmup_failed")
    assert failed.values["because"] == "SystemExit: 7"
    assert server.answers()


def test_a_task_that_the_warm_up_leaves_is_told(serve: Start) -> None:
    """It would run in no worker; it is ended, and named."""
    server = serve("--warmup-path=/task", command=LEAVING, workers=1)
    (ended,) = server.events("preload.tasks_ended")
    assert "coroutine object sleep" in ended.values["tasks"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give workers another user")
def test_no_warm_up_as_another_user(start: Start) -> None:
    """What the app makes when it is asked must belong to whom the workers run as."""
    server = start("--preload", "--warmup-path=/", "--user=1", workers=1)
    server.wait_event("preload.warmup_skipped")
    assert server.events("preload.warmed") == []


TAINTS = [
    pytest.param("/stuck", "/", "thread 'preload_0' of leaving (", id="threads"),
    pytest.param("/lock", "/locked", "thread 'preload_0' of leaving (", id="a-thread-with-a-lock"),
    pytest.param("/queue", "/queue", "an event loop, held by asyncio.queues.Queue", id="a-queue-of-its-loop"),
]
"""A path of the warm-up, what would hang or fail in each worker after it, and how it is told."""


@pytest.mark.parametrize(("path", "asked", "left"), TAINTS)
def test_a_warm_up_that_cannot_be_undone_never_was(start: Start, path: str, asked: str, left: str) -> None:
    """What it leaves is named; the same process starts again without it, and the strictest audit passes."""
    server = start(f"--warmup-path={path}", "--worker-boot-timeout=12", STRICT, command=LEAVING, workers=2)
    server.wait_ready(2)
    (tainted,) = server.events("preload.tainted")
    assert str(tainted.values["left"]).startswith(left)
    (skipped,) = server.events("preload.warmup_skipped")
    assert "could not be undone" in skipped.values["because"]
    assert psutil.Process(server.pid).num_threads() == 1
    assert server.answers(asked)
    server.send(signal.SIGTERM)
    assert server.wait_exit(10) == 0


def test_a_reload_with_a_warm_up_that_cannot_be_undone(start: Start) -> None:
    """The preflight finds out, passes without it, and the new image does not try."""
    server = start("--warmup-path=/queue", STRICT, command=LEAVING, workers=2)
    server.wait_ready(2)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    assert len(server.events("preload.tainted")) == 2
    assert len(server.events("preload.warmed")) == 2
    assert server.events("reload.refused") == []
    assert server.answers("/queue")


def test_a_warm_up_that_cannot_be_undone_in_the_new_image_only(start: Start) -> None:
    """The workers are handed over once more, to an image that does not try; none of them is lost."""
    server = start("--warmup-path=/stuck-later", STRICT, command=LEAVING, workers=2)
    old = {worker.pid for worker in server.wait_ready(2)}
    with Load(server.port, clients=2) as load:
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
    assert load.failures == {}
    assert len(server.events("preload.tainted")) == 1
    assert {event.values["pid"] for event in server.events("worker.exited")} == {str(pid) for pid in old}
    assert {event.values["cause"] for event in server.events("worker.exited")} == {"exit code 0"}
    assert psutil.Process(server.pid).num_threads() == 1


PROGRAM = """
from pathlib import Path
from airflow_arbiter import AirflowGunicornApp

def on_starting(server):
    print("a hook of the program's", flush=True)

if __name__ == "__main__":
    print("the program runs", flush=True)
    hook = HOOK
    options = {"wsgi_app": "leaving:app", "preload_app": True, "warmup_path": ["/queue"], "on_starting": hook}
    AirflowGunicornApp(options, arguments=__import__("sys").argv[1:]).run()
"""


@pytest.mark.parametrize(
    ("hook", "event"), [("on_starting", "tainted"), ("lambda _: None", "warmup_skipped")]
)
def test_a_program_that_embeds_the_server(serve: Start, tmp_path: Path, hook: str, event: str) -> None:
    """It is not run again; where its options cannot be carried to a new image, there is no warm-up."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("HOOK", hook))
    server = serve(f"--chdir={tmp_path}", command=[sys.executable, str(program)], workers=1)
    assert len(server.events(f"preload.{event}")) == 1
    assert len(server.events("preload.warmup_skipped")) == 1
    assert server.answers("/queue")
    assert server.log().count("the program runs") == 1
    assert server.log().count("a hook of the program's") == (1 if hook == "on_starting" else 0)


def test_a_warm_up_that_is_broken_off_is_not_made_in_a_reload(serve: Start) -> None:
    """Nobody supervises the workers while the new image loads the app: what was late before is left out."""
    server = serve("--preload", "--warmup-path=/block?s=3600", "--worker-boot-timeout=12", workers=1)
    server.send(signal.SIGHUP)
    server.wait_event("reload.resumed")
    (skipped,) = server.events("preload.warmup_skipped")
    assert "did not end by itself" in skipped.values["because"]
    assert float(server.events("reload.resumed")[0].values["unsupervised_s"]) < 3


def test_a_warm_up_that_blocks_is_broken_off(serve: Start) -> None:
    """A request that blocks the event loop delays the start by a quarter of a worker's time to boot."""
    server = serve("--preload", "--warmup-path=/block?s=3600", "--worker-boot-timeout=16", workers=1)
    assert "broken off" in server.events("preload.warmup_failed")[0].values["because"]
    assert float(server.events("preload.warmed")[0].values["seconds"]) >= 4.0


def test_a_stop_during_the_warm_up(start: Start, faults: Path) -> None:
    """SIGTERM ends a server that is warming up."""
    server = start("--preload", "--warmup-path=/hold?s=60", workers=1)
    eventually((faults / "reached-hold").exists, what="it warms up")
    server.send(signal.SIGTERM)
    assert server.wait_exit(8) == 0


def test_a_stop_while_the_warm_up_hangs_in_a_thread(start: Start) -> None:
    """The thread, which nobody can end, does not keep SIGTERM from ending the process."""
    server = start("--warmup-path=/stuck", command=LEAVING, workers=1)
    eventually(lambda: psutil.Process(server.pid).num_threads() > 1, what="it hangs in a thread")
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


@pytest.mark.parametrize(
    ("left", "maker"), [("sqlite", "leaving (which keeps it)"), ("sqlalchemy", f"{HARNESS}/leaving.py:")]
)
def test_database_connections_of_any_app_are_found(serve: Start, left: str, maker: str) -> None:
    """Also where it is the app that imports SQLAlchemy, or that does without."""
    pytest.importorskip("sqlalchemy", reason="only Airflow brings SQLAlchemy")
    server = serve(command=LEAVING, env={"LEAVES": left}, workers=1)
    (found,) = server.events("fork_safety.found")
    assert found.values["kind"] == "database connection"
    assert maker in str(found.values["made_by"])


def test_strict_refuses_and_names_all(start: Start) -> None:
    """With `fork_safety = strict` nothing is started: exit code 3, and one line that names every finding."""
    server = start("--fork-safety=strict", command=LEAVING, env={"LEAVES": ",".join(FOUND)})
    assert server.wait_exit() == 3
    (failed,) = server.events("app.load_failed")
    for kind, what in FOUND.values():
        assert f"{kind} {what}" in failed.values["error"]
    assert "Traceback" not in server.log()
    assert server.events("worker.spawned") == []


HOOKS = """
import socket, threading

def on_starting(server):
    threading.Thread(target=threading.Event().wait, name="of-a-hook", daemon=True).start()

def when_ready(server):
    global kept
    kept = socket.create_connection(server.LISTENERS[0].sock.getsockname())
"""


def test_what_hooks_leave_is_named_too(serve: Start, tmp_path: Path) -> None:
    """Just before the first fork there is a second look, which does not repeat what the first has told."""
    hooks = tmp_path / "hooks.py"
    hooks.write_text(HOOKS)
    server = serve(f"--config={hooks}", command=LEAVING, env={"LEAVES": "thread"}, workers=1)
    found = [event.values for event in server.events("fork_safety.found")]
    assert [(values["kind"], str(values["made_by"]).partition(" ")[0]) for values in found] == [
        ("thread", "leaving"),
        ("socket", "__config__"),
        ("thread", "__config__"),
    ]
    assert str(found[2]["made_by"]).startswith(f"__config__ ({hooks}:")


def test_strict_refuses_what_hooks_leave(start: Start, tmp_path: Path) -> None:
    """The address is bound by then; it is free again, and neither pid file nor worker was there."""
    hooks, pid_file = tmp_path / "hooks.py", tmp_path / "pid"
    hooks.write_text(HOOKS)
    server = start(STRICT, f"--config={hooks}", f"--pid={pid_file}", command=LEAVING, workers=1)
    assert server.wait_exit() == 3
    (failed,) = server.events("app.load_failed")
    assert "thread 'of-a-hook', made by __config__ (" in failed.values["error"]
    assert server.events("worker.spawned") == []
    assert not pid_file.exists()
    with socket.create_server(("127.0.0.1", server.port)):
        pass


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
