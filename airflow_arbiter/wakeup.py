"""
What the master's loop sleeps on: signals, and the bytes by which workers tell that something has changed.
"""

from __future__ import annotations

import contextlib
import os
import selectors


class Wakeup:
    """
    A sleep that ends early when somebody has news.

    :ivar signal_fd: where the interpreter writes a byte for each signal, for :func:`signal.set_wakeup_fd`.
    :ivar notify_fd: where a worker writes a byte.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.signal_fd = self._pipe()
        self.notify_fd = self._pipe()

    def wait(self, timeout_s: float) -> None:
        """Sleep, for so many seconds at most, and forget what woke us: the facts are elsewhere."""
        for key, _ in self._selector.select(timeout_s):
            with contextlib.suppress(BlockingIOError):
                os.read(key.fd, 4096)

    def _pipe(self) -> int:
        """Open a pipe that never blocks and never survives an exec; its end to write to."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._selector.register(read, selectors.EVENT_READ)
        return write
