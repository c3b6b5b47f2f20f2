"""
The values that the planner reads and writes: what is seen of the pool, and what is to be done about it.

Owns the words (target, surge, available, due, drain, kill, generation) as frozen facts. Knows nobody but the
operator's :mod:`airflow_arbiter.orders`, and holds no rule; the rules are in :mod:`airflow_arbiter.rollout`.
Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from airflow_arbiter.orders import Orders

Reason = Literal["age", "requests", "memory", "generation", "command"]
DrainReason = Reason | Literal["scale", "surplus", "stop"]
Phase = Literal["idle", "progressing", "stalled", "paused"]
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPolicy:
    """
    What the operator wants of the pool.

    :param surge: extra live processes allowed while replacing; 0 turns replacement off.
    :param refresh_interval_s: seconds of service after which a worker is due; 0 turns that reason off.
    :param refresh_jitter: fraction of the interval that a worker's own luck may add.
    :param boot_timeout_s: seconds from spawn until the worker must serve.
    :param min_ready_s: seconds ready before a worker counts as available.
    :param heartbeat_timeout_s: seconds of silence after which a serving worker is hung; 0 never.
    :param drain_timeout_s: seconds from the request to leave until the worker must be gone.
    :param memory_limit_bytes: private memory at which a worker is due; 0 turns that reason off.
    :param min_lifetime_s: seconds ready before a worker may be replaced for its memory.
    :raises ValueError: for a value out of its range.
    """

    surge: int = 1
    refresh_interval_s: float = 0.0
    refresh_jitter: float = 0.1
    boot_timeout_s: float = 120.0
    min_ready_s: float = 0.0
    heartbeat_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    memory_limit_bytes: int = 0
    min_lifetime_s: float = 60.0

    def __post_init__(self) -> None:
        for name in (
            "surge",
            "refresh_interval_s",
            "refresh_jitter",
            "min_ready_s",
            "heartbeat_timeout_s",
            "drain_timeout_s",
            "memory_limit_bytes",
            "min_lifetime_s",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number, 0 or more, not {getattr(self, name)!r}")
        if not 0 < self.boot_timeout_s < math.inf:
            raise ValueError(f"boot_timeout_s must be a finite number above 0, not {self.boot_timeout_s!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """
    The facts about one worker process that exists.

    :param age: gunicorn's spawn counter, which is the FIFO order and the worker's identity (a pid comes
        again).
    :param jitter: luck in [0, 1), drawn at spawn, that spreads the refresh interval.
    :param listening_at: since when it takes connections.
    :param ready_at: since when it has proved itself.
    :param beat_at: last heartbeat.
    :param retire_reason: why the worker itself wants to be replaced.
    :param draining_at: since when it was asked to leave.
    :param drain_reason: why we asked it.
    :param quit_at: when it was asked to leave at once.
    :param dumped_at: when it was last asked for its stacks.
    :param killed_at: when SIGKILL was sent.
    :param probed_at: when its last health check ended.
    :param trouble: how that went, in words; empty before the first.
    :param requests: requests that it has answered.
    :param in_flight: requests that it is answering.
    :param private_bytes: memory that nobody shares with it (USS), as last sampled.
    :param samples_over: samples in a row, up to the last, that were above the limit.
    :param over_since: when the first of these was taken.
    """

    pid: int
    age: int
    generation: int
    spawned_at: float
    jitter: float = 0.0
    listening_at: float | None = None
    ready_at: float | None = None
    beat_at: float | None = None
    retire_reason: Reason | None = None
    draining_at: float | None = None
    drain_reason: DrainReason | None = None
    quit_at: float | None = None
    dumped_at: float | None = None
    killed_at: float | None = None
    probed_at: float | None = None
    trouble: str = ""
    requests: int = 0
    in_flight: int = 0
    private_bytes: int | None = None
    samples_over: int = 0
    over_since: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """
    A worker that is gone, as it was when last seen.

    :param cause: why: ``exit code 1``, ``signal SIGKILL``.
    :param exit_code: as :mod:`subprocess` has it.
    """

    worker: WorkerView
    cause: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """
    A wait that grows with every failed attempt.

    :param strikes: failed attempts in a row.
    :param struck_at: when the last one was counted.
    :param retry_at: when to try again.
    :param cause: what the last one failed of, in words.
    """

    strikes: int = 0
    struck_at: float = -math.inf
    retry_at: float = -math.inf
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A rollout under way: since when, and how many due workers have left."""

    started_at: float
    replaced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """
    A pause between two turns that was longer than we wanted.

    :param since: when the turn before it was.
    :param until: when the turn after it was.
    """

    since: float
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutState:
    """
    What the next turn must know of the turns before.

    :param has_served: some worker has taken connections once; before that, failing means that we cannot
        start.
    :param has_proved: some worker has been ready once; from then on newcomers prove themselves before they
        listen.
    :param turn_at: when the last turn was.
    :param gaps: pauses between two turns in which we did not run, oldest first, as far as deadlines that
        still hold began before them.
    :param boot_backoff: waits after newcomers that failed.
    :param crash_backoff: waits after workers that died soon after birth.
    :param held_back: workers that died at once, and are not made good before that wait is over.
    :param memory_flaps: workers in a row that were replaced for a memory limit which they had passed young.
    :param memory_off_until: generation before which nobody is replaced for memory.
    :param orders: what an operator has ordered.
    :param completed: the last revision of the orders of which everybody was replaced.
    :param whole: workers with which the pool was whole; 0 before, and where memory has no limit.
    :param told_short_of: the target of which it was told that there is no memory for it.
    """

    has_served: bool = False
    has_proved: bool = False
    turn_at: float | None = None
    gaps: tuple[Gap, ...] = ()
    boot_backoff: Backoff = field(default_factory=Backoff)
    crash_backoff: Backoff = field(default_factory=Backoff)
    held_back: int = 0
    progress: Progress | None = None
    memory_flaps: int = 0
    memory_off_until: int = 0
    orders: Orders = field(default_factory=Orders)
    completed: int = 0
    whole: int = 0
    told_short_of: int = 0

    @property
    def phase(self) -> Phase:
        """Where the pool is: at rest, moving, or held up, by an operator or by newcomers that fail."""
        if self.orders.is_paused:
            return "paused"
        if self.held_up_by:
            return "stalled"
        return "progressing" if self.progress else "idle"

    @property
    def held_up_by(self) -> Backoff | None:
        """What newcomers failed of, at their start or soon after it, where that holds the replacing up."""
        if self.boot_backoff.strikes:
            return self.boot_backoff
        return self.crash_backoff if self.crash_backoff.strikes and self.progress else None

    @property
    def retry_at(self) -> float:
        """The moment before which nobody gets a successor."""
        return max(self.boot_backoff.retry_at, self.crash_backoff.retry_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """
    The whole server is to end: since when, and since when in a hurry, if it is.
    """

    began_at: float
    quick_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """
    One look at the world.

    :param target: workers wanted.
    :param generation: the generation that workers should have.
    :param departures: workers that went since the last turn.
    :param spawn_errors: why processes could not be made since the last turn, for want of something.
    :param lasting_errors: the same where time alone does not help, e.g. a hook that raises.
    :param memory_room_bytes: what the container may still take before the kernel kills; None without a limit.
    :param stop: whether the server is to end.
    """

    now: float
    target: int
    generation: int
    workers: tuple[WorkerView, ...]
    state: RolloutState
    departures: tuple[Departure, ...] = ()
    spawn_errors: tuple[str, ...] = ()
    lasting_errors: tuple[str, ...] = ()
    memory_room_bytes: int | None = None
    stop: Stop | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """
    Make workers.

    :param must_prove: take connections only once ready. Before anything has ever been ready there is nobody
        to protect, and a health endpoint that can be read beats a closed port.
    """

    count: int
    must_prove: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Ask a worker to finish what it has and leave."""

    pid: int
    age: int
    reason: DrainReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Quit:
    """Ask a worker to leave at once, whatever it has."""

    pid: int
    age: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """Ask a worker that missed a deadline for its stacks and the requests that it holds."""

    pid: int
    age: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """End a worker that missed a deadline, at once."""

    pid: int
    age: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """Give up: nothing has ever served, and the app cannot boot."""

    cause: str


Action = Spawn | Drain | Quit | Dump | Kill | Halt


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that the operator should hear of: a stable name, and its values."""

    name: str
    level: Level = "info"
    values: tuple[tuple[str, str | int | float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What to do now.

    :param wake_in_s: seconds after which to look again if nothing happens.
    """

    actions: tuple[Action, ...]
    state: RolloutState
    events: tuple[Event, ...]
    wake_in_s: float
