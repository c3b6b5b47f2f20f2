"""
How the numbers of a server reach a collector of metrics.

Owns what is sent when, and the client of statsd that gunicorn's settings ask for; Airflow's own metrics are
for :mod:`airflow_arbiter.provider`. Never waits, and what goes wrong costs numbers, never a turn.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from airflow_arbiter import events
from airflow_arbiter.lookup import Address
from airflow_arbiter.metrics import METRICS, Kind
from airflow_arbiter.report import Report

PERIOD_S = 10.0
"""Time between two sendings: what a statsd server and its relatives gather in one value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A value to be sent; a counter's is what has come since it was last sent."""

    name: str
    kind: Kind
    value: float


def samples(report: Report, told: Mapping[str, int]) -> tuple[tuple[Sample, ...], dict[str, int]]:
    """
    Work out what is to be sent: of two masters, both have done things, and one says how the service is.

    :param told: the counters as they were when they were last sent, by name.
    :return: what to send, and the counters as they are now.
    """
    found: list[Sample] = []
    totals: dict[str, int] = {}
    for metric in METRICS:
        for labels, exact in metric.read(report):
            if exact is None:
                continue
            name = metric.statsd(labels)
            value = exact * 1000 if metric.unit == "seconds" else exact
            if metric.kind == "gauge":
                if report.server.speaker == "self":
                    found.append(Sample(name=name, kind="gauge", value=value))
                continue
            # Whole milliseconds: there are servers that cut fractions off. What is told of a total adds up.
            total, before = round(value), told.get(name, 0)
            totals[name] = total
            if grown := total - before if total >= before else total:
                found.append(Sample(name=name, kind="counter", value=grown))
    return tuple(found), totals


class Outlet(Protocol):
    """Where samples go: a client of statsd, or of something like it."""

    def incr(self, stat: str, count: int) -> object: ...

    def gauge(self, stat: str, value: float) -> object: ...

    def close(self) -> object: ...


class Statsd:
    """
    A client of statsd that never waits.

    Source: gunicorn's settings and ``gunicorn.instrument.statsd.Statsd``, whose form it keeps.

    :param address: where the server is.
    :param prefix: put before each name.
    :param tags: put behind each value, as Datadog has them.
    """

    def __init__(self, address: Address, *, prefix: str = "", tags: str = "") -> None:
        self._prefix = re.sub(r"^(.+[^.]+)\.*$", "\\g<1>.", prefix)
        self._suffix = f"|#{tags}" if tags else ""
        self._address = address.name
        self._socket = socket.socket(address.family, socket.SOCK_DGRAM)
        self._socket.settimeout(0)

    def incr(self, stat: str, count: int) -> None:
        """Add to a counter."""
        self._send(f"{stat}:{count}|c")

    def gauge(self, stat: str, value: float) -> None:
        """Set a gauge."""
        self._send(f"{stat}:{value:.15g}|g")

    def _send(self, text: str) -> None:
        # Nobody there, or somebody who does not read: the number is lost, as is the way of statsd.
        with contextlib.suppress(OSError):
            self._socket.sendto(f"{self._prefix}{text}{self._suffix}".encode(), self._address)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


class Telemetry:
    """
    Sends samples to all outlets, again and again.

    :param outlets: where they go.
    :param told: the counters as they were when they were last sent, by an earlier image of this process.
    :ivar told: the same, as it is now.
    """

    def __init__(self, outlets: Sequence[Outlet] = (), *, told: Mapping[str, int]) -> None:
        self.told = dict(told)
        self._outlets = tuple(outlets)
        self._next_at = time.monotonic()
        self._failure = ""

    @property
    def wake_in_s(self) -> float:
        """Seconds until it is time to send."""
        return max(0.0, self._next_at - time.monotonic()) if self._outlets else math.inf

    @property
    def is_on(self) -> bool:
        """Whether there is anybody to send to."""
        return bool(self._outlets)

    def add(self, outlet: Outlet) -> None:
        """Send there as well from now on."""
        self._outlets = (*self._outlets, outlet)

    @property
    def is_due(self) -> bool:
        """Whether it is time to send."""
        return self.wake_in_s == 0.0

    def send(self, report: Report) -> None:
        """Send everything there is."""
        self._next_at = time.monotonic() + PERIOD_S
        found, self.told = samples(report, self.told)
        for outlet in self._outlets:
            try:
                for sample in found:
                    if sample.kind == "counter":
                        outlet.incr(sample.name, int(sample.value))
                    else:
                        outlet.gauge(sample.name, sample.value)
            except Exception as error:
                # A client of the operator's, or of Airflow's; told once, because it comes every few seconds.
                if repr(error) != self._failure:
                    self._failure = repr(error)
                    events.publish_exception("metrics.failed", level="warning")

    def close(self) -> None:
        """Send nothing any more: in a child, or because there are new outlets."""
        for outlet in self._outlets:
            with contextlib.suppress(Exception):
                outlet.close()
        self._outlets = ()
