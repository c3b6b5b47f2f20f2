"""Rollouts of a healthy app: nothing is lost, capacity stays, the order is first in, first out."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import psutil
import pytest
from harness.load import Client, Load
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually


def test_two_rollouts_under_full_load_lose_nothing(serve: Start) -> None:
    """16 busy clients see two whole rollouts, and every request is answered with 200."""
    server = serve()
    first = {worker.pid for worker in server.ready()}
    with Load(server.port) as load:
        for rollout in (1, 2):
            before = load.answered
            eventually(lambda: load.answered > before + 500, what="clients are busy")  # noqa: B023
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed", rollout)
            server.wait_ready(4, generation=rollout + 1)
        before = load.answered
        eventually(lambda: load.answered > before + 500, what="clients are busy after the rollouts")
    assert load.failures == {}
    assert first.isdisjoint(worker.pid for worker in server.ready())


def test_rollout_by_age_repeats(serve: Start) -> None:
    """Workers are replaced when they reach their age, again and again, under load and without a loss."""
    server = serve("--worker-refresh-interval=3", "--worker-refresh-jitter=0")
    with Load(server.port, clients=4) as load:
        eventually(
            lambda: all(worker.age > 8 for worker in server.ready()) and len(server.ready()) == 4,
            what="two rollouts by age",
            within_s=60,
        )
    assert load.failures == {}
    assert {event.values["reason"] for event in server.events("rollout.started")} == {"age"}


@pytest.mark.parametrize("batch", [1, 2])
def test_held_requests_are_answered_and_capacity_stays(serve: Start, batch: int) -> None:
    """Every old worker holds a 10 s request: 4 workers listen at all times, and at most 4 + batch exist."""
    # A timeout shorter than the hold: the workers must beat while they drain.
    server = serve(f"--worker-refresh-batch-size={batch}", "--graceful-timeout=30", "--timeout=6")
    held = _hold_one_in_each_worker(server, seconds=10)
    fewest, most = [99], [0]

    def look() -> None:
        most[0] = max(most[0], server.process_count())
        fewest[0] = min(fewest[0], len(server.listening()))

    server.send(signal.SIGHUP)
    server.while_rolling(look, within_s=120)
    assert fewest == [4]
    assert most == [4 + batch]
    assert held.wait() == Counter(ok=held.count)
    drained = Counter(event.values["age"] for event in server.events("worker.drain_requested"))
    assert drained == Counter({"1": 1, "2": 1, "3": 1, "4": 1})
    assert len(server.events("worker.draining")) == 4


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_order_is_first_in_first_out(serve: Start, batch: int) -> None:
    """Workers are asked to leave in the order of their spawning, at most `batch` beyond the target alive."""
    server = serve(f"--worker-refresh-batch-size={batch}")
    most = [0]

    def look() -> None:
        most[0] = max(most[0], server.process_count())

    server.send(signal.SIGHUP)
    server.while_rolling(look)
    order = [int(event.values["age"]) for event in server.events("worker.drain_requested")]
    assert order == [1, 2, 3, 4]
    assert most[0] <= 4 + batch


def test_batch_above_workers_is_lowered(serve: Start) -> None:
    """A batch larger than the number of workers is lowered to it, with a warning."""
    server = serve("--worker-refresh-batch-size=9", workers=2)
    (event,) = server.events("settings.lowered")
    assert event.values["lowered_to"] == "2"
    server.send(signal.SIGHUP)
    most = [0]

    def look() -> None:
        most[0] = max(most[0], server.process_count())

    server.while_rolling(look)
    assert most[0] <= 4


def test_batch_of_zero_turns_replacement_off(serve: Start) -> None:
    """With a batch of 0, neither age nor SIGHUP replaces a worker, and a dead one is still made good."""
    server = serve(
        "--worker-refresh-batch-size=0", "--worker-refresh-interval=1", "--worker-refresh-jitter=0"
    )
    server.send(signal.SIGHUP)
    server.wait_event("rollout.off")
    victim = server.ready()[0]
    psutil.Process(victim.pid).kill()
    server.wait_event("worker.spawned", 5)
    server.wait_ready(4)
    assert [worker.age for worker in server.workers()] == [2, 3, 4, 5]
    assert server.events("worker.drain_requested") == []


def test_scaling_during_a_rollout(serve: Start) -> None:
    """SIGTTIN and SIGTTOU in the middle of a rollout are obeyed, without a failed request."""
    server = serve()
    with Load(server.port) as load:
        server.send(signal.SIGHUP)
        server.wait_event("worker.drain_requested")
        server.send_each(signal.SIGTTIN, times=3)
        server.wait_event("rollout.completed")
        server.wait_ready(7, generation=2)
        server.send(signal.SIGHUP)
        server.wait_event("rollout.started", 2)
        server.send_each(signal.SIGTTOU, times=5)
        server.wait_event("rollout.completed", 2)
        eventually(lambda: len(server.workers()) == 2, what="scaled down to 2")
        server.wait_ready(2, generation=3)
    assert load.failures == {}


def test_an_idle_kept_connection_survives_a_request_on_its_way(serve: Start) -> None:
    """A kept connection that asks in the grace of a drain is answered, and told to close."""
    server = serve(workers=1)
    client = Client(server.port, keep_alive=True)
    old = client.get("/")[1]
    server.send(signal.SIGHUP)
    server.wait_event("worker.draining")
    assert client.get("/") == (200, old)
    assert client.get("/") != (200, old)  # on a new connection, to the new worker
    client.close()


def test_an_answer_that_has_begun_is_finished(serve: Start) -> None:
    """A streamed answer that began before the drain ends well, and its connection serves once more."""
    server = serve(workers=1)
    client = Client(server.port, keep_alive=True)
    bodies: list[bytes] = []

    def ask() -> None:
        bodies.append(client.get("/stream?chunks=30&pause=0.1")[1])
        bodies.append(client.get("/")[1])

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: _in_flight(server) == 1, what="the answer has begun")
    old = server.ready()[0]
    server.send(signal.SIGHUP)
    asking.join(20)
    assert bodies == [b"x" * 3000, str(old.pid).encode()]


class _Held:
    """Requests that are being held, one thread each."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.threads: list[threading.Thread] = []

    @property
    def count(self) -> int:
        return len(self.threads)

    def wait(self) -> Counter[str]:
        for thread in self.threads:
            thread.join(60)
        return self.outcomes


