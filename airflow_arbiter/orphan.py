"""
What ends a worker whose master has died, also one that does not notice.

Owns the kernel's signal for that, and what it does. A worker that boots has served nobody, and goes at once.
One that serves notices by itself, drains, and has a limit for it; only where it notices nothing, because its
event loop is blocked, the kernel's signal is what ends it. Otherwise it would keep the port, and clients that
connect to it would never be answered. A master that becomes its own new image is the same process still.

Source: ``PR_SET_PDEATHSIG`` in prctl(2), Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

GRACE_S = 40
"""
What a worker gets to notice that its master has died, in seconds, and the number of a real-time signal, which
nobody else uses: see :func:`outlive`.
"""


def die_with(ppid: int) -> None:
    """
    Let the kernel kill this process when its parent dies.

    A change of the user makes the kernel forget it.

    :param ppid: the parent, which may be gone already.
    :raises SystemExit: if it is.
    """
    _tell_kernel(signal.SIGKILL)
    if os.getppid() != ppid:
        sys.exit(0)


def outlive() -> None:
    """
    From now on, let this process live on when its parent dies: for :data:`GRACE_S`, unless
    :func:`leave_within` says something else meanwhile.

    No Python runs for it: what is blocked may be blocked in C code. The handler is the C library's ``alarm``,
    whose argument, the number of the signal, are the seconds until SIGALRM, which ends a process.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(GRACE_S, ctypes.cast(libc.alarm, ctypes.c_void_p))
    _tell_kernel(GRACE_S)


def leave_within(limit_s: float) -> None:
    """Have this process ended by the kernel, should it still be there then."""
    if sys.platform == "linux":
        signal.signal(GRACE_S, signal.SIG_IGN)  # it is on its way, and would set the same timer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit_s)


def _tell_kernel(sig: int) -> None:
    """Name the signal for the death of the parent, where there is one."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(sig), *[ctypes.c_ulong(0)] * 3)
