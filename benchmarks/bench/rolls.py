"""What rolls cost: their time, the requests they lose, and the workers that are away meanwhile."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from bench.contestants import Ours
from bench.load import OK, Load, kind_of
from bench.ruler import Roll, watch_roll
from bench.server import Server

LOAD_LEAD_S = 1.5
"""Load before the begin of a roll, and after its end."""

AGE_LEAD_S = 4.0
"""How long before an age is due we are there: longer than the lead of the load, and than a small boot."""

AGE_LEAD_PER_WORKER_S = 0.1
"""And for each worker: Airflow's age is counted from before their boot."""

BEGIN_LIMIT_S = 30.0
HOLD_S = 14.0
HOLD_AT_ONCE = 4
HOLD_LIMIT = 400
"""Held requests after which we give up to reach a worker that has none."""

PID_WIDTH = 10
"""Bytes of a held answer that come at once; see ``served/tiny.py``."""


def refresh_s(workers: int) -> int:
    """Seconds of age at which Airflow's arbiter rolls: the full set must be up before that."""
    return max(7, workers // 2)


def lead_s(workers: int) -> float:
    """Seconds before an age is due at which we look for its first new process."""
    return AGE_LEAD_S + AGE_LEAD_PER_WORKER_S * workers


def limit_s(workers: int) -> float:
    """Seconds after which a roll is called endless: several times what the slowest needs."""
    return max(45.0, 5.0 * workers)


def follow(server: Server, look: Callable[[], object] = lambda: None) -> Roll:
    """Make a server roll, and watch."""
    server.begin_roll()
    return watch_roll(
        server.pool,
        server.old,
        server.before,
        begins_by_age=server.begins_by_age,
        begin_limit_s=BEGIN_LIMIT_S + server.refresh_s * server.begins_by_age,
        limit_s=limit_s(server.workers),
        look=look,
    )


def facts(roll: Roll) -> dict[str, Any]:
    """What is kept of a roll: its times, and a note if its end was not seen."""
    kept = asdict(roll)
    del kept["began_at"]
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in kept.items()}


def measure_roll(kind: type[Server], workers: int) -> dict[str, Any]:
    """Take the time of one roll without load, and of the longest turn of our master up to its end."""
    with kind(workers, refresh_s=refresh_s(workers)) as server:
        server.wait_until_due(lead_s=lead_s(workers))
        found = facts(follow(server))
    if isinstance(server, Ours):
        found["longest_turn_ms"] = server.longest_turn_ms()
    return found


def measure_lost(kind: type[Server], workers: int) -> dict[str, Any]:
    """Roll once under as much load as there can be, and count how its requests ended."""
    with kind(workers, refresh_s=refresh_s(workers)) as server:
        server.wait_until_due(lead_s=lead_s(workers))
        with Load(server.port) as load:
            time.sleep(LOAD_LEAD_S)
            roll = follow(server)
            time.sleep(LOAD_LEAD_S)
    total = sum(load.outcomes.values())
    failed = total - load.outcomes.get(OK, 0)
    return {**facts(roll), "requests": total, "failed": failed, "outcomes": load.outcomes}


def measure_held(kind: type[Server], workers: int, *, hold_s: float = HOLD_S) -> dict[str, Any]:
    """Roll while each old worker answers a long request, and count the workers that take connections."""
    with kind(workers, refresh_s=refresh_s(workers)) as server:
        server.wait_until_due(lead_s=lead_s(workers))
        held = Held(server, hold_s)
        seen: list[tuple[float, int]] = []

        def look() -> None:
            seen.append((time.monotonic(), len(server.pool.listening(server.pool.children()))))

        roll = follow(server, look)
        outcomes = held.finish()
    below_s = sum(until - since for (since, listening), (until, _) in pairwise(seen) if listening < workers)
    found = facts(roll)
    if held.workers < workers:
        unheld = f"only {held.workers} of {workers} workers held a request"
        found["note"] = f"{unheld}; {found['note']}".strip("; ")
    return {
        **found,
        "fewest_listening": min((listening for _, listening in seen), default=None),
        "below_target_s": round(below_s, 3),
        "hold_s": hold_s,
        "outcomes": outcomes,
    }


class Held:
    """
    Long requests, one at least on each worker of a server.

    :param server: of the tiny app.
    :param hold_s: how long each takes.
    :ivar workers: how many workers have one.
    """

    def __init__(self, server: Server, hold_s: float) -> None:
        self._limit_s = hold_s + BEGIN_LIMIT_S
        self._connections: list[socket.socket] = []
        pids: set[int] = set()
        while len(pids & server.old) < server.workers and len(self._connections) < HOLD_LIMIT:
            asked = [self._ask(server.port, hold_s) for _ in range(HOLD_AT_ONCE)]
            pids.update(int(_exactly(connection, PID_WIDTH)) for connection in asked)
            self._connections += asked
        self.workers = len(pids & server.old)

    def finish(self) -> dict[str, int]:
        """
        Wait for the ends of the answers.

        :return: how many came, and how many did not.
        """
        outcomes: Counter[str] = Counter()
        for connection in self._connections:
            with connection:
                try:
                    outcomes[OK if connection.recv(1) else "closed without answer"] += 1
                except OSError as error:
                    outcomes[kind_of(error)] += 1
        return dict(outcomes)

    def _ask(self, port: int, hold_s: float) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port), self._limit_s)
        connection.sendall(f"GET /hold/{hold_s:g} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        return connection


def _exactly(connection: socket.socket, length: int) -> bytes:
    """Read the head of an answer, and so many bytes of its body."""
    data = b""
    while len(data.partition(b"\r\n\r\n")[2]) < length:
        received = connection.recv(4096)
        if not received:
            raise ConnectionResetError
        data += received
    return data.partition(b"\r\n\r\n")[2][:length]
