"""What the system does not give, no process and no descriptor, takes nothing away from those who serve."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness.load import Load
from harness.starting import Start
from harness.waiting import eventually

SERVE = [sys.executable, "-m", "airflow_arbiter", "faulty:app"]


def test_a_fork_that_fails_stalls_and_heals(start: Start) -> None:
    """At the limit of processes nothing new is made, the old ones serve, and the rest follows by itself."""
    server = start("--timeout=5", command=[*_as_somebody(), *SERVE])
    server.wait_ready(4)
    with Load(server.port, clients=8, pause_s=0.002) as load:
        server.send(signal.SIGHUP)
        server.wait_event("worker.spawned", 5)
        with _limited(server.pid, "nproc", 1):
            server.send_each(signal.SIGTTIN, times=1)
            stalled = server.wait_event("rollout.stalled", 3)
            assert len(server.ready()) >= 4
        server.wait_event("rollout.completed")
        server.wait_ready(5, generation=2)
    assert load.failures == {}
    assert "Resource temporarily unavailable" in stalled[0].values["cause"]
    assert server.events("worker.killed") == []
    assert server.zombies() == []


def test_a_master_without_descriptors_stalls_and_heals(serve: Start) -> None:
    """A master that can open nothing replaces and ends nobody, resumes by itself, and reloads then."""
    server = serve("--timeout=5")
    with Load(server.port, clients=8, pause_s=0.002) as load:
        server.send(signal.SIGHUP)
        server.wait_event("worker.spawned", 5)
        with _limited(server.pid, "nofile", 3):
            server.send_each(signal.SIGTTIN, times=1)
            stalled = server.wait_event("rollout.stalled", 3)
            server.send_each(signal.SIGHUP, times=1)
            server.wait_event("reload.refused")
            assert len(server.ready()) >= 4
        server.wait_event("rollout.completed")
        server.wait_ready(5, generation=3)
    assert load.failures == {}
    assert "Too many open files" in stalled[0].values["cause"]
    assert server.events("worker.killed") == []
    assert server.zombies() == []


@pytest.mark.parametrize(
    "worker_class", ["airflow_arbiter.AirflowUvicornWorker", "asyncio_worker.PlainLoopWorker"]
)
def test_workers_without_descriptors_heal(serve: Start, worker_class: str) -> None:
    """
    Workers that can open nothing let new connections wait, lose none, and take them once they can.

    They say little meanwhile: a log that grows by megabytes would be the next fault.
    """
    server = serve("--timeout=3", f"--worker-class={worker_class}")
    old = server.ready()
    said = len(server.log())
    with Load(server.port, clients=8, pause_s=0.002) as load:
        load.wait_answered(200)
        with contextlib.ExitStack() as limits:
            for worker in old:
                limits.enter_context(_limited(worker.pid, "nofile", 3))
            ends_at = time.monotonic() + 5
            eventually(lambda: time.monotonic() > ends_at, what="longer than `timeout`: that is the fault")
            waiting = _waiting(server.port)
        eventually(lambda: _waiting(server.port) == 0, what="who has waited is served")
        load.wait_answered(200)
    assert waiting >= 4, "there was a descriptor left"
    assert load.failures == {}
    assert server.ready() == old
    assert len(server.log()) - said < 10_000


def _waiting(port: int) -> int:
    """How many connections no worker has accepted yet. Source: proc(5), /proc/net/tcp."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(row[4].split(":")[1], 16) for row in rows if row[1] == f"0100007F:{port:04X}" and row[3] == "0A"
    )


def _as_somebody() -> list[str]:
    """
    What to put before a command so that the limit of processes binds it, as it does not bind root.

    The capability lets it read the tests' folders, which are root's.
    """
    if os.geteuid():
        return []
    may_read = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *may_read]


@contextlib.contextmanager
def _limited(pid: int, what: str, limit: int) -> Iterator[None]:
    """Lower a limit of a running process for a while. By its own user: root in a container may not."""
    uid = psutil.Process(pid).uids().real
    become = [] if uid == os.geteuid() else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    prlimit = [*become, "prlimit", f"--pid={pid}"]
    shown = subprocess.check_output([*prlimit, f"--{what}", "--output=SOFT", "--noheadings"], text=True)
    subprocess.run([*prlimit, f"--{what}={limit}:"], check=True)
    try:
        yield
    finally:
        subprocess.run([*prlimit, f"--{what}={shown.strip()}:"], check=True)
