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
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import FrameType
from typing import TypeVar

from gunicorn.arbiter import Arbiter

from airflow_arbiter import events, limits, logconfig, proctitle, resume, systemd
from airflow_arbiter.alarm import LateError, alarm
from airflow_arbiter.handover import Handover
from airflow_arbiter.resume import ENDS, RETRY_FIRST_S, RETRY_LAST_S

T = TypeVar("T")

PATIENCE_S = 10.0
"""What foreign code gets to come to an end once everything is to end."""


def insist(make: Callable[[], T], handover: Handover) -> tuple[T, list[int]]:
    """
    Try until it succeeds; each new error is shown.

    :param make: what may raise anything, and hang.
    :return: what it has made, and the signals that have come meanwhile, for the arbiter, in order.
    :raises SystemExit: when a signal to end has come, and everything has ended.
    """
    told = ""
    pause_s = RETRY_FIRST_S
    noted: list[int] = []
    while True:
        try:
            with _hearing(noted), alarm(handover.boot_timeout_s):
                return make(), noted
        except (Exception, SystemExit, LateError) as error:
            if repr(error) != told and not signal.sigpending() & ENDS:
                # Whatever log there was going to be, its configuration is not to be had.
                logging.config.dictConfig(logconfig.build(level="info", log_format="json"))
                events.publish_exception("reload.failed")
                proctitle.set_title(handover.title, state="reload failed")
            told = repr(error)
            _tell_systemd(handover, _state(handover, told))
        taken = signal.sigtimedwait({*ENDS, signal.SIGHUP}, pause_s)  # who has mended it may say so
        pause_s = min(pause_s * 2, RETRY_LAST_S)
        if taken is not None and taken.si_signo in ENDS:
            _tell_systemd(handover, "STOPPING=1")
            resume.end(asdict(handover), signal.Signals(taken.si_signo))
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
def _hearing(noted: list[int]) -> Iterator[None]:
    """
    Let signals through while foreign code runs: it may hang, or start programs that inherit what is blocked.

    Those to end, and where it fails SIGHUP, are pending again afterwards. After one to end, that code gets a
    little time to come to an end by itself, because an arbiter stops better than we do.

    :param noted: gets the others, in order.
    """
    again: list[int] = []

    def note(sig: int, _frame: FrameType | None) -> None:
        (again if sig in ENDS else noted).append(sig)
        if sig in ENDS:
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
    except BaseException:
        if signal.SIGHUP in noted:
            again.append(signal.SIGHUP)
            noted[:] = [sig for sig in noted if sig != signal.SIGHUP]
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_alarm)
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        for sig in again:
            os.kill(os.getpid(), sig)
