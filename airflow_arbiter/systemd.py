"""
What systemd is told of us: ready, reloading, stopping, alive, and the pool in words.

Owns the protocol of ``sd_notify(3)``: what there is to tell is worked out from the report and from what was
told before, without a look at anything else; the sending is a small edge that never waits and never raises.
Only the master talks to systemd; its children have no part in it.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from airflow_arbiter import events, limits
from airflow_arbiter.report import Report

_SOCKET = "NOTIFY_SOCKET"

_RETRIES = 10
"""How often a ping that could not be sent is tried again before systemd would miss it."""


# -- what there is to tell
# -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """
    What systemd knows of us.

    :param is_new: we are not the process that it takes for the service's main one.
    :param is_ready: we serve.
    :param is_reloading: we take in new code.
    :param reloads: how many reloads had been asked for when that was last told.
    :param is_stopping: we are to end.
    :param is_over: another master speaks from now on.
    :param status: the pool in words.
    """

    is_new: bool = False
    is_ready: bool = False
    is_reloading: bool = False
    reloads: int = 0
    is_stopping: bool = False
    is_over: bool = False
    status: str = ""


def news(report: Report, told: Told, *, now_us: int) -> tuple[tuple[str, ...], Told]:
    """
    Tell what systemd does not know yet.

    :param now_us: microseconds of the monotonic clock.
    :return: messages, each of one or more lines, and what it knows once they have been sent.
    """
    server = report.server
    if told.is_over:
        return (), told
    if server.speaker == "predecessor":
        return (), replace(told, is_new=True)  # ours would be refused
    messages, now_told = (_last if server.stopping else _changes)(report, told, now_us)
    status = words(report)
    if status != told.status:
        messages = [*messages[:-1], "\n".join([*messages[-1:], f"STATUS={status}"])]
    if messages and told.is_new:
        messages[0] = f"MAINPID={server.pid}\n{messages[0]}"
        now_told = replace(now_told, is_new=False)
    return tuple(messages), replace(now_told, status=status)


def _changes(report: Report, told: Told, now_us: int) -> tuple[list[str], Told]:
    """Ready and reloading, in the order in which it happened."""
    messages = []
    is_ready, is_reloading = told.is_ready, told.is_reloading
    is_checking, asked = report.reload.state == "checking", report.reload.asked
    if not is_ready and _serves(report):
        is_ready = True
        messages.append("READY=1")
    # Once more where somebody asks during a reload: systemd wants a time after it has asked. And where it is
    # over within one turn.
    if is_ready and ((is_checking and not is_reloading) or (told.is_ready and asked > told.reloads)):
        is_reloading = True
        messages.append(f"RELOADING=1\nMONOTONIC_USEC={now_us}")
    if is_reloading and not is_checking:
        is_reloading = False
        messages.append("READY=1")
    return messages, replace(told, is_ready=is_ready, is_reloading=is_reloading, reloads=asked)


def _last(report: Report, told: Told, _now_us: int) -> tuple[list[str], Told]:
    """The end of the service, or only of this master."""
    is_handed_over = report.server.speaker == "successor"
    if is_handed_over and not report.workers:
        return [f"MAINPID={report.server.successor_pid}\nWATCHDOG=1"], replace(told, is_over=True)
    if is_handed_over or told.is_stopping:
        return [], told
    return ["STOPPING=1"], replace(told, is_stopping=True)


def _serves(report: Report) -> bool:
    """Whether a worker has proved itself; the first ones of an app that is not healthy only listen."""
    return not report.pool.target or any(worker.state in ("ready", "available") for worker in report.workers)


def words(report: Report) -> str:
    """Say in one line how the server is, without anything that changes all the time."""
    pool, rollout = report.pool, report.rollout
    if report.server.stopping:
        is_handed_over = report.server.speaker == "successor"
        end = f"Handing over to {report.server.successor_pid}" if is_handed_over else "Stopping"
        return f"{end}; workers left: {pool.live}"
    parts = [f"{pool.available} of {pool.target} workers available"]
    parts += [
        f"{count} {what}" for count, what in ((pool.booting, "booting"), (pool.draining, "draining")) if count
    ]
    match rollout.phase:
        case "progressing":
            parts.append(f"replacing: {rollout.replaced} of {rollout.replaced + rollout.due}")
        case "stalled":
            parts.append(f"replacing is held up: {limits.one_line(rollout.because)}")
        case "paused":
            parts.append("replacing is paused")
    if report.reload.state == "checking":
        parts.append("trying new code")
    elif report.reload.failure:
        parts.append(f"reload failed: {limits.one_line(report.reload.failure)}")
    return "; ".join(parts)


# -- the edge
# -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """
    Keep gunicorn from telling systemd that we are ready: it does so before it makes the first worker.

    Source: ``gunicorn.arbiter.Arbiter.start``; without this variable there is no systemd to be told.
    """
    address = os.environ.pop(_SOCKET, None)
    try:
        yield
    finally:
        if address is not None:
            os.environ[_SOCKET] = address


class Notifier:
    """
    Tells systemd how we are, where we are its service.

    :param environ: where systemd has put its wishes.
    :param is_new: whether systemd may take another process for the service's main one.
    :param is_resumed: whether an earlier image has told it things.
    """

    def __init__(self, environ: Mapping[str, str], *, is_new: bool = False, is_resumed: bool = False) -> None:
        self._address = _address(environ.get(_SOCKET, ""))
        self._watchdog_us = _watchdog_us(environ) if self._address else 0
        self._is_stretched = is_resumed
        self._ping_at = time.monotonic()
        self._told = Told(is_new=is_new)
        self._failure = ""
        self._socket: socket.socket | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._address)

    @property
    def wake_in_s(self) -> float:
        """Seconds until systemd must hear of us again."""
        return max(0.0, self._ping_at - time.monotonic()) if self._watchdog_us else math.inf

    def turn(self, report: Report) -> None:
        """Tell what is new, and that we are alive."""
        if not self.is_on:
            return
        messages, told = news(report, self._told, now_us=time.monotonic_ns() // 1000)
        if all(self.send(message) for message in messages):  # else the next turn tells all of it again
            self._told = told
        if not (report.server.speaker == "predecessor" or told.is_over):
            self._ping()

    def _ping(self) -> None:
        now = time.monotonic()
        if not self._watchdog_us or now < self._ping_at:
            return
        usual = f"WATCHDOG_USEC={self._watchdog_us}\n" if self._is_stretched else ""
        is_sent = self.send(f"{usual}WATCHDOG=1")
        self._is_stretched = self._is_stretched and not is_sent
        self._ping_at = now + self._watchdog_us / 1e6 / (2 if is_sent else 2 * _RETRIES)

    def stretch(self, silence_s: float) -> None:
        """
        Let systemd know how long it may hear nothing, because the next image of this process has to load.

        :param silence_s: seconds; after that, its usual patience begins.
        """
        if self._watchdog_us:
            self._is_stretched = True
            self.send(f"WATCHDOG_USEC={self._watchdog_us + int(silence_s * 1e6)}")
            self._ping_at = time.monotonic()

    def close(self) -> None:
        """Say nothing any more: in a child, or at the end."""
        self._address = b""
        self._watchdog_us = 0
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, message: str) -> bool:
        """Send one message, and say whether it has gone."""
        try:
            # One for all of them: a process without free descriptors can still say that it is alive.
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.settimeout(0)
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            if not isinstance(error, BlockingIOError) and str(error) != self._failure:
                self._failure = str(error)
                events.publish("systemd.unreachable", level="warning", error=self._failure)
            return False
        self._failure = ""
        return True


def tell(message: str) -> None:
    """
    Tell systemd one thing, where there is no arbiter to tell it.

    :param message: one or more lines.
    """
    notifier = Notifier(os.environ)
    if notifier.is_on:
        notifier.send(message)
    notifier.close()


def _address(name: str) -> bytes:
    """A socket's address from its name in the environment; empty for what is no Unix socket."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else b""


def _watchdog_us(environ: Mapping[str, str]) -> int:
    """
    How often systemd wants to hear of us, in microseconds; 0 never.

    Source: ``sd_watchdog_enabled(3)``. The process that is named may also be the master that has started us
    beside itself.
    """
    named = environ.get("WATCHDOG_PID", "")
    if named not in ("", str(os.getpid())) and "GUNICORN_PID" not in environ:
        return 0
    try:
        return max(0, int(environ.get("WATCHDOG_USEC", "")))
    except ValueError:
        return 0
