"""Storms: hundreds of signals, and hundreds of replacements, at whatever moment of a rollout they come."""

from __future__ import annotations

import random
import re
import signal
import time

import psutil
import pytest
from harness.load import Load
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually


def test_a_storm_of_signals_loses_nothing(serve: Start) -> None:
    """200 times SIGHUP, SIGTTIN or SIGTTOU leave the pool as they add up to, of one generation."""
    server = serve("--worker-refresh-batch-size=2")
    luck = random.Random(5)
    likely = {False: signal.SIGTTIN, True: signal.SIGTTOU}
    workers = 4
    with Load(server.port, clients=8, pause_s=0.005) as load:
        for _ in range(200):
            # The odds keep it near four workers.
            sig = luck.choice([signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, likely[workers > 4]])
            workers = max(1, workers + {signal.SIGTTIN: 1, signal.SIGTTOU: -1}.get(sig, 0))
            server.send(sig)
            next_at = time.monotonic() + luck.uniform(0, 0.1)
            eventually(lambda: time.monotonic() >= next_at, what="a random moment")  # noqa: B023
        eventually(
            lambda: _is_settled(server), what="as many as the signals add up to, and all new", within_s=60
        )
        load.wait_answered(200)
    assert load.failures == {}
    assert server.events("worker.killed") == []
    assert {event.values["cause"] for event in server.events("worker.exited")} == {"exit code 0"}
    eventually(lambda: server.zombies() == [], what="no zombie")
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert _longest_turn_ms(server) > 0  # told; how long it is depends on the machine


@pytest.mark.parametrize("seed", range(4))
def test_sigterm_at_a_random_moment_of_a_rollout_ends_it(serve: Start, seed: int) -> None:
    """The server ends with 0, without a kill; only connections that no worker had accepted yet are lost."""
    server = serve("--worker-refresh-batch-size=2", "--graceful-timeout=20")
    with Load(server.port, clients=8, pause_s=0.005) as load:
        load.wait_answered(20)
        server.send(signal.SIGHUP)
        term_at = time.monotonic() + random.Random(seed).uniform(0, 3)
        eventually(lambda: time.monotonic() >= term_at, what="a random moment")
        server.workers()
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert server.orphans() == []
    assert set(load.failures) <= {"refused", "reset"}  # the kernel resets what waits to be accepted
    assert load.failures.get("reset", 0) <= 8, "more than one of each client"
    assert server.events("worker.killed") == []
    assert {event.values["cause"] for event in server.events("worker.exited")} <= {"exit code 0"}


def test_500_replacements_leave_nothing_behind(serve: Start) -> None:
    """The master's descriptors, threads and children are as before, and its memory is after a warm-up."""
    server = serve("--worker-refresh-batch-size=16", "--graceful-timeout=1", workers=16)
    master = psutil.Process(server.pid)
    descriptors = master.num_fds()
    # No connection is kept: the grace of an idle one is short here, and a client of a busy machine slow.
    with Load(server.port, clients=2, pause_s=0.02, keep_alive=False) as load:
        for rollout in range(1, 33):
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed", rollout)
            if rollout == 10:
                warm_bytes = master.memory_info().rss
        server.wait_ready(16, generation=33)
    assert load.failures == {}
    assert len(server.events("worker.exited")) == 512
    assert master.num_fds() == descriptors
    assert master.num_threads() == 1
    assert server.zombies() == []
    assert server.process_count() == 16
    grown_bytes = master.memory_info().rss - warm_bytes
    assert grown_bytes < 1_500_000, "more than 4 kB of each worker stay behind"
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert _longest_turn_ms(server) > 0  # told; how long it is depends on the machine


def _longest_turn_ms(server: Server) -> float:
    (stopped,) = server.events("arbiter.stopped")
    return float(stopped.values["longest_turn_ms"])


def _add_up(server: Server) -> tuple[int, int]:
    """
    Workers and generation that the signals add up to, in the order of the log.

    The kernel merges some of them; and of SIGHUPs that come together, the master makes one reload.
    """
    workers = 4
    for ttin, ttou in re.findall(r"signal: (ttin)|signal: (ttou)", server.log()):
        workers = max(1, workers + bool(ttin) - bool(ttou))
    started = server.events("reload.started")
    return workers, int(started[-1].values["generation"]) if started else 1


def _is_settled(server: Server) -> bool:
    workers, generation = _add_up(server)
    log = server.log()
    has_reloaded = log.rfind("reload.started") > log.rfind("Handling signal: hup")
    return has_reloaded and len(server.ready(generation)) == workers == server.process_count()
