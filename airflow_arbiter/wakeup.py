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

    :param notify_fds: both ends of a pipe that workers have already; None makes a new one.
    :ivar signal_fd: where the interpreter writes a byte for each signal, for :func:`signal.set_wakeup_fd`.
    :ivar notify_fds: the ends to read and to write of the pipe into which a worker writes a byte.
    """

    def __init__(self, notify_fds: tuple[int, int] | None = None) -> None:
        self._selector = selectors.DefaultSelector()
        self._pipes: set[int] = set()
        _, self.signal_fd = self._listen(_pipe())
        self.notify_fds = self._listen(notify_fds or _pipe())

    def wait(self, timeout_s: float) -> None:
        """Sleep, for so many seconds at most, and forget what woke us: the facts are elsewhere."""
        for key, _ in self._selector.select(timeout_s):
            if key.fd in self._pipes:
                with contextlib.suppress(BlockingIOError):
                    os.read(key.fd, 4096)

    def watch(self, fd: int, *, to_write: bool = False) -> None:
        """
        Let something to read there end the sleep too; reading it is for somebody else.

        :param to_write: room to write instead.
        """
        event = selectors.EVENT_WRITE if to_write else selectors.EVENT_READ
        known = self._selector.get_map().get(fd)
        if known is None:
            self._selector.register(fd, event)
        elif known.events != event:
            self._selector.modify(fd, event)

    def forget(self, fd: int) -> None:
        """Watch it no longer, if it was."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def _listen(self, pipe: tuple[int, int]) -> tuple[int, int]:
        """Wake at every byte of a pipe, whose bytes say nothing more."""
        self._selector.register(pipe[0], selectors.EVENT_READ)
        self._pipes.add(pipe[0])
        return pipe


def _pipe() -> tuple[int, int]:
    """Open a pipe that never blocks and does not survive an exec."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write