def _hold_one_in_each_worker(server: Server, seconds: float) -> _Held:
    """
    Send held requests until each worker has one.

    Who takes a connection is the kernel's choice, so whoever has one is stopped until all have one.
    """
    held = _Held()
    lock = threading.Lock()

    def hold() -> None:
        try:
            status, _ = Client(server.port, keep_alive=False).get(f"/hold?s={seconds}")
            outcome = "ok" if status == 200 else f"status {status}"
        except Exception as error:
            outcome = type(error).__name__
        with lock:
            held.outcomes[outcome] += 1

    idle = {worker.pid for worker in server.ready()}
    stopped: set[int] = set()
    next_at = 0.0

    def nobody_is_idle() -> bool:
        nonlocal next_at
        for pid in [pid for pid in idle if _connections(pid, server.port)]:
            os.kill(pid, signal.SIGSTOP)
            idle.discard(pid)
            stopped.add(pid)
            next_at = 0.0
        if idle and time.monotonic() >= next_at:
            # Once more after a while: the kernel may have woken a worker that is stopped, and nobody else.
            next_at = time.monotonic() + 0.2
            thread = threading.Thread(target=hold)
            held.threads.append(thread)
            thread.start()
        return not idle

    try:
        eventually(nobody_is_idle, what="each worker holds a request")
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    return held


def _in_flight(server: Server) -> int:
    return sum(_connections(worker.pid, server.port) for worker in server.ready())


def _connections(pid: int, port: int) -> int:
    connections = psutil.Process(pid).net_connections("tcp")
    return sum(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port for c in connections)
