"""The table: medians, ranges and ratios to ours, and the machine they belong to."""

from __future__ import annotations

import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from load import OK
from servers import SERVERS, Ours

PACKAGES = ("airflow-arbiter", "apache-airflow-core", "gunicorn", "uvicorn", "uvicorn-worker", "uvloop")

Figures = list[dict[str, Any]]


def machine() -> dict[str, Any]:
    """What the figures depend on; no name and no path of the host."""
    facts: dict[str, Any] = {
        "processors": os.cpu_count(),
        "model": _processor_model(),
        "system": platform.system(),
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def table(facts: Mapping[str, Any], results: Mapping[str, Mapping[str, Figures]]) -> str:
    """
    Write the results as Markdown.

    :param facts: the machine's.
    :param results: for each case, for each server, its repetitions.
    """
    kinds = [kind for kind in SERVERS if any(kind.name in by_server for by_server in results.values())]
    lines = [
        "| measured | " + " | ".join(kind.label for kind in kinds) + " |",
        "|---|" + "---|" * len(kinds),
    ]
    for case, by_server in results.items():
        for title, cell in _rows(case, facts["window_s"]):
            ours = by_server.get(Ours.name, [])
            cells = [cell(by_server[kind.name], [] if kind is Ours else ours) for kind in kinds]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    busy = [
        found["machine_busy_cores"]
        for by_server in results.values()
        for figures in by_server.values()
        for found in figures
        if "machine_busy_cores" in found
    ]
    if busy:
        facts = {**facts, "cores that neighbours kept busy in the idle windows": _spread(busy, "{:.2f}")}
    repetitions = max(len(figures) for by_server in results.values() for figures in by_server.values())
    lines += [
        "",
        f"Median of {repetitions} repetition(s), (smallest to largest), x ratio to airflow_arbiter.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in facts.items() if name != "window_s"]
    notes = _notes(results)
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _rows(case: str, window_s: float) -> list[tuple[str, Any]]:
    """The rows of one case: a title, and how a cell is made of a server's repetitions and ours."""
    measure, _, workers = case.partition(" ")
    if measure == "roll":
        return [(f"roll {workers} idle workers, seconds", _cell("seconds", "{:.2f}"))]
    if measure == "idle":
        title = f"idle master of {workers} workers over {window_s:g} s, % of one core"
        return [(title, _cell("percent", "{:.3f}"))]
    return [
        (f"roll {workers} workers under load, requests failed (all repetitions)", _lost),
        (f"roll {workers} workers under load, seconds", _cell("seconds", "{:.2f}")),
    ]


def _cell(key: str, form: str) -> Any:
    """Make a cell writer for one figure."""

    def write(figures: Figures, ours: Figures) -> str:
        values = [found[key] for found in figures if found.get(key) is not None]
        missing = [str(found.get("note", "")) for found in figures if found.get(key) is None]
        parts = []
        if values:
            parts.append(_spread(values, form))
            base = [found[key] for found in ours if found.get(key) is not None]
            if base and statistics.median(base):
                parts.append(f"x{statistics.median(values) / statistics.median(base):.1f}")
        if missing:
            parts.append(f"{len(missing)} of {len(figures)}: {missing[0]}")
        return ", ".join(parts) or "-"

    return write


def _spread(values: list[float], form: str) -> str:
    """Median, smallest and largest."""
    low, middle, high = (form.format(of(values)) for of in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


def _lost(figures: Figures, _ours: Figures) -> str:
    """Sum up the requests of all repetitions; a ratio to none lost has no meaning."""
    counts: Counter[str] = Counter()
    for found in figures:
        counts.update(found.get("outcomes", {}))
    failed = sum(counts.values()) - counts[OK]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()) if kind != OK)
    return f"{failed:,} of {sum(counts.values()):,}" + (f": {kinds}" if kinds else "")


def _notes(results: Mapping[str, Mapping[str, Figures]]) -> list[str]:
    """One line for each figure that could not be taken."""
    return [
        f"- {case}, {server}, repetition {number}: {found['note']}"
        for case, by_server in results.items()
        for server, figures in by_server.items()
        for number, found in enumerate(figures, 1)
        if found.get("note")
    ]


def _processor_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
