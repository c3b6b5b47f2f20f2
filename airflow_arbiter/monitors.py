"""
Everybody who is told of a server without asking: systemd, and collectors of metrics.

Owns who that is and when they hear. What they hear is for :mod:`airflow_arbiter.systemd` and
:mod:`airflow_arbiter.telemetry`, and all of it comes out of the report.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_arbiter import events
from airflow_arbiter.errors import IntegrationError
from airflow_arbiter.systemd import Notifier
from airflow_arbiter.telemetry import Outlet, Statsd, Telemetry


class Monitors:
    """
    Who watches one master.

    :param master: the arbiter.
    """

    def __init__(self, master: Any) -> None:
        self._master = master
        self._notifier = Notifier({})
        self._telemetry = Telemetry(told={})
        self._statsd: tuple[Any, ...] = ()

    @property
    def wake_in_s(self) -> float:
        """Seconds until somebody must hear of us."""
        return min(self._notifier.wake_in_s, self._telemetry.wake_in_s)

    @property
    def told(self) -> dict[str, int]:
        """The counters as they were last sent, for the next image of this process."""
        return self._telemetry.told

    def open(self, *, is_resumed: bool, told: Mapping[str, int]) -> None:
        """
        Find out who wants to hear. Call it before the loop runs: a host's name may have to be looked up.

        :param is_resumed: whether an earlier image of this process was heard.
        :param told: as that one's :attr:`told`.
        """
        self._notifier = Notifier(os.environ, is_new=self._master.cfg.daemon, is_resumed=is_resumed)
        self._open_telemetry(told)

    def reopen(self) -> None:
        """Take in what a new configuration says of statsd."""
        if self._statsd != self._statsd_settings():
            self._telemetry.close()
            self._open_telemetry(self._telemetry.told)

    def turn(self, *, is_last: bool) -> None:
        """
        Tell who wants to hear now.

        :param is_last: whether there will be nothing more to tell.
        """
        is_due = self._telemetry.is_due or (is_last and self._telemetry.is_on)
        if not (is_due or self._notifier.is_on):
            return
        report = self._master.steering.report()
        self._notifier.turn(report)
        if is_due:
            self._telemetry.send(report)
        if is_last:
            self._telemetry.close()  # more turns may follow, with nothing new in them

    def fall_silent(self, silence_s: float) -> None:
        """
        Prepare for the time in which the next image of this process loads.

        :param silence_s: how long that may take.
        """
        self._notifier.stretch(silence_s)

    def close(self) -> None:
        """Tell nobody any more: in a child."""
        self._notifier.close()
        self._telemetry.close()

    def _open_telemetry(self, told: Mapping[str, int]) -> None:
        self._statsd = self._statsd_settings()
        self._telemetry = Telemetry(list(self._outlets()), told=told)

    def _statsd_settings(self) -> tuple[Any, ...]:
        cfg = self._master.cfg
        return cfg.statsd_host, cfg.statsd_prefix, cfg.dogstatsd_tags

    def _outlets(self) -> Iterator[Outlet]:
        try:
            outlet = self._master.app.metrics()
            if outlet is not None:
                yield outlet
        except IntegrationError as error:
            events.publish("metrics.off", level="warning", because=str(error))
        address, prefix, tags = self._statsd
        if address:
            try:
                yield Statsd(address, prefix=prefix or "", tags=tags or "")
            except (OSError, ValueError) as error:  # a name that nobody knows, or that is none
                events.publish("metrics.off", level="warning", because=f"statsd_host {address}: {error}")
