"""
Equal pages of the master and its workers, merged again by the kernel (KSM).

Owns the asking. Workers begin with the master's pages, and Python makes private copies of them by counting
references; once a request is over, most counts are as before, and the copies equal again. The kernel's daemon
finds such pages and keeps one. Children inherit the wish.

Source: ``PR_SET_MEMORY_MERGE`` in prctl(2), Linux 6.4; the kernel's ``Documentation/admin-guide/mm/ksm.rst``.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from airflow_arbiter.pool import Event

_PR_SET_MEMORY_MERGE = 67
_PR_GET_MEMORY_MERGE = 68

_DAEMON = Path("/sys/kernel/mm/ksm/run")
_RUNS = "1"


def ask(*, wanted: bool) -> tuple[Event, ...]:
    """
    Ask the kernel to merge this process's equal pages, or no longer to.

    :return: what keeps it from happening, if anything does.
    """
    try:
        if wanted or _prctl(_PR_GET_MEMORY_MERGE):
            _prctl(_PR_SET_MEMORY_MERGE, int(wanted))
    except (OSError, AttributeError) as error:
        return (_unavailable(f"the kernel refuses: {error}"),) if wanted else ()
    if wanted and not _daemon_runs():
        return (_unavailable(f"the kernel's daemon does not run: {_DAEMON} is not {_RUNS}"),)
    return ()


def _prctl(option: int, value: int = 0) -> int:
    """
    :raises OSError: where the kernel does not know the option.
    :raises AttributeError: where there is no such call.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _daemon_runs() -> bool:
    try:
        return _DAEMON.read_text().strip() == _RUNS
    except OSError:
        return False


def _unavailable(because: str) -> Event:
    return Event(name="memory_merge.unavailable", level="warning", values=(("because", because),))
