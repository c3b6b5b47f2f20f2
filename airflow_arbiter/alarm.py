"""
A limit in time for foreign code that runs in the main thread, and may hang there.

Owns the process's one real-time timer while such code runs.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

PAUSE_S = 0.5
"""After its limit, what goes on all the same is broken off again and again."""


class LateError(BaseException):
    """
    The time is over; raised in whatever the main thread does.

    No Exception, so that apps let it through, and no SystemExit, so that an event loop survives it.
    """


@contextlib.contextmanager
def alarm(limit_s: float) -> Iterator[None]:
    """
    Raise :class:`LateError` when the time is over.

    A signal, because the app may block the event loop, and no timeout of asyncio's would come then. What
    blocks in an extension module that does not let signals through, it cannot break off. May be nested; the
    outer one is then late by what the inner one takes.
    """
    is_over = False

    def ring(_sig: int, _frame: FrameType | None) -> None:
        if not is_over:
            raise LateError(f"not done within {limit_s:g} s")

    began_at = time.monotonic()
    old_handler = signal.signal(signal.SIGALRM, ring)
    old_mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})  # a new image blocks all
    others_s, others_pause_s = signal.setitimer(signal.ITIMER_REAL, limit_s, PAUSE_S)
    try:
        yield
    finally:
        is_over = True
        # A process has one such timer, and an errand ends itself by it.
        left_s = max(0.01, others_s - (time.monotonic() - began_at)) if others_s else 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        signal.setitimer(signal.ITIMER_REAL, left_s, others_pause_s)
