"""
The deadlines that a worker must keep, and what becomes of one that does not.

Owns the three clocks of a worker's life (boot, heartbeat, drain), the server's stop, and the two steps of an
end: stacks first, then the kill. Pure; part of the planner. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_arbiter.conditions import heard_at
from airflow_arbiter.pool import Dump, Gap, Kill, PoolView, RolloutPolicy, RolloutState, Stop, WorkerView

DUMP_S = 0.5
"""What a worker gets to tell its stacks before it is killed."""

USUAL_PAUSE_S = 1.0
"""What lies between two turns when nothing happens; the rest of a longer gap is time that was lost."""

QUICK_STOP_S = 2.0
"""What workers get to leave in a quick stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A moment, and what to say of a worker that has missed it."""

    at: float
    cause: str


def ends(view: PoolView, policy: RolloutPolicy, state: RolloutState) -> list[Dump | Kill]:
    """Ask who missed a deadline for its stacks, and kill who has had the time to tell them."""
    actions: list[Dump | Kill] = []
    for worker in view.workers:
        deadline = missed(worker, view, policy, state)
        if deadline is None:
            continue
        if not _was_dumped(worker, deadline):
            actions.append(Dump(pid=worker.pid, age=worker.age))
        elif worker.dumped_at is not None and view.now >= worker.dumped_at + DUMP_S:
            actions.append(Kill(pid=worker.pid, age=worker.age, cause=deadline.cause))
    return actions


def missed(worker: WorkerView, view: PoolView, policy: RolloutPolicy, state: RolloutState) -> Deadline | None:
    """The first deadline in time that the worker has missed, or None; none after it was killed."""
    if worker.killed_at is not None:
        return None
    passed = [d for d in _deadlines(worker, view.stop, policy, state) if view.now >= d.at]
    return min(passed, key=lambda deadline: deadline.at, default=None)


def moments(worker: WorkerView, view: PoolView, policy: RolloutPolicy, state: RolloutState) -> list[float]:
    """When time alone may change what becomes of the worker."""
    found = [deadline.at for deadline in _deadlines(worker, view.stop, policy, state)]
    return found if worker.dumped_at is None else [*found, worker.dumped_at + DUMP_S]


def clocks(view: PoolView) -> list[float]:
    """Since when deadlines count that still hold."""
    began = [] if view.stop is None or view.stop.quick_at is None else [view.stop.quick_at]
    for worker in view.workers:
        if worker.killed_at is None:
            began.append(heard_at(worker) if worker.listening_at is not None else worker.spawned_at)
            began += [] if worker.draining_at is None else [worker.draining_at]
    return began


def _less_gaps(start: float, limit_s: float, gaps: tuple[Gap, ...]) -> float:
    """
    When a time is over that does not run while we do not.

    A deadline that had passed when a gap began is not moved by it: who missed it was asked for its stacks.
    """
    at = start + limit_s
    for gap in gaps:
        if gap.since < at and start < gap.until:
            at += min(gap.until - gap.since - USUAL_PAUSE_S, gap.until - start)
    return at


def _was_dumped(worker: WorkerView, deadline: Deadline) -> bool:
    """Whether it was asked for this deadline, and not for an earlier one after which it came back."""
    return worker.dumped_at is not None and worker.dumped_at >= deadline.at


def _deadlines(
    worker: WorkerView, stop: Stop | None, policy: RolloutPolicy, state: RolloutState
) -> list[Deadline]:
    """The deadlines that hold for the worker now."""

    def after(start: float, limit_s: float) -> float:
        return _less_gaps(start, limit_s, state.gaps)

    found: list[Deadline] = []
    if worker.draining_at is not None:
        cause = f"missed its drain deadline of {policy.drain_timeout_s:g} s"
        found.append(Deadline(at=after(worker.draining_at, policy.drain_timeout_s), cause=cause))
    if stop is not None and stop.quick_at is not None:
        cause = f"missed the deadline of {QUICK_STOP_S:g} s of a quick stop"
        found.append(Deadline(at=after(stop.quick_at, QUICK_STOP_S), cause=cause))
    if worker.listening_at is None:
        cause = f"missed its boot deadline of {policy.boot_timeout_s:g} s"
        cause += f": {worker.trouble}" if worker.trouble else ""
        found.append(Deadline(at=after(worker.spawned_at, policy.boot_timeout_s), cause=cause))
    elif policy.heartbeat_timeout_s:
        cause = f"missed its heartbeat deadline of {policy.heartbeat_timeout_s:g} s"
        found.append(Deadline(at=after(heard_at(worker), policy.heartbeat_timeout_s), cause=cause))
    return found
