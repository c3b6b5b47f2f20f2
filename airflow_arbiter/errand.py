"""
Errands: short-lived child processes that find out for the master what it must not wait for.

Owns their fork, their end and their one message. What they do is their callers' business.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence

_GRACE_S = 5
"""After its limit and this, an errand ends by itself, should the master be gone that would end it."""


class Errand:
    """
    A child process that tells one message, of one line.

    It leads a process group, so that children of its own end with it. It may exec; all descriptors
    but its pipe and the standard streams are then closed, as ever.

    :param run: what to do, given the descriptor to write the message to. Runs in the child.
    :param limit_s: seconds after which it is too late.
    :param keep: descriptors that it needs. All others are closed: a listening socket, above all, must not
        outlive the server in something that hangs.
    :ivar ends_at: when it is too late, in seconds of the monotonic clock.
    :raises OSError: when no process or pipe can be had.
    """

    def __init__(self, run: Callable[[int], None], *, limit_s: float, keep: Sequence[int] = ()) -> None:
        self.fd, write_fd = os.pipe()
        self._message = b""
        self.ends_at = time.monotonic() + limit_s
        # As around the fork of a worker: no signal may go into a copy of the master's queue.
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _live(run, write_fd, limit_s=limit_s, keep={write_fd, *keep})
            with contextlib.suppress(OSError):
                os.setpgid(self.pid, self.pid)  # here and in the child: who comes first is luck
        except BaseException:
            os.close(self.fd)
            raise
        finally:
            os.close(write_fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        os.set_blocking(self.fd, False)

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.ends_at

    def collect(self) -> bytes | None:
        """
        Take what it tells.

        :return: the whole message once it has ended, None before. Empty: it died without a word.
        """
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, 65536):
                self._message += data
            return self._message
        # Not only by the end of the file: a process that it has left behind may hold the pipe open.
        return self._message if self._message.endswith(b"\n") else None

    def close(self) -> None:
        """End it and its children, if they live; its exit is for the master to reap."""
        with contextlib.suppress(OSError):  # gone, or another user's by now
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self.fd)


def _live(run: Callable[[int], None], write_fd: int, *, limit_s: float, keep: set[int]) -> None:
    """Live the errand's life. Runs in the child, and never returns."""
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)  # inherited: it would wake the master for our signals
        for sig in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(sig, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.alarm(int(limit_s) + _GRACE_S)
        first = 3
        for fd in sorted(keep):
            os.closerange(first, fd)
            first = fd + 1
        os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        run(write_fd)
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="replace"))  # sys.stderr may be a file of the app's
        os._exit(1)
    os._exit(0)
