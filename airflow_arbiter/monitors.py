"""
Everybody who is told of a server without asking: systemd, and collectors of metrics.

Owns who that is and when they hear. What they hear is for :mod:`airflow_arbiter.systemd` and
:mod:`airflow_arbiter.telemetry`, and all of it comes out of the report.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_arbiter import events, lookup
from airflow_arbiter.errors import IntegrationError
from airflow_arbiter.lookup import Address, Lookup
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
        self._lookup: Lookup | None = None

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
        Find out who wants to hear. Never waits: a collector whose name is looked up hears when it is known.

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
        self._look_up(is_last=is_last)
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
        if self._lookup is not None:
            os.close(self._lookup.fd)  # ending it is for the master

    def _open_telemetry(self, told: Mapping[str, int]) -> None:
        self._end_lookup()
        self._statsd = self._statsd_settings()
        self._telemetry = Telemetry(list(self._outlets()), told=told)
        address = self._statsd[0]
        if isinstance(address, str) and address:
            self._add_statsd(Address(socket.AF_UNIX, address))
        elif address and (found := lookup.known(*address)):
            self._add_statsd(found)
        elif address:
            try:
                self._lookup = Lookup(*address)
                self._master.wakeup.watch(self._lookup.fd)
            except OSError as error:
                self._tell_without_statsd(error)

    def _look_up(self, *, is_last: bool) -> None:
        """Take the address of the collector whose name is looked up, once it is there."""
        if self._lookup is None:
            return
        try:
            found = self._lookup.collect()
        except OSError as error:
            self._end_lookup()
            self._tell_without_statsd(error)
            return
        if found is not None:
            self._end_lookup()
            self._add_statsd(found)
        elif is_last:
            self._end_lookup()

    def _end_lookup(self) -> None:
        if self._lookup is not None:
            self._master.wakeup.forget(self._lookup.fd)
            self._lookup.close()
            self._lookup = None

    def _add_statsd(self, address: Address) -> None:
        _, prefix, tags = self._statsd
        try:
            self._telemetry.add(Statsd(address, prefix=prefix or "", tags=tags or ""))
        except OSError as error:  # no descriptor
            self._tell_without_statsd(error)

    def _tell_without_statsd(self, error: OSError) -> None:
        events.publish("metrics.off", level="warning", because=f"statsd_host {self._statsd[0]}: {error}")

    def _statsd_settings(self) -> tuple[Any, ...]:
        cfg = self._master.cfg
        return cfg.statsd_host, cfg.statsd_prefix, cfg.dogstatsd_tags

    def _outlets(self) -> Iterator[Outlet]:
        try:
            outlet = self._master.app.served.metrics()
            if outlet is not None:
                yield outlet
        except IntegrationError as error:
            events.publish("metrics.off", level="warning", because=str(error))
