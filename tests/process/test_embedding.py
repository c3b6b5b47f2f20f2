"""``AirflowGunicornApp(cfg).run()`` in a program of one's own."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path

import psutil
from harness import embedding
from harness.starting import Start


def test_hooks_are_called(start: Start, tmp_path: Path) -> None:
    """Every hook given as a callable is called, in the right process, as often as it should be."""
    notes = tmp_path / "notes"
    server = start(command=[sys.executable, embedding.__file__], env={"NOTES": str(notes)}, workers=2)
    server.wait_ready(2)
    workers = {worker.pid for worker in server.workers()}
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    workers |= {worker.pid for worker in server.wait_ready(2, generation=2)}
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0

    calls = [line.split() for line in notes.read_text().splitlines()]
    counts = Counter(name for name, _ in calls)
    expected = Counter(
        on_starting=1, when_ready=1, pre_fork=4, post_fork=4, post_worker_init=4, worker_exit=4, child_exit=4
    )
    assert counts - Counter(nworkers_changed=counts["nworkers_changed"]) == expected + Counter(
        on_reload=1, on_exit=1
    )
    in_worker = {int(pid) for name, pid in calls if name in ("post_fork", "post_worker_init", "worker_exit")}
    in_master = {int(pid) for name, pid in calls if name in ("pre_fork", "child_exit", "on_exit")}
    assert in_worker == workers
    assert in_master == {server.pid}


def test_titles_tell_who_is_who(start: Start, tmp_path: Path) -> None:
    """The process list shows the master, and of each worker its state, age and generation."""
    env = {"NOTES": str(tmp_path / "notes")}
    server = start(command=[sys.executable, embedding.__file__], env=env, workers=2)
    server.wait_ready(2)
    assert _title(server.pid) == "airflow-arbiter: master [embedded]"
    titles = {_title(worker.pid) for worker in server.workers()}
    assert titles == {f"[ready] airflow-arbiter: worker {age} gen 1 [embedded]" for age in (1, 2)}


def test_every_worker_exit_is_clean(serve: Start) -> None:
    """A worker that was asked to leave leaves with exit code 0, in a rollout and in a stop."""
    server = serve(workers=2)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    causes = [event.values["cause"] for event in server.events("worker.exited")]
    assert causes == ["exit code 0"] * 2


def _title(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline()).strip()
