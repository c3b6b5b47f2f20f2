"""
The status page: what one worker tells the master, in memory that both see.

Owns the layout of the page and nothing else. One writer (the worker), one reader (the master), no lock: every
field is one aligned 8-byte word, which the processor stores and loads whole, and no rule needs two fields
from the same instant. The page is the beginning of a file in memory, so a full disk cannot stop a heartbeat;
what comes after it in the file is for :mod:`airflow_arbiter.stacks`.
"""

from __future__ import annotations

import enum
import math
import mmap
import os
import tempfile
from dataclasses import dataclass

from airflow_arbiter.pool import Reason

_REASONS: tuple[Reason | None, ...] = (None, "age", "requests", "memory", "generation", "command")


class Field(enum.IntEnum):
    """The words of the page, by position. New ones come last: a reload may join two versions of us."""

    LISTENING_AT = 0
    READY_AT = 1
    BEAT_AT = 2
    DRAINING_AT = 3
    REQUESTS = 4
    IN_FLIGHT = 5
    RETIRE_REASON = 6
    RETIRE_AT = 7
    PROBE_AT = 8
    PROBE_CODE = 9


PAGE_BYTES = 4096
"""Size of the page; what comes after it in the file is not ours."""

_NEVER = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """
    One reading of a page.

    Moments are seconds of the monotonic clock, None for what has not happened.

    :param requests: requests answered since birth; probes do not count.
    :param in_flight: requests being answered now.
    :param probe_code: outcome of the last probe, as :func:`airflow_arbiter.health.describe` reads it.
    """

    listening_at: float | None
    ready_at: float | None
    beat_at: float | None
    draining_at: float | None
    requests: int
    in_flight: int
    retire_reason: Reason | None
    retire_at: float | None
    probe_at: float | None
    probe_code: int


class StatusPage:
    """
    The page itself. Made in the master before the fork, written in the child.

    :param fd: the memory file of a page that is there already; None makes a new one.
    :ivar fd: its memory file, which is not inherited over an exec.
    :raises OSError: when the machine has no memory for one more page, or the process no descriptor.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _memory_file() if fd is None else fd
        try:
            if fd is None:
                os.ftruncate(self.fd, PAGE_BYTES)
            self._map = mmap.mmap(self.fd, PAGE_BYTES)
        except BaseException:
            os.close(self.fd)
            raise
        # memoryview stores an item of a native format with one memcpy of 8 bytes, where struct.pack_into with
        # a byte-order prefix writes byte by byte and could be read half-way.
        self._words = memoryview(self._map).cast("d")
        if fd is not None:
            return
        for moment in (
            Field.LISTENING_AT,
            Field.READY_AT,
            Field.BEAT_AT,
            Field.DRAINING_AT,
            Field.RETIRE_AT,
            Field.PROBE_AT,
        ):
            self._words[moment] = _NEVER

    def write(self, field: Field, value: float) -> None:
        """Store one word: a moment in seconds, a count or a code."""
        self._words[field] = value

    def write_once(self, field: Field, moment: float) -> None:
        """Store a moment that only the first time counts."""
        if math.isnan(self._words[field]):
            self._words[field] = moment

    def retire(self, reason: Reason, now: float) -> None:
        """Ask to be replaced; the first reason stays."""
        if not self._words[Field.RETIRE_REASON]:
            self._words[Field.RETIRE_AT] = now
            self._words[Field.RETIRE_REASON] = _REASONS.index(reason)

    def read(self) -> WorkerStatus:
        """Take one reading."""
        return WorkerStatus(
            listening_at=self._moment(Field.LISTENING_AT),
            ready_at=self._moment(Field.READY_AT),
            beat_at=self._moment(Field.BEAT_AT),
            draining_at=self._moment(Field.DRAINING_AT),
            requests=int(self._words[Field.REQUESTS]),
            in_flight=int(self._words[Field.IN_FLIGHT]),
            retire_reason=dict(enumerate(_REASONS)).get(int(self._words[Field.RETIRE_REASON])),
            retire_at=self._moment(Field.RETIRE_AT),
            probe_at=self._moment(Field.PROBE_AT),
            probe_code=int(self._words[Field.PROBE_CODE]),
        )

    def close(self) -> None:
        """Give the memory back; the page cannot be used after."""
        self._words.release()
        self._map.close()
        os.close(self.fd)

    def _moment(self, field: Field) -> float | None:
        value: float = self._words[field]
        return None if math.isnan(value) else value


def _memory_file() -> int:
    """Open a file that is in memory, where the system has such, and has no name anywhere."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("airflow-arbiter")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
