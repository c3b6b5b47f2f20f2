"""
What a person, or a program that reads after one, sees of a report.

Owns the words, the columns and the formats. Imports what draws only when it draws.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from airflow_arbiter.client import AsJson
from airflow_arbiter.errors import ArbiterError
from airflow_arbiter.limits import one_line

if TYPE_CHECKING:
    from rich.console import Group
    from rich.progress import Progress
    from rich.table import Table

WIDTH = 200
"""Columns where there is no terminal to ask. As Airflow has it."""

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_KIB = 1024


# -- words
# -------------------------------------------------------------------------------------------------------


def duration(seconds: float | None) -> str:
    """Say a duration in its two largest units; nothing where there is none."""
    if seconds is None:
        return ""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for name, unit, next_name, next_unit in (
        ("d", _DAY_S, "h", _HOUR_S),
        ("h", _HOUR_S, "m", _MINUTE_S),
        ("m", _MINUTE_S, "s", 1),
    ):
        if whole >= unit:
            return f"{whole // unit}{name} {whole % unit // next_unit:02d}{next_name}"
    return ""


def size(number: int | None) -> str:
    """Say a number of bytes; nothing where there is none."""
    return "" if number is None else f"{number / _KIB**2:.1f} MiB"


def rollout_words(seen: AsJson) -> str:
    """Say in one line how the replacing of workers stands, and what has become of new code."""
    failure = seen["reload"]["failure"]
    return _rollout(seen) + (f", the last reload failed: {one_line(failure)}" if failure else "")


def _rollout(seen: AsJson) -> str:
    rollout = seen["rollout"]
    words = [rollout["phase"]]
    if rollout["due"] or rollout["replaced"]:
        words.append(f"{rollout['replaced']} of {rollout['replaced'] + rollout['due']} replaced")
    if rollout["reasons"]:
        words.append("because of " + ", ".join(rollout["reasons"]))
    if rollout["running_s"] is not None:
        words.append(f"for {duration(rollout['running_s'])}")
    if rollout["because"]:
        words.append(one_line(str(rollout["because"])))
    if rollout["retry_in_s"] is not None:
        words.append(f"next try in {duration(rollout['retry_in_s'])}")
    return ", ".join(words)


def summary(seen: AsJson) -> list[tuple[str, str]]:
    """Say everything but the workers, in lines that have a name each."""
    server, pool, reload = seen["server"], seen["pool"], seen["reload"]
    counts = (
        f"{pool['available']} of {pool['target']} available, {pool['live']} live, "
        f"{pool['booting']} booting, {pool['draining']} draining, surge {pool['surge']}"
    )
    lines = [
        ("Server", f"{server['app']}, pid {server['pid']}, up {duration(server['uptime_s'])}"),
        ("Listens", ", ".join(server["listeners"])),
        ("Pool", counts),
        ("Rollout", _rollout(seen)),
    ]
    if reload["state"] != "idle" or reload["failure"]:
        lines.append(("Reload", ", ".join(filter(None, (reload["state"], one_line(reload["failure"]))))))
    if server["stopping"]:
        lines.append(("Stop", "under way"))
    return lines


_COLUMNS: Mapping[str, Callable[[AsJson], str]] = {
    "pid": lambda worker: str(worker["pid"]),
    "age": lambda worker: str(worker["age"]),
    "generation": lambda worker: str(worker["generation"]),
    "state": lambda worker: str(worker["state"]),
    "uptime": lambda worker: duration(worker["uptime_s"]),
    "requests": lambda worker: str(worker["requests"]),
    "in_flight": lambda worker: str(worker["in_flight"]),
    "private": lambda worker: size(worker["private_bytes"]),
    "last_beat": lambda worker: _ago(worker["beat_ago_s"]),
    "last_probe": lambda worker: " ".join(
        filter(None, (one_line(worker["probe"]), _ago(worker["probe_ago_s"])))
    ),
    "due": lambda worker: worker["due"] or "",
}
"""What is told of a worker."""


def _ago(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} ago"


def rows(seen: AsJson) -> list[list[str]]:
    """Tell the workers in rows, the names of the columns first."""
    return [
        list(_COLUMNS),
        *([tell(worker) for tell in _COLUMNS.values()] for worker in seen["workers"]),
    ]


# -- formats
# -------------------------------------------------------------------------------------------------------


def drawn(seen: AsJson) -> Group:
    """Draw a report for a person."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    facts = Table.grid(padding=(0, 2))
    for name, text in summary(seen):
        facts.add_row(f"[bold]{name}[/]", _literal(text))
    names, *others = rows(seen)
    workers = Table(box=box.ASCII_DOUBLE_HEAD, show_edge=False)
    for name in names:
        workers.add_column(name)
    _fill(workers, others)
    return Group(facts, "", workers)


