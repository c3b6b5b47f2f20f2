"""The tables: medians, ranges and ratios to ours, how often each was measured, and the goals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.contestants import LABELS
from bench.goals import GOALS
from bench.load import OK
from bench.results import OURS, Results
from bench.stats import spread

Cell = Callable[[Results, str, str], str]
"""Makes a cell of the results, the case and the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    One line of a table, for each size at which its measure was taken.

    :param title: with ``{workers}`` where their number belongs.
    """

    measure: str
    title: str
    cell: Cell


def figure(key: str, form: str, *, has_ratio: bool = True, is_for_all: bool = True) -> Cell:
    """
    Make a cell of one figure: its median, its range, its ratio to ours, and how often it was taken.

    :param form: of one number, as for :meth:`str.format`.
    :param is_for_all: whether others than ours have it.
    """

    def write(results: Results, case: str, server: str) -> str:
        values = results.values(case, server, key)
        if not values:
            return _missing(results, case, server) if is_for_all or server == OURS else "-"
        text = spread(values, form)
        ratio = results.ratio(case, server, key) if has_ratio and server != OURS else None
        if ratio is not None:
            text += f", x{ratio:.2f}" if ratio < 10 else f", x{ratio:.0f}"
        return f"{text} {_times(results, case, server, key)}"

    return write


def failures(key: str) -> Cell:
    """Make a cell of requests counted by their outcome, over all repetitions."""

    def write(results: Results, case: str, server: str) -> str:
        counts = results.total(case, server, key)
        if not counts:
            return _missing(results, case, server)
        failed = sum(counts.values()) - counts[OK]
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()) if kind != OK)
        text = f"{failed:,} of {sum(counts.values()):,}" + (f": {kinds}" if kinds else "")
        return f"{text} {_times(results, case, server, key)}"

    return write


def price(key: str) -> Cell:
    """Make a cell of what one worker more costs, from all sizes."""

    def write(results: Results, case: str, server: str) -> str:
        found = results.price(case.partition(" ")[0], server, key)
        base = results.price(case.partition(" ")[0], OURS, key)
        if found is None:
            return "-"
        return f"{found:.1f}" + (f", x{found / base:.1f}" if base and server != OURS else "")

    return write


MS = "{:.1f}"
TABLES: tuple[tuple[str, str, tuple[Row, ...]], ...] = (
    ("rolls", "Rolls of the tiny app", (
        Row(measure="roll", title="roll {workers} idle workers, s", cell=figure("seconds", "{:.2f}")),
        Row(measure="roll", title="longest turn of our master, {workers} workers, boot and roll, ms",
            cell=figure("longest_turn_ms", MS, has_ratio=False, is_for_all=False)),
        Row(measure="lost", title="requests failed in a roll of {workers} workers under full load",
            cell=failures("outcomes")),
        Row(measure="lost", title="that roll, s", cell=figure("seconds", "{:.2f}")),
        Row(measure="held", title="fewest of {workers} workers listening in a roll, each holding a request",
            cell=figure("fewest_listening", "{:.0f}", has_ratio=False)),
        Row(measure="held", title="seconds with fewer than {workers}",
            cell=figure("below_target_s", "{:.2f}", has_ratio=False)),
        Row(measure="held", title="held requests cut off", cell=failures("outcomes")),
    )),
    ("latency", "Latency of the tiny app at 400 requests a second", (
        Row(measure="latency", title="steady, p50, ms", cell=figure("steady_p50_ms", "{:.2f}")),
        Row(measure="latency", title="steady, p99, ms", cell=figure("steady_p99_ms", MS)),
        Row(measure="latency", title="steady, slowest, ms", cell=figure("steady_max_ms", MS)),
        Row(measure="latency", title="rolling, p50, ms", cell=figure("rolling_p50_ms", "{:.2f}")),
        Row(measure="latency", title="rolling, p99, ms", cell=figure("rolling_p99_ms", MS)),
        Row(measure="latency", title="rolling, slowest, ms", cell=figure("rolling_max_ms", MS)),
        Row(measure="latency", title="rolling, requests failed", cell=failures("rolling_outcomes")),
    )),
    ("worker", "One worker, and a master without work", (
        Row(measure="rate", title="requests per second, {workers} worker", cell=figure("per_s", "{:,.0f}")),
        Row(measure="rate", title="requests per second of the worker's processor time",
            cell=figure("per_cpu_s", "{:,.0f}")),
        Row(measure="idle", title="idle master of {workers} workers, % of one core",
            cell=figure("percent", "{:.3f}")),
    )),
    ("memory", "The real Airflow: memory", (
        Row(measure="memory", title="{workers} workers, idle, PSS of all processes, MiB",
            cell=figure("idle_tree_mib", "{:.0f}")),
        Row(measure="memory", title="{workers} workers, after 200 requests over 5 endpoints, MiB",
            cell=figure("asked_tree_mib", "{:.0f}")),
        Row(measure="memory", title="{workers} workers, after 200 more, the OpenAPI schema among them, MiB",
            cell=figure("schema_tree_mib", "{:.0f}")),
        Row(measure="memory", title="private memory of one of {workers} workers, idle, MiB",
            cell=figure("idle_worker_private_mib", "{:.0f}")),
        Row(measure="memory", title="private memory of one of {workers} workers, after the requests, MiB",
            cell=figure("asked_worker_private_mib", "{:.0f}")),
        Row(measure="memory", title="private memory of one of {workers} workers, after the schema too, MiB",
            cell=figure("schema_worker_private_mib", "{:.0f}")),
    )),
    ("start", "The real Airflow: start and latency", (
        Row(measure="memory", title="first answer of {workers} workers, s",
            cell=figure("first_answer_s", "{:.1f}")),
        Row(measure="memory", title="processor time up to then, {workers} workers, s",
            cell=figure("first_answer_cpu_s", "{:.1f}")),
        Row(measure="memory", title="all {workers} workers serve, s", cell=figure("full_set_s", "{:.1f}")),
        Row(measure="airflow-latency", title="steady, p50, ms", cell=figure("steady_p50_ms", MS)),
        Row(measure="airflow-latency", title="steady, p99, ms", cell=figure("steady_p99_ms", MS)),
        Row(measure="airflow-latency", title="steady, slowest, ms", cell=figure("steady_max_ms", MS)),
        Row(measure="airflow-latency", title="rolling, p50, ms", cell=figure("rolling_p50_ms", MS)),
        Row(measure="airflow-latency", title="rolling, p99, ms", cell=figure("rolling_p99_ms", MS)),
        Row(measure="airflow-latency", title="rolling, slowest, ms", cell=figure("rolling_max_ms", MS)),
        Row(measure="airflow-latency", title="rolling, requests failed", cell=failures("rolling_outcomes")),
        Row(measure="airflow-latency", title="that roll of {workers} workers, s",
            cell=figure("seconds", "{:.1f}")),
    )),
)  # fmt: skip
"""Each table's key, title and rows; a row of several sizes is repeated for each."""

