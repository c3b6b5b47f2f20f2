"""The command line: chooses, measures, writes."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from bench import machine, pages
from bench.plan import KINDS, Measure, Step, measures, steps
from bench.record import Record, read
from bench.results import Figures

DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
RESULTS = DOCS / "results.json"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    names = [*(measure.name for measure in measures(quick=False)), *(kind.name for kind in KINDS)]
    parser = argparse.ArgumentParser(
        prog="python benchmarks",
        description="Measure airflow_arbiter beside the other ways to serve the same app, in one run.",
        epilog=f"NAME is a measurement or a server: {', '.join(names)}.",
    )
    parser.add_argument("--repetitions", type=int, default=3, metavar="N", help="3; the dear ones have fewer")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=names,
        metavar="NAME",
        help="nothing else; may be given again",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=names,
        metavar="NAME",
        help="not this; may be given again",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the raw figures, written after each one")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the page, results.md, and the plots")
    parser.add_argument(
        "--quick", action="store_true", help="once, 4 workers, short windows: to see that it works"
    )
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="make the pages of earlier figures, measure nothing"
    )
    parser.add_argument(
        "--publish", action="store_true", help="the same as --json and --out into docs/benchmarks"
    )
    options = parser.parse_args(arguments)
    if options.repetitions < 1:
        parser.error("--repetitions must be 1 or more")
    if options.quick:
        options.repetitions = 1
    if options.publish:
        options.json, options.out = options.json or RESULTS, options.out or DOCS
    return options


def chosen(options: argparse.Namespace) -> tuple[list[Measure], list[str]]:
    """
    Tell what is measured, on whom.

    :return: the measures, and the names of the servers, of those that are installed.
    """
    every = measures(quick=options.quick)
    missing = [kind.name for kind in KINDS if not kind.is_installed()]
    for name in missing:
        _say(f"{name} cannot run here and is left out")

    def takes_part(name: str, others: list[str]) -> bool:
        is_meant = name in options.only or not set(options.only).intersection(others)
        return is_meant and name not in options.skip and name not in missing

    names = [measure.name for measure in every]
    servers = [kind.name for kind in KINDS]
    return (
        [measure for measure in every if takes_part(measure.name, names)],
        [name for name in servers if takes_part(name, servers)],
    )


def command(options: argparse.Namespace) -> str:
    """The command line that measures the same, without the names of files of this machine."""
    words = ["python benchmarks", f"--repetitions {options.repetitions}"]
    words += [f"--only {name}" for name in options.only] + [f"--skip {name}" for name in options.skip]
    words += ["--quick"] * options.quick + ["--publish"] * options.publish
    return " ".join(words)


def run(options: argparse.Namespace, record: Record) -> None:
    """Measure everything."""
    todo = list(steps(*chosen(options), options.repetitions))
    began_at = time.monotonic()
    for number, step in enumerate(todo, 1):
        step_began_at = time.monotonic()
        found = _take(step)
        record.spent(step.case, time.monotonic() - step_began_at)
        record.add(step.case, found)
        passed_s = time.monotonic() - began_at
        for server, figures in found.items():
            _say(f"{number}/{len(todo)} {passed_s:.0f} s: {step.case} {server}: {figures}")


def _take(step: Step) -> dict[str, Figures]:
    try:
        return step.take()
    except Exception as error:
        # One server or client that fails, however, leaves the others their figures, and the table says so.
        _say(f"{step.case}: {type(error).__name__}: {error}")
        return {kind.name: {"note": f"failed: {type(error).__name__}"} for kind in step.kinds}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.render:
        data = read(options.render)
    else:
        # Else SIGTERM would leave the servers behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        record = Record(options.json, facts=machine.facts(), command=command(options))
        run(options, record)
        data = record.data
    print(pages.write(data, options.out))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
