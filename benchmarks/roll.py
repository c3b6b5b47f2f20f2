"""
Measure airflow_arbiter beside Airflow's own gunicorn mode and uvicorn: rolls, idle masters, lost requests.

One command, no network beyond 127.0.0.1: ``python benchmarks/roll.py``. See README.md beside this file for
what each figure means.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from load import OK, Load
from report import machine, table
from servers import NEVER_S, SERVERS, Server, ServerFailedError
from watch import Roll, cpu_ns, machine_busy_s, watch_roll

MEASURES = ("roll", "idle", "load")
IDLE_WINDOW_S = 30.0
QUICK_WINDOW_S = 5.0
LOAD_LEAD_S = 1.5
"""Load before the begin of a roll, and after its end."""

AGE_LEAD_S = 4.0
"""How long before an age is due we are there: longer than a boot of 24 workers and the lead of the load."""

BEGIN_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    One thing to measure on every server.

    :param workers: of the server.
    """

    measure: str
    workers: int

    @property
    def name(self) -> str:
        """The case's key in the results."""
        return f"{self.measure} {self.workers}"


def refresh_s(workers: int) -> int:
    """Seconds of age at which Airflow's arbiter rolls: the full set must be up before that."""
    return max(7, workers // 2)


def limit_s(workers: int) -> float:
    """Seconds after which a roll is called endless: several times what the slowest needs."""
    return max(45.0, 5.0 * workers)


def follow(server: Server) -> Roll:
    """Make a server roll, and watch."""
    server.begin_roll()
    return watch_roll(
        server.pool,
        server.old,
        server.before,
        begins_by_age=server.begins_by_age,
        begin_limit_s=BEGIN_LIMIT_S + server.refresh_s * server.begins_by_age,
        limit_s=limit_s(server.workers),
    )


def measure_roll(kind: type[Server], workers: int, _window_s: float) -> dict[str, Any]:
    """Take the time of one roll without load."""
    with kind(workers, refresh_s=refresh_s(workers)) as server:
        server.wait_until_due(lead_s=AGE_LEAD_S)
        return asdict(follow(server))


def measure_load(kind: type[Server], workers: int, _window_s: float) -> dict[str, Any]:
    """Roll once under load, and count how its requests ended."""
    with kind(workers, refresh_s=refresh_s(workers)) as server:
        server.wait_until_due(lead_s=AGE_LEAD_S)
        with Load(server.port) as load:
            time.sleep(LOAD_LEAD_S)
            roll = follow(server)
            time.sleep(LOAD_LEAD_S)
    total = sum(load.outcomes.values())
    failed = total - load.outcomes.get(OK, 0)
    return {**asdict(roll), "requests": total, "failed": failed, "outcomes": load.outcomes}


def measure_idle(kind: type[Server], workers: int, window_s: float) -> dict[str, Any]:
    """Take the processor time of a master that has nothing to do, in percent of one core."""
    with kind(workers, refresh_s=NEVER_S) as server:
        server.wait_until_due(lead_s=NEVER_S)
        began_at, before, busy = time.monotonic(), cpu_ns(server.pid), machine_busy_s()
        time.sleep(window_s)
        used_ns, passed_s = cpu_ns(server.pid) - before, time.monotonic() - began_at
        others = (machine_busy_s() - busy) / passed_s
    return {"percent": used_ns / passed_s / 1e7, "window_s": passed_s, "machine_busy_cores": others}


MEASURERS: dict[str, Callable[[type[Server], int, float], dict[str, Any]]] = {
    "roll": measure_roll,
    "idle": measure_idle,
    "load": measure_load,
}


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """What is measured, in the order of the table."""
    if "roll" not in options.skip:
        for workers in options.workers:
            yield Case(measure="roll", workers=workers)
    for measure in ("idle", "load"):
        if measure not in options.skip:
            yield Case(measure=measure, workers=min(options.workers))


def run(options: argparse.Namespace) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """
    Measure everything.

    Repetitions alternate between the servers, and each begins with another one, so that a machine that gets
    slower by the hour, or a neighbour who starts a build, is felt by all.

    :return: for each case, for each server, its repetitions.
    """
    kinds = [kind for kind in SERVERS if kind.name not in options.skip]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {
        case.name: {kind.name: [] for kind in kinds} for case in cases(options)
    }
    for repetition in range(options.repetitions):
        turn = repetition % len(kinds)
        for case in cases(options):
            for kind in kinds[turn:] + kinds[:turn]:
                try:
                    figures = MEASURERS[case.measure](kind, case.workers, options.window)
                except ServerFailedError as error:
                    print(error, file=sys.stderr)
                    figures = {"note": "did not start"}
                results[case.name][kind.name].append(figures)
                print(f"{repetition + 1} {case.name} {kind.name}: {figures}", file=sys.stderr, flush=True)
    return results


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    names = [kind.name for kind in SERVERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3, metavar="N")
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 24], metavar="N")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=[*names, *MEASURES],
        help="a server or a measurement to leave out; may be given again",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there too")
    parser.add_argument("--quick", action="store_true", help="1 repetition, 4 workers, a window of 5 s")
    options = parser.parse_args(arguments)
    options.window = IDLE_WINDOW_S
    if options.quick:
        options.repetitions, options.workers, options.window = 1, [4], QUICK_WINDOW_S
    if options.repetitions < 1 or min(options.workers) < 1:
        parser.error("--repetitions and --workers must be 1 or more")
    if set(names) <= set(options.skip):
        parser.error("--skip leaves no server")
    return options


def main() -> None:
    options = parse()
    # Else SIGTERM would leave the servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    load_before = os.getloadavg()[0]
    results = run(options)
    facts = {**machine(), "load average before": round(load_before, 2), "window_s": options.window}
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "results": results}, indent=2) + "\n")
    print(table(facts, results))


if __name__ == "__main__":
    main()
