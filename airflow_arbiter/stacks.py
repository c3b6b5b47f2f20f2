"""
What a worker was doing when it had to be killed: the stacks of its threads, and the requests that it held.

Owns how both get from a process whose event loop may be blocked to the master, who logs them: through the
worker's memory file, after the status words. The stacks are written by the interpreter's fault handler, which
needs no Python to run, so that they come out of a thread that never returns from C. The requests need the
main thread to run Python once, as a loop that sleeps or computes does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from types import FrameType

from airflow_arbiter.status import PAGE_BYTES

SIGNAL = signal.SIGUSR2
"""Asks a worker for its stacks. Unhandled, it ends a process: the handler is set before it can come."""

HELD_AT = PAGE_BYTES
"""Where the requests are, in bytes: after the page of status words."""

STACKS_AT = 16 * PAGE_BYTES
"""Where the stacks are, after the requests; they may take all that they want."""

STACKS_LIMIT_BYTES = 256 * 1024
"""What of the stacks goes to the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRequest:
    """
    A request that is not answered yet.

    :param path: as it was sent, percent-encoded.
    :param age_s: seconds since it reached the app.
    """

    method: str
    path: str
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    What a worker told.

    :param stacks: one thread after the other, the newest call first; empty if it told nothing.
    :param requests: None if its main thread did not run any more.
    """

    stacks: str
    requests: tuple[HeldRequest, ...] | None


def answer_with(fd: int, held: Callable[[], Sequence[HeldRequest]]) -> None:
    """
    Answer from now on when asked. Runs in the worker.

    :param fd: the worker's memory file.
    :param held: tells the requests that are not answered yet.
    """

    def write_held(_sig: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(Exception):  # it runs in the middle of the app
            # The oldest first, as many as there is room for.
            requests = sorted(held(), key=lambda request: -request.age_s)
            while len(text := json.dumps([asdict(request) for request in requests]).encode()) > _ROOM_BYTES:
                del requests[len(requests) // 2 :]
            os.pwrite(fd, text + b"\0", HELD_AT)

    # The fault handler writes at the file's position. Who asks without clear(), as an operator or a signal to
    # the whole process group, must not make it write over the status words.
    os.lseek(fd, STACKS_AT, os.SEEK_SET)
    faulthandler.unregister(SIGNAL)  # registered twice, it would leave the second handler in its place
    signal.signal(SIGNAL, write_held)
    faulthandler.register(SIGNAL, file=fd, all_threads=True, chain=True)


_ROOM_BYTES = STACKS_AT - HELD_AT - 1


def answer_to_the_end(fd: int) -> None:
    """
    Answer with stacks alone from now on, also while the interpreter is taken down.

    A handler in Python crashes a process that is asked in the last moments of its interpreter.
    """
    faulthandler.unregister(SIGNAL)
    signal.signal(SIGNAL, signal.SIG_IGN)  # what the fault handler leaves when it is taken down itself
    faulthandler.register(SIGNAL, file=fd, all_threads=True, chain=False)


def clear(fd: int) -> None:
    """Forget what was told before. Runs in the master, before it asks."""
    os.ftruncate(fd, HELD_AT)
    os.ftruncate(fd, STACKS_AT)
    # The worker's descriptor is a copy of this one, and shares its position.
    os.lseek(fd, STACKS_AT, os.SEEK_SET)


def read(fd: int) -> Answer:
    """
    Take what was told since it was asked.

    :raises OSError: when the file cannot be read.
    """
    held, _, _ = os.pread(fd, _ROOM_BYTES + 1, HELD_AT).partition(b"\0")
    stacks = os.pread(fd, STACKS_LIMIT_BYTES, STACKS_AT)
    return Answer(stacks=stacks.decode(errors="replace").strip(), requests=_parse(held))


def _parse(held: bytes) -> tuple[HeldRequest, ...] | None:
    """Read requests, as a worker of another version of this package may have written them."""
    names = [item.name for item in fields(HeldRequest)]
    try:
        return tuple(HeldRequest(**{name: one[name] for name in names}) for one in json.loads(held))
    except (ValueError, TypeError, KeyError):
        return None
