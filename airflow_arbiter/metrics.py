"""
What is measured of a server: the table of all metrics, with their names, units and where each comes from.

Owns the names, which dashboards depend on: they stay. Everything comes out of the report. What is sent when
is for :mod:`airflow_arbiter.telemetry`, Prometheus' text for :mod:`airflow_arbiter.prometheus`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from airflow_arbiter.pool import Phase, Reason
from airflow_arbiter.report import Outcome, Report, WorkerState

PREFIX = "airflow_arbiter"

Values = Iterator[tuple[tuple[str, ...], float | None]]
"""A value for each combination of labels; None for what is not known."""

Kind = Literal["gauge", "counter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """
    One thing that is measured.

    :param name: without prefix and unit.
    :param kind: a gauge goes up and down, a counter only ever grows.
    :param unit: of its values; statsd is told milliseconds, as is the custom there.
    :param about: what it is, in words.
    :param labels: what its values differ by; part of the name for statsd.
    :param read: finds its values.
    """

    name: str
    kind: Kind
    about: str
    read: Callable[[Report], Values]
    unit: Literal["", "bytes", "seconds"] = ""
    labels: tuple[str, ...] = ()

    @property
    def prometheus(self) -> str:
        """Its name for Prometheus."""
        parts = (PREFIX, self.name, self.unit, "total" if self.kind == "counter" else "")
        return "_".join(filter(None, parts))

    def statsd(self, values: Sequence[str]) -> str:
        """Its name for statsd, with one combination of the labels' values."""
        unit = "ms" if self.unit == "seconds" else self.unit
        return ".".join([PREFIX, "_".join(filter(None, (self.name, unit))), *values])


def _one(value: Callable[[Report], float | None]) -> Callable[[Report], Values]:
    """Read the one value of a metric without labels."""
    return lambda report: iter([((), value(report))])


def _workers(report: Report) -> Values:
    states = [worker.state for worker in report.workers]
    return (((state,), states.count(state)) for state in get_args(WorkerState))


def _phases(report: Report) -> Values:
    return (((phase,), int(report.rollout.phase == phase)) for phase in get_args(Phase))


def _replaced(report: Report) -> Values:
    counts = {(entry.reason, entry.outcome): entry.count for entry in report.counters.replaced}
    return (
        ((reason, outcome), counts.get((reason, outcome), 0))
        for reason in get_args(Reason)
        for outcome in get_args(Outcome)
    )


def _private_bytes(report: Report) -> list[int]:
    return [worker.private_bytes for worker in report.workers if worker.private_bytes is not None]


METRICS: tuple[Metric, ...] = (
    Metric(
        name="workers",
        kind="gauge",
        about="worker processes, by what they are at",
        labels=("state",),
        read=_workers,
    ),
    Metric(
        name="workers_target",
        kind="gauge",
        about="workers wanted",
        read=_one(lambda report: report.pool.target),
    ),
    Metric(
        name="in_flight",
        kind="gauge",
        about="requests being answered",
        read=_one(lambda report: sum(worker.in_flight for worker in report.workers)),
    ),
    Metric(
        name="requests",
        kind="counter",
        about="requests answered, health checks left out",
        read=_one(lambda report: report.counters.requests),
    ),
    Metric(
        name="private_memory",
        kind="gauge",
        unit="bytes",
        about="memory that workers share with nobody (USS), all of them together",
        read=_one(lambda report: sum(_private_bytes(report)) if _private_bytes(report) else None),
    ),
    Metric(
        name="private_memory_largest",
        kind="gauge",
        unit="bytes",
        about="the same of the worker that has most",
        read=_one(lambda report: max(_private_bytes(report), default=None)),
    ),
    Metric(
        name="spawned",
        kind="counter",
        about="worker processes made",
        read=_one(lambda report: report.counters.spawned),
    ),
    Metric(
        name="replaced",
        kind="counter",
        about="due workers that have left, by why they were due and how they left",
        labels=("reason", "outcome"),
        read=_replaced,
    ),
    Metric(
        name="crashes",
        kind="counter",
        about="workers lost unasked after they had served, hung ones included",
        read=_one(lambda report: report.counters.crashes),
    ),
    Metric(
        name="boots_failed",
        kind="counter",
        about="newcomers lost before they had proved themselves",
        read=_one(lambda report: report.counters.boots_failed),
    ),
    Metric(
        name="boots",
        kind="counter",
        about="workers that became ready",
        read=_one(lambda report: report.counters.boot.count),
    ),
    Metric(
        name="boot",
        kind="counter",
        unit="seconds",
        about="time from the spawn of these until they were ready",
        read=_one(lambda report: report.counters.boot.sum_s),
    ),
    Metric(
        name="boot_longest",
        kind="gauge",
        unit="seconds",
        about="the longest of these times since the server was started",
        read=_one(lambda report: report.counters.boot.max_s),
    ),
    Metric(
        name="drains",
        kind="counter",
        about="workers gone that were asked to leave",
        read=_one(lambda report: report.counters.drain.count),
    ),
    Metric(
        name="drain",
        kind="counter",
        unit="seconds",
        about="time from asking these to leave until they were gone",
        read=_one(lambda report: report.counters.drain.sum_s),
    ),
    Metric(
        name="drain_longest",
        kind="gauge",
        unit="seconds",
        about="the longest of these times since the server was started",
        read=_one(lambda report: report.counters.drain.max_s),
    ),
    Metric(
        name="rollout",
        kind="gauge",
        about="1 for the phase that the rollout is in, 0 for the others",
        labels=("phase",),
        read=_phases,
    ),
    Metric(
        name="rollout_due",
        kind="gauge",
        about="workers still to be replaced",
        read=_one(lambda report: report.rollout.due),
    ),
    Metric(
        name="stalls",
        kind="counter",
        about="how often newcomers that failed have held replacing up",
        read=_one(lambda report: report.counters.stalls),
    ),
    Metric(
        name="reload_failed",
        kind="gauge",
        about="1 while the last reload is one that failed",
        read=_one(lambda report: int(bool(report.reload.failure))),
    ),
    Metric(
        name="generation",
        kind="gauge",
        about="the generation that new workers get; one more with each reload",
        read=_one(lambda report: report.server.generation),
    ),
    Metric(
        name="turn_longest",
        kind="gauge",
        unit="seconds",
        about="the longest turn of the master's loop",
        read=_one(lambda report: report.server.longest_turn_ms / 1000),
    ),
    Metric(
        name="turns_slow",
        kind="counter",
        about="turns of the master's loop that took too long",
        read=_one(lambda report: report.server.slow_turns),
    ),
    Metric(
        name="uptime",
        kind="gauge",
        unit="seconds",
        about="time since the server was started; reloads do not count",
        read=_one(lambda report: report.server.uptime_s),
    ),
)
"""Everything that is measured, in the order of the documentation."""