def _fill(table: Table, others: Iterable[list[str]]) -> None:
    for row in others:
        table.add_row(*map(_literal, row))


def _literal(text: str) -> str:
    """Text in which brackets are brackets."""
    from rich.markup import escape

    return escape(text)


def _print_table(seen: AsJson) -> None:
    console(sys.stdout).print(drawn(seen))


def console(stream: Any) -> Any:
    """
    What draws on a stream.

    :param stream: a terminal or not.
    """
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else WIDTH, highlight=False)


def _print_plain(seen: AsJson) -> None:
    """Print the workers in columns, for other programs: each cell is one word."""
    table = [["_".join(cell.split()) or "-" for cell in row] for row in rows(seen)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        _print("  ".join(cells).rstrip())


def _print_json(seen: AsJson) -> None:
    _print(json.dumps(seen, indent=2))


def _print_yaml(seen: AsJson) -> None:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ArbiterError("there is no PyYAML here to write YAML with: pip install pyyaml") from None
    _print(yaml.safe_dump(dict(seen), sort_keys=False).rstrip())


def _print_prometheus(seen: AsJson) -> None:
    from airflow_arbiter.prometheus import render

    sys.stdout.write(render(seen))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


OUTPUTS: Mapping[str, Callable[[AsJson], None]] = {
    "table": _print_table,
    "json": _print_json,
    "yaml": _print_yaml,
    "plain": _print_plain,
    "prometheus": _print_prometheus,
}
"""How a report can be printed."""


# -- what goes on
# -------------------------------------------------------------------------------------------------------


def _watch(reports: Iterable[AsJson]) -> None:
    """Show report after report, in place where there is a terminal."""
    if not sys.stdout.isatty():
        for seen in reports:
            _print_table(seen)
            sys.stdout.flush()
        return
    from rich.live import Live

    with Live(console=console(sys.stdout), auto_refresh=False, screen=True) as live:
        for seen in reports:
            live.update(drawn(seen), refresh=True)


def _write_lines(reports: Iterable[AsJson]) -> None:
    """Write report after report for another program: each is one line."""
    for seen in reports:
        _print(json.dumps(seen))
        sys.stdout.flush()


WATCHES: Mapping[str, Callable[[Iterable[AsJson]], None]] = {"table": _watch, "json": _write_lines}
"""How reports can be shown one after another."""


class Tell(Protocol):
    """Tells how a rollout stands, and in the end that it is complete."""

    def __call__(self, seen: AsJson, *, is_complete: bool) -> None: ...


@contextlib.contextmanager
def progress() -> Iterator[Tell]:
    """Tell how a rollout goes on: as a bar on a terminal, elsewhere in a line for each change."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        yield _Bar(bar)


class _Bar:
    """
    Shows how far it is.

    :param drawn: what draws it.
    """

    def __init__(self, drawn: Progress) -> None:
        self._drawn = drawn
        self._task = drawn.add_task("", total=None)
        self._replaced = 0
        self._whole = 0

    def __call__(self, seen: AsJson, *, is_complete: bool) -> None:
        rollout = seen["rollout"]
        if whole := rollout["replaced"] + rollout["due"]:  # one that is over counts nobody any more
            self._replaced, self._whole = rollout["replaced"], whole
        self._drawn.update(
            self._task,
            completed=self._whole if is_complete else self._replaced,
            total=self._whole or None,
            description=_literal(_stage(seen)),
        )


class _Lines:
    """Tells each change in a line."""

    def __init__(self) -> None:
        self._told = ""

    def __call__(self, seen: AsJson, *, is_complete: bool) -> None:
        rollout = seen["rollout"]
        whole = rollout["replaced"] + rollout["due"]
        line = _stage(seen) + (f", {rollout['replaced']} of {whole} replaced" if whole else "")
        if line != self._told and not is_complete:  # that is for whoever has waited to say
            self._told = line
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def _stage(seen: AsJson) -> str:
    reload = seen["reload"]
    if reload["state"] == "idle":
        return str(seen["rollout"]["phase"])
    return ": ".join(filter(None, ("reload", reload["state"], one_line(reload["failure"]))))
