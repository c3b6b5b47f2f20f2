"""What serving costs when nothing happens, and when a roll does: latency, rate, an idle master."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.airflow import ENDPOINTS, AirflowServer
from bench.load import OK
from bench.pace import Pace, Sample, flood
from bench.results import Figures
from bench.rolls import facts, follow
from bench.ruler import Roll, cpu_ns, machine_busy_s
from bench.server import SETTLE_S, Server, ServerFailedError
from bench.stats import percentile

STEADY_S = 4.0
AFTER_ROLL_S = 1.5
"""How long after a roll's end requests still count as asked during it: the last newcomers are still new."""

AIRFLOW_AFTER_ROLL_S = 4.0

ROLLING_S = 7.0
AIRFLOW_ROLLING_S = 12.0
"""
The window of the percentiles while rolling, from the begin of the roll: the same for all.

Otherwise a roll that takes long would thin out what it costs by what goes on as ever.
"""

AGE_MARGIN_S = 0.5
TINY_CLIENTS = 16
TINY_PERIOD_S = 0.04

AIRFLOW_STEADY_S = 10.0
AIRFLOW_CLIENTS = 4
AIRFLOW_PERIOD_S = 0.1
WARMING = 200
"""Requests before the steady window, so that each worker has answered each endpoint."""

WARMING_LIMIT_S = 15
"""Seconds that they, and the end of a boot, may take before the age of a roll must be near."""

RATE_CLIENTS = 16
RATE_BOOTS = 2
"""How often the servers are started anew: one process is a little faster than the next of its kind."""

RATE_ROUNDS = 4

Kinds = Sequence[type[Server]]


def measure_latency(kind: type[Server], workers: int) -> dict[str, Any]:
    """Keep a pace on the tiny app, steady and then over a roll."""
    refresh_s = int(STEADY_S + SETTLE_S) + 3
    with kind(workers, refresh_s=refresh_s) as server:
        server.wait_until_due(lead_s=STEADY_S + AGE_MARGIN_S)
        return _over_a_roll(
            server,
            Pace(server.port, clients=TINY_CLIENTS, period_s=TINY_PERIOD_S),
            steady_s=STEADY_S,
            after_s=AFTER_ROLL_S,
            window_s=ROLLING_S,
        )


def measure_airflow_latency(kind: type[AirflowServer], workers: int) -> dict[str, Any]:
    """Keep a slower pace on the real Airflow, over five endpoints; every worker is warm before it."""
    refresh_s = int(AIRFLOW_STEADY_S) + WARMING_LIMIT_S
    with kind(workers, refresh_s=refresh_s) as server:
        server.ask(WARMING)
        server.wait_until_due(lead_s=AIRFLOW_STEADY_S + AGE_MARGIN_S)
        pace = Pace(
            server.port,
            clients=AIRFLOW_CLIENTS,
            period_s=AIRFLOW_PERIOD_S,
            paths=ENDPOINTS,
            token=server.token(),
        )
        return _over_a_roll(
            server,
            pace,
            steady_s=AIRFLOW_STEADY_S,
            after_s=AIRFLOW_AFTER_ROLL_S,
            window_s=AIRFLOW_ROLLING_S,
        )


def _over_a_roll(
    server: Server, pace: Pace, *, steady_s: float, after_s: float, window_s: float
) -> dict[str, Any]:
    with pace:
        began_at = time.monotonic()
        time.sleep(steady_s)
        roll = follow(server)
        rest_s = 0.0 if roll.began_at is None else roll.began_at + window_s - time.monotonic()
        time.sleep(max(after_s, rest_s))
    return {**facts(roll), **phases(pace.samples, roll, began_at, window_s)}


def phases(samples: Sequence[Sample], roll: Roll, began_at: float, window_s: float) -> dict[str, Any]:
    """
    Tell the latencies before a roll apart from those during it.

    :param began_at: what was due before is not counted: the clients were connecting.
    :param window_s: of the percentiles during the roll; the slowest is of all of it.
    """
    rolls_at = roll.began_at or began_at
    found: dict[str, Any] = {}
    for phase, taken, until in (
        ("steady", [one for one in samples if began_at <= one.due_at < rolls_at], rolls_at),
        (
            "rolling",
            [one for one in samples if roll.began_at is not None and one.due_at >= rolls_at],
            rolls_at + window_s,
        ),
    ):
        answered = [one for one in taken if one.outcome == OK]
        took_ms = [one.took_s * 1000 for one in answered if one.due_at < until]
        if took_ms:
            found[f"{phase}_p50_ms"] = round(percentile(took_ms, 50), 3)
            found[f"{phase}_p99_ms"] = round(percentile(took_ms, 99), 3)
            found[f"{phase}_max_ms"] = round(max(one.took_s * 1000 for one in answered), 3)
        found[f"{phase}_requests"] = len(taken)
        found[f"{phase}_outcomes"] = dict(Counter(one.outcome for one in taken))
    return found


def measure_rate(kinds: Kinds, workers: int, *, window_s: float) -> dict[str, Figures]:
    """
    Ask the tiny app as fast as it answers, each server for a short while, in turns.

    All are up all the time, and idle when it is not their turn. Each round begins with another one.
    """
    found: dict[str, dict[str, Any]] = {kind.name: {"per_s": [], "per_cpu_s": []} for kind in kinds}
    for _ in range(RATE_BOOTS):
        with contextlib.ExitStack() as stack:
            servers = _start(stack, [kind(workers) for kind in kinds])
            for turn in range(RATE_ROUNDS):
                first = turn % len(servers)
                for server in servers[first:] + servers[:first]:
                    per_s, per_cpu_s = _rate(server, window_s)
                    found[server.name]["per_s"].append(round(per_s))
                    found[server.name]["per_cpu_s"].append(round(per_cpu_s))
    return dict(found)


def _start(stack: contextlib.ExitStack, servers: Sequence[Server]) -> list[Server]:
    """Start all, and leave out who does not: the others are measured without it."""
    up = []
    for server in servers:
        try:
            up.append(stack.enter_context(server))
        except ServerFailedError as error:
            print(error, file=sys.stderr, flush=True)
    time.sleep(SETTLE_S)
    return up


def _rate(server: Server, window_s: float) -> tuple[float, float]:
    """Answers per second, and per second of the workers' processor time."""
    before_ns = sum(map(cpu_ns, server.old))
    answers, per_s = flood(server.port, clients=RATE_CLIENTS, window_s=window_s)
    return per_s, answers / (sum(map(cpu_ns, server.old)) - before_ns) * 1e9


def measure_idle(kinds: Kinds, workers: int, *, window_s: float) -> dict[str, Figures]:
    """
    Take the processor time of masters that have nothing to do, in percent of one core.

    All at once, so that all have the same neighbours: a master that sleeps finds its memory out of the
    processor's caches, and a quieter machine shows a dearer master.
    """
    with contextlib.ExitStack() as stack:
        servers = _start(stack, [kind(workers) for kind in kinds])
        began_at, busy_s = time.monotonic(), machine_busy_s()
        before = {server.name: cpu_ns(server.pid) for server in servers}
        time.sleep(window_s)
        used = {server.name: cpu_ns(server.pid) - before[server.name] for server in servers}
        passed_s = time.monotonic() - began_at
        busy_cores = (machine_busy_s() - busy_s) / passed_s
    return {
        name: {
            "percent": round(used_ns / passed_s / 1e7, 4),
            "window_s": round(passed_s, 1),
            "machine_busy_cores": round(busy_cores, 3),
        }
        for name, used_ns in used.items()
    }
