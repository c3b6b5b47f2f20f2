"""
A new image without a configuration: in the preflight, a moment ago, it could be read, and now it cannot.

Owns what such a master does: it keeps the workers, tries again until it can, and ends everything when asked
to. It knows no settings, so that it can make nobody new. All signals are blocked since the exec.
"""

from __future__ import annotations

import contextlib
import logging.config
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

from gunicorn.arbiter import Arbiter

from airflow_arbiter import events, limits, logconfig, proctitle, systemd
from airflow_arbiter.handover import Handover
from airflow_arbiter.meeting import SocketFile

T = TypeVar("T")

RETRY_FIRST_S = 1.0
RETRY_LAST_S = 60.0
"""Pauses between two tries; they double."""

PATIENCE_S = 10.0
"""What foreign code gets to come to an end once everything is to end."""

QUICK_S = 2.0
"""What workers get that are to end at once."""

_ENDS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


def insist(make: Callable[[], T], handover: Handover) -> T:
    """
    Try until it succeeds; each new error is shown.

    :param make: what may raise anything.
    :raises SystemExit: when a signal to end has come, and everything has ended.
    """
    told = ""
    pause_s = RETRY_FIRST_S
    while True:
        try:
            with _hearing():
                return make()
        except (Exception, SystemExit) as error:
            if repr(error) != told and not signal.sigpending() & _ENDS:
                # Whatever log there was going to be, its configuration is not to be had.
                logging.config.dictConfig(logconfig.build(level="info", log_format="json"))
                events.publish_exception("reload.failed")
                proctitle.set_title(handover.title, state="reload failed")
            told = repr(error)
            _tell_systemd(handover, _state(handover, told))
        taken = signal.sigtimedwait({*_ENDS, signal.SIGHUP}, pause_s)  # who has mended it may say so
        pause_s = min(pause_s * 2, RETRY_LAST_S)
        if taken is not None and taken.si_signo in _ENDS:
            _tell_systemd(handover, "STOPPING=1")
            _end(handover, signal.Signals(taken.si_signo))
            sys.exit(0)
        if taken is not None:
            _tell_systemd(handover, f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def _tell_systemd(handover: Handover, message: str) -> None:
    """Tell it for an arbiter that is not there, unless another master speaks for the service."""
    if not handover.master_pid:
        systemd.tell(message)


def _state(handover: Handover, error: str) -> str:
    """Say that the service is there, and that its workers must not be ended because nobody looks at them."""
    status = f"{len(handover.workers)} workers serve; reload failed: {limits.one_line(error)}"
    return f"READY=1\nSTATUS={status}\nWATCHDOG_USEC=0"


@contextlib.contextmanager
def _hearing() -> Iterator[None]:
    """
    Let signals through while foreign code runs: it may hang, or start programs that inherit what is blocked.

    All of them are pending again afterwards. After one to end, that code gets a little time to come to an end
    by itself, because an arbiter stops better than we do.
    """
    noted: list[int] = []

    def note(sig: int, _frame: FrameType | None) -> None:
        noted.append(sig)
        if sig in _ENDS:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)

    def give_up(_sig: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    for sig in Arbiter.SIGNALS:
        if sig != signal.SIGCHLD:
            signal.signal(sig, note)
    old_alarm = signal.signal(signal.SIGALRM, give_up)
    old_mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_alarm)
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        for sig in noted:
            os.kill(os.getpid(), sig)


def _end(handover: Handover, sig: signal.Signals) -> None:
    """End all workers, and leave no file behind."""
    addresses = [_close(fd) for fd in handover.listeners]
    is_graceful = sig == signal.SIGTERM
    left = _ask({worker["pid"] for worker in handover.workers}, sig if is_graceful else signal.SIGQUIT)
    if is_graceful and (left := _wait(left, handover.graceful_timeout_s, is_hasty=True)):
        left = _ask(left, signal.SIGQUIT)
    _wait(_ask(_wait(left, QUICK_S), signal.SIGKILL), QUICK_S)
    if handover.owns_socket_files:
        for address in addresses:
            _remove(address)
    if handover.control is not None:
        with contextlib.suppress(Exception):  # as another version may have written it down
            SocketFile.read(handover.control).remove()
    if handover.fixed.get("pidfile"):
        _remove(handover.fixed["pidfile"] + (".2" if handover.master_pid else ""))


def _ask(pids: set[int], sig: signal.Signals) -> set[int]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)
    return pids


def _wait(pids: set[int], limit_s: float, *, is_hasty: bool = False) -> set[int]:
    """
    Reap workers until all are gone or the time is over.

    :param is_hasty: whether a further signal to end cuts it short.
    :return: those that are still there.
    """
    left = set(pids)
    deadline = time.monotonic() + limit_s
    while left and time.monotonic() < deadline:
        for pid in tuple(left):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            left.discard(pid)
        # A child's end wakes it; the time is for one that came before.
        taken = signal.sigtimedwait({signal.SIGCHLD, *(_ENDS if is_hasty else ())}, 0.1) if left else None
        if taken is not None and taken.si_signo in _ENDS:
            break
    return left


def _close(fd: int) -> str:
    """Close a listening socket; the result is its file, if it has one."""
    with socket.socket(fileno=fd) as listener:
        address = listener.getsockname()
    return address if isinstance(address, str) else ""


def _remove(path: str) -> None:
    """Remove a file that was ours, if there is one."""
    with contextlib.suppress(OSError):
        Path(path).unlink()
