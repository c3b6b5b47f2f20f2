"""
What only happens in a container: the master is PID 1, orphans fall to it, and pids come again soon.

Needs a PID namespace of its own, which Docker, for one, refuses without ``--privileged``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness.load import CUT, Load
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
NEXT_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def start_as_pid_1(start: Start) -> Callable[..., Server]:
    """Start servers, each in a PID namespace of its own; the pids that it logs are not the ones we see."""
    _skip_unless(["true"], "a PID namespace of one's own is not allowed here")

    def start_and_find(*arguments: str, workers: int = 2) -> Server:
        command = [*UNSHARE, sys.executable, "-m", "airflow_arbiter", "faulty:app"]
        server = start(*arguments, command=command, workers=workers)
        unshare = psutil.Process(server.pid)
        server.pid = eventually(unshare.children, what="the master")[0].pid
        return server

    return start_and_find


def _skip_unless(command: list[str], reason: str) -> None:
    try:
        tried = subprocess.run([*UNSHARE, *command], capture_output=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("util-linux's unshare is not installed")
    if tried.returncode:
        pytest.skip(f"{reason}: {tried.stderr.decode().strip()}")


def test_orphans_are_reaped_by_pid_1(start_as_pid_1: Callable[..., Server]) -> None:
    """Orphans of the app fall to the master, which reaps them and rolls on; SIGTERM ends it as PID 1 too."""
    server = start_as_pid_1()
    server.wait_ready(2)
    with Load(server.port, clients=4, path="/orphans") as load:
        for rollout in (1, 2):
            before = load.answered
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed", rollout)
            eventually(lambda: load.answered > before + 50, what="orphans are made")  # noqa: B023
        eventually(lambda: server.process_count() > 2, what="orphans fell to the master")
    assert load.failures == {}
    server.wait_ready(2, generation=3)
    eventually(lambda: server.zombies() == [], what="no zombie")
    eventually(lambda: server.process_count() == 2, what="no orphan")
    assert [event.values["cause"] for event in server.events("worker.exited")] == ["exit code 0"] * 4
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_pid_1_can_be_ended_before_it_has_started(
    start_as_pid_1: Callable[..., Server], tmp_path: Path, sig: signal.Signals
) -> None:
    """While the configuration is read, a signal is obeyed, though PID 1 has no default actions."""
    config = tmp_path / "conf.py"
    config.write_text(
        f"import pathlib, time; pathlib.Path({str(tmp_path)!r}, 'read').touch(); time.sleep(60)"
    )
    server = start_as_pid_1(f"--config={config}")
    eventually((tmp_path / "read").exists, what="the configuration is being read")
    server.send(sig)
    assert server.wait_exit(10) == 0


def test_a_pid_that_comes_again_confuses_nobody(
    start_as_pid_1: Callable[..., Server], tmp_path: Path
) -> None:
    """Newcomers get the pid of the worker that went just before, drained or killed, and are left alone."""
    _skip_unless(["sh", "-c", f"echo 500 > {NEXT_PID}"], "pids cannot be chosen here")
    config = tmp_path / "conf.py"
    config.write_text(_REUSE_PIDS)
    server = start_as_pid_1(f"--config={config}", "--timeout=2", workers=3)
    server.wait_ready(3)
    with Load(server.port, clients=8, pause_s=0.002) as load:
        for rollout in (1, 2):
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed", rollout)
        assert load.failures == {}
        server.kill_a_worker()
        server.wait_event("worker.exited", 7)
        server.wait_ready(3)
        os.kill(server.workers()[0].pid, signal.SIGSTOP)
        server.wait_event("worker.killed")
        server.wait_event("worker.exited", 8)
        server.wait_ready(3)
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed", 3)
    assert set(load.failures) <= CUT
    ready = server.wait_ready(3, generation=4)
    spawned = server.events("worker.spawned")
    assert len(spawned) == ready[-1].age == 3 + 3 * 3 + 2
    assert max(Counter(event.values["pid"] for event in spawned).values()) >= 4, "no pid came again"
    causes = Counter(event.values["cause"] for event in server.events("worker.exited"))
    assert causes == {
        "exit code 0": 9,
        "signal SIGKILL, perhaps out of memory": 1,
        "missed its heartbeat deadline of 2 s": 1,
    }
    asked = Counter(event.values["age"] for event in server.events("worker.drain_requested"))
    assert set(asked.values()) == {1}
    assert server.zombies() == []


_REUSE_PIDS = f"""
from pathlib import Path

def child_exit(server, worker):
    Path({str(NEXT_PID)!r}).write_text(str(worker.pid - 1))
"""
