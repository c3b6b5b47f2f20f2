"""No fault of a process takes the service down: killed, stopped, or hit before it can handle anything."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from harness.load import CUT, Load
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually

PRELOADED = [sys.executable, "-m", "airflow_arbiter", "faulty:app", "--preload"]


def test_random_kills_cost_only_what_was_inside(serve: Start) -> None:
    """SIGKILL of a random worker twice a second for 20 s loses no request that was not inside a victim."""
    server = serve()
    luck = random.Random(5)
    killed: list[int] = []
    most_lost = 0
    with Load(server.port, pause_s=0.005) as load:
        ends_at = time.monotonic() + 20
        next_at = 0.0

        def kill_now_and_then() -> bool:
            nonlocal next_at, most_lost
            now = time.monotonic()
            victims = server.workers()
            if victims and now >= next_at:
                next_at = now + 0.5
                pid = luck.choice(victims).pid
                most_lost += _stop_and_count_connections(pid, server.port)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            return now > ends_at

        eventually(kill_now_and_then, what="time passes: that is the fault")
        server.wait_ready(4, within_s=90)
        load.wait_answered(200)
    assert set(load.failures) <= CUT
    assert sum(load.failures.values()) <= most_lost
    assert len(killed) >= 10
    _assert_clean(server)


def test_a_stopped_worker_is_replaced_alone(serve: Start) -> None:
    """A worker stopped by SIGSTOP beyond `timeout` is killed and replaced; nobody else is touched."""
    server = serve("--timeout=4")
    victim, *others = server.ready()
    with Load(server.port, clients=8, pause_s=0.002) as load:
        load.wait_answered(100)
        inside = _stop_and_count_connections(victim.pid, server.port)
        (event,) = server.wait_event("worker.killed")
        server.wait_event("worker.exited")
        server.wait_ready(4)
        load.wait_answered(100)
    assert event.values["pid"] == str(victim.pid)
    assert event.values["cause"] == "missed its heartbeat deadline of 4 s"
    assert set(load.failures) <= CUT
    assert sum(load.failures.values()) <= inside
    assert server.ready()[:3] == others
    assert len(server.events("worker.exited")) == 1
    _assert_clean(server)


def test_a_kill_that_the_system_refuses_is_tried_again(start: Start, tmp_path: Path) -> None:
    """What was not killed does not count as killed; the loop neither stops nor spins for it."""
    config = tmp_path / "conf.py"
    config.write_text(_REFUSES_A_KILL)
    server = start(f"--config={config}", "--timeout=2", workers=2)
    victim = server.wait_ready(2)[0]
    os.kill(victim.pid, signal.SIGSTOP)
    (killed,) = server.wait_event("worker.killed")
    (exited,) = server.wait_event("worker.exited")
    server.wait_ready(2)
    assert killed.values["pid"] == exited.values["pid"] == str(victim.pid)
    assert len(server.events("arbiter.action_failed")) == 2
    assert len(server.events("worker.stacks")) == 1


_REFUSES_A_KILL = """
import os
import signal

_kill = os.kill
_refused = []


def _refuse_twice(pid, sig):
    if sig == signal.SIGKILL and len(_refused) < 2:
        _refused.append(pid)
        raise PermissionError(1, "Operation not permitted")
    _kill(pid, sig)


