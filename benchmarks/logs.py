"""
What the log costs: requests a second of one worker of the tiny app, with and without an access log.

    python benchmarks/logs.py --repetitions 5

The rate is requests per second of the *worker's* processor time, which is the rate that a worker with a
processor of its own reaches; what clients and neighbours take does not count. Repetitions alternate.
"""

from __future__ import annotations

import argparse
import statistics
import time

from bench import machine
from bench.contestants import Gunicorn, Ours
from bench.load import OK, Load
from bench.ruler import cpu_ns
from bench.server import Server

WINDOW_S = 5.0


class Plain(Gunicorn):
    """gunicorn with uvicorn-worker and its plain log."""

    label = "gunicorn + uvicorn-worker, access log off"


class PlainWithAccess(Plain):
    """The same with uvicorn's access log."""

    label = "gunicorn + uvicorn-worker, access log on"

    def command(self) -> list[str]:
        return [*super().command(), "--access-logfile=access.log"]


class Off(Ours):
    """Ours, as it is by default."""

    label = "airflow_arbiter, access log off"


class Json(Ours):
    """Ours, with one JSON object a request."""

    label = "airflow_arbiter, access log on, JSON"

    def command(self) -> list[str]:
        return [*super().command(), "--access-logfile=access.log", "--log-format=json"]


class Console(Ours):
    """Ours, with one line of text a request."""

    label = "airflow_arbiter, access log on, console"

    def command(self) -> list[str]:
        return [*super().command(), "--access-logfile=access.log", "--log-format=console"]


def measure(kind: type[Server]) -> float:
    """
    Serve for a while.

    :return: requests answered per second of the worker's processor time.
    """
    with kind(1) as server:
        (worker,) = server.old
        before = cpu_ns(worker)
        with Load(server.port) as load:
            time.sleep(WINDOW_S)
        return load.outcomes[OK] / (cpu_ns(worker) - before) * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    kinds = (Plain, PlainWithAccess, Off, Json, Console)
    rates: dict[str, list[float]] = {kind.label: [] for kind in kinds}
    for _ in range(repetitions):
        for kind in kinds:
            rates[kind.label].append(measure(kind))
    plain = statistics.median(rates[Plain.label])
    print("| server | requests per second of the worker's processor | ratio to the first |\n|---|---|---|")
    for label, found in rates.items():
        median = statistics.median(found)
        print(f"| {label} | {median:,.0f} ({min(found):,.0f} to {max(found):,.0f}) | {median / plain:.2f} |")
    print(f"\nMedian of {repetitions} repetitions of {WINDOW_S:g} s, (smallest to largest).\n")
    for fact, value in machine.facts().items():
        print(f"- {fact}: {value}")


if __name__ == "__main__":
    main()
