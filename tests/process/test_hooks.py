"""A hook of the operator's that raises harms nobody."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from harness.load import Load
from harness.starting import Start
from harness.waiting import eventually

RAISING = {
    "child_exit": "def child_exit(server, worker): raise RuntimeError('hook is broken')",
    "worker_exit": "def worker_exit(server, worker): raise RuntimeError('hook is broken')",
    "on_reload": "def on_reload(server): raise RuntimeError('hook is broken')",
    "nworkers_changed": "def nworkers_changed(server, new, old): raise RuntimeError('hook is broken')",
}


@pytest.mark.parametrize("hook", RAISING)
def test_hook_that_raises_is_reported_and_survived(start: Start, tmp_path: Path, hook: str) -> None:
    """A rollout, a scaling and a stop go well although the hook raises each time, and the log tells of it."""
    config = tmp_path / "conf.py"
    config.write_text(RAISING[hook])
    server = start(f"--config={config}", workers=2)
    server.wait_ready(2)
    with Load(server.port, clients=4) as load:
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        server.send_each(signal.SIGTTIN, times=1)
        server.wait_ready(3)
    assert load.failures == {}
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert "hook is broken" in server.log()


@pytest.mark.parametrize("hook", ["pre_fork", "post_fork", "post_worker_init"])
def test_hook_that_breaks_new_workers_stalls_the_rollout(start: Start, tmp_path: Path, hook: str) -> None:
    """Where no new worker can be made any more, the old ones serve on, and all is well once the hook is."""
    config = tmp_path / "conf.py"
    config.write_text("")
    server = start(f"--config={config}", workers=2)
    old = server.wait_ready(2)
    arguments = "worker" if hook == "post_worker_init" else "server, worker"
    config.write_text(f"def {hook}({arguments}): raise RuntimeError('hook is broken')")
    with Load(server.port, clients=4) as load:
        server.send(signal.SIGHUP)
        server.wait_event("rollout.stalled", 2)
        assert server.ready() == old
        config.write_text("")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        eventually(lambda: all(worker.generation == 3 for worker in server.workers()), what="all are new")
    assert load.failures == {}


def test_scaling_survives_a_refused_reload(start: Start, tmp_path: Path) -> None:
    """A configuration that is refused does not take back what SIGTTIN has given."""
    config = tmp_path / "conf.py"
    config.write_text("")
    server = start(f"--config={config}", workers=1)
    server.wait_ready(1)
    server.send_each(signal.SIGTTIN, times=1)
    both = server.wait_ready(2)
    config.write_text("raise RuntimeError")
    server.send(signal.SIGHUP)
    server.wait_event("reload.refused")
    server.send(signal.SIGHUP)
    server.wait_event("reload.refused", 2)
    assert server.ready() == both
    assert server.events("worker.drain_requested") == []