PRICES = (
    Row(measure="memory", title="each further worker, idle, MiB", cell=price("idle_tree_mib")),
    Row(measure="memory", title="each further worker, after the requests, MiB", cell=price("asked_tree_mib")),
    Row(
        measure="memory",
        title="each further worker, after the schema too, MiB",
        cell=price("schema_tree_mib"),
    ),
)


def goals(results: Results) -> list[str]:
    """The table of goals."""
    rows = [goal.row(results) for goal in GOALS]
    return _table(["goal", "limit", "measured", ""], rows)


def sections(results: Results) -> list[tuple[str, str, list[str]]]:
    """All tables that have a figure, each with its key and title."""
    written = []
    for key, title, rows in TABLES:
        cases = [(row, case) for row in rows for case in _cases(results, row.measure)]
        servers = [name for name in LABELS if any(results.figures(case, name) for _, case in cases)]
        lines = [_line(results, row, case, servers) for row, case in cases]
        if key == "memory" and len(results.sizes("memory")) > 1:
            lines += [_line(results, row, cases[0][1], servers) for row in PRICES]
        if lines:
            written.append((key, title, _table(["", *(LABELS[name] for name in servers)], lines)))
    return written


def facts(data: Mapping[str, Any], results: Results) -> list[str]:
    """The machine, and how quiet it was."""
    busy = [
        value for case in results.names("idle") for value in results.values(case, OURS, "machine_busy_cores")
    ]
    quiet = [f"- cores busy in the idle windows, all processes: {spread(busy, '{:.2f}')}"] if busy else []
    took = sum(data["took_s"].values()) / 60
    return [
        *(f"- {name}: {value}" for name, value in data["machine"].items()),
        *quiet,
        f"- minutes that the run took: {took:.0f}",
    ]


def _cases(results: Results, measure: str) -> list[str]:
    return [f"{measure} {size}" for size in results.sizes(measure)]


def _line(results: Results, row: Row, case: str, servers: Sequence[str]) -> list[str]:
    title = row.title.format(workers=case.split()[1])
    return [title, *(row.cell(results, case, server) for server in servers)]


def _missing(results: Results, case: str, server: str) -> str:
    """Why there is no figure, if it is known."""
    notes = [found["note"] for found in results.figures(case, server) if found.get("note")]
    return str(notes[0]) if notes else "-"


def _times(results: Results, case: str, server: str, key: str) -> str:
    """How often a figure was taken, and how often in vain."""
    repetitions = results.figures(case, server)
    taken = sum(figures.get(key) is not None for figures in repetitions)
    return f"(n={taken})" if taken == len(repetitions) else f"(n={taken} of {len(repetitions)})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---|" + "---|" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