os.kill = _refuse_twice
"""
"""A configuration that stands in for a security module of the kernel."""


def test_a_stopped_master_costs_nothing(serve: Start) -> None:
    """SIGSTOP of the master in a rollout, beyond every deadline: service goes on, and nobody is killed."""
    server = serve("--timeout=2", "--graceful-timeout=4", "--worker-boot-timeout=2")
    with Load(server.port, clients=8, pause_s=0.002) as load:
        server.send(signal.SIGHUP)
        server.wait_event("worker.draining")
        server.send(signal.SIGSTOP)
        before = load.answered
        resume_at = time.monotonic() + 6
        eventually(lambda: time.monotonic() > resume_at, what="time passes: that is the fault")
        assert load.answered > before + 500
        server.send(signal.SIGCONT)
        server.wait_event("rollout.completed")
        server.wait_ready(4, generation=2)
    assert load.failures == {}
    assert server.events("worker.killed") == []
    _assert_clean(server)


def test_a_newcomer_stopped_before_its_first_instruction_harms_nobody(
    start: Start, set_fault: SetFault
) -> None:
    """A process that stops right after the fork is killed at its boot deadline; the old ones serve on."""
    server = start("--worker-boot-timeout=2", command=PRELOADED)
    old = server.wait_ready(4)
    set_fault("fork", "SIGSTOP")
    with Load(server.port, clients=8, pause_s=0.002) as load:
        server.send(signal.SIGTTIN)
        (killed,) = server.wait_event("worker.killed")
        assert server.ready() == old
        set_fault("fork", "")
        server.wait_ready(5)
    assert load.failures == {}
    assert killed.values["cause"] == "missed its boot deadline of 2 s"
    _assert_clean(server)


@pytest.mark.parametrize(
    ("where", "sig"),
    [("fork", "SIGTERM"), ("fork", "SIGINT"), ("fork", "SIGQUIT"), ("handlers", "SIGTERM")],
)
def test_being_asked_to_leave_before_there_is_a_handler_is_not_lost(
    start: Start, set_fault: SetFault, where: str, sig: str
) -> None:
    """A signal to leave that arrives before the worker has handlers is obeyed once it has, and cleanly."""
    server = start("--worker-class=asyncio_worker.InterruptedWorker", command=PRELOADED, workers=2)
    old = server.wait_ready(2)
    set_fault(where, sig)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        server.send(signal.SIGTTIN)
        (stalled,) = server.wait_event("rollout.stalled")
        assert server.ready() == old
        set_fault(where, "")
        server.wait_ready(3)
    assert load.failures == {}
    assert stalled.values["cause"] == "worker 3 exit code 0"
    assert "Traceback" not in server.log()
    _assert_clean(server)


@pytest.mark.parametrize("sig", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU", "SIGWINCH", "SIGCHLD"])
def test_a_signal_for_the_master_does_a_worker_no_harm(start: Start, set_fault: SetFault, sig: str) -> None:
    """What is meant for the master ends no worker: not right after the fork, and not while it serves."""
    set_fault("fork", sig)
    server = start(command=PRELOADED, workers=2)
    old = server.wait_ready(2)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        for worker in old:
            os.kill(worker.pid, signal.Signals[sig])
        load.wait_answered(200)
        assert server.ready() == old
        server.send(signal.SIGTTIN)
        server.wait_ready(3)
    assert load.failures == {}
    assert server.events("worker.exited") == []
    _assert_clean(server)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_being_asked_again_at_the_very_end_changes_nothing(
    serve: Start, tmp_path: Path, sig: signal.Signals
) -> None:
    """A worker that is asked once more while its last hook runs finishes that, and leaves cleanly."""
    config = tmp_path / "conf.py"
    config.write_text(_SLOW_EXIT_HOOK)
    server = serve(f"--config={config}", env={"NOTES": str(tmp_path / "notes")}, workers=2)
    first = server.ready()[0]
    notes = tmp_path / "notes"
    os.kill(first.pid, signal.SIGTERM)
    eventually(lambda: notes.exists() and notes.read_text() == "begun ", what="the hook runs")
    os.kill(first.pid, sig)
    (event,) = server.wait_event("worker.exited")
    assert event.values["cause"] == "exit code 0"
    assert notes.read_text() == "begun ended "
    assert "Traceback" not in server.log()
    assert server.events("worker.exit_hook_failed") == []


_SLOW_EXIT_HOOK = """
import os, time

def worker_exit(server, worker):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write("begun ")
        notes.flush()
        time.sleep(0.5)
        notes.write("ended ")
"""


def test_a_worker_is_sent_one_sigterm(serve: Start, faults: Path) -> None:
    """A worker that drains is not asked again, however many turns the master takes, nor at the stop."""
    server = serve(workers=1)
    (old,) = server.ready()
    assert server.get("/count-sigterms")[0] == 200
    with Load(server.port, path="/hold?s=4", clients=1):
        eventually(lambda: _connections(old.pid, server.port), what="it holds a request")
        server.send(signal.SIGHUP)
        server.wait_event("worker.draining")
        server.send_each(signal.SIGTTIN, times=2)
        server.wait_ready(3, generation=2)
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert (faults / f"sigterms-{old.pid}").read_text() == "."
    assert server.events("worker.killed") == []


def _connections(pid: int, port: int) -> int:
    """How many connections a worker holds, the ones that their client has closed among them."""
    connections = psutil.Process(pid).net_connections("tcp")
    return sum(c.laddr.port == port and c.status != psutil.CONN_LISTEN for c in connections)


def _stop_and_count_connections(pid: int, port: int) -> int:
    """Stop a worker, so that it can take no more; the result is how many connections it holds."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, what="it has stopped")
    return _connections(pid, port)


def _assert_clean(server: Server) -> None:
    """No child is a zombie, and each is a worker that is ready, once the killed ones are gone."""
    eventually(lambda: server.zombies() == [], what="no zombie")
    eventually(lambda: server.process_count() == len(server.ready()), what="only workers that are ready")


@pytest.mark.parametrize("sig", ["SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_no_signal_disturbs_a_worker_in_its_last_moments(serve: Start, sig: str) -> None:
    """A worker that leaves, and is sent signals until it is gone, has left with exit code 0 each time."""
    server = serve(workers=1)
    for count in range(1, 9):
        (leaving,) = server.wait_ready(1)
        os.kill(leaving.pid, signal.SIGTERM)
        eventually(
            lambda: "Finished server process" in _lines_of(server, leaving.pid),  # noqa: B023
            what="it has served",
        )
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(leaving.pid, signal.Signals[sig])
                # The fault handler lets in the next SIGUSR2 while it passes one on: sent without any pause,
                # they pile up on the signal stack, which is small.
                time.sleep(0.001)
        server.wait_event("worker.exited", count)
        eventually(lambda: server.ready() not in ([], [leaving]), what="its successor is ready")  # noqa: B023
    assert {event.values["cause"] for event in server.events("worker.exited")} == {"exit code 0"}


def _lines_of(server: Server, pid: int) -> str:
    return "\n".join(line for line in server.log().splitlines() if f'"pid": {pid}' in line)
