"""
What the master keeps of its workers, beside what they tell of themselves.

Owns the facts that only the master knows. Decides nothing. Moments are seconds of the monotonic clock, None
for what has not happened.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from airflow_arbiter.memory import Samples
from airflow_arbiter.pool import DrainReason
from airflow_arbiter.status import StatusPage


@dataclass(slots=True, kw_only=True)
class Book:
    """
    The master's notes on one worker.

    :param generation: the generation it was spawned for.
    :param jitter: its luck in [0, 1), for the refresh interval.
    :param spawned_at: when it was made.
    :param draining_at: when the master asked it to leave.
    :param drain_reason: why.
    :param quit_at: when the master asked it to leave at once.
    :param dumped_at: when the master last asked it for its stacks.
    :param killed_at: when the master killed it.
    :param kill_cause: why.
    :param memory: what was sampled of its memory.
    """

    generation: int = 1
    jitter: float = 0.0
    spawned_at: float = field(default_factory=time.monotonic)
    draining_at: float | None = None
    drain_reason: DrainReason | None = None
    quit_at: float | None = None
    dumped_at: float | None = None
    killed_at: float | None = None
    kill_cause: str = ""
    memory: Samples = field(default_factory=Samples)


class Kept(Protocol):
    """
    A worker as the master holds it.

    :param age: gunicorn's spawn counter, its identity.
    :param tmp: gunicorn's heartbeat file.
    """

    pid: int
    age: int
    status: StatusPage
    tmp: Any
    book: Book


@dataclass(slots=True, kw_only=True)
class Adopted:
    """A worker that an earlier image of this master has made."""

    pid: int
    age: int
    status: StatusPage
    tmp: Any
    book: Book
