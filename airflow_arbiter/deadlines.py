"""
The deadlines that a worker must keep, and what becomes of one that does not.

Owns the three clocks of a worker's life (boot, heartbeat, drain), the server's stop, and the two steps of an
end: stacks first, then the kill. Pure; part of the planner. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_arbiter.conditions import heard_at
from airflow_arbiter.pool import Dump, Kill, PoolView, RolloutPolicy, RolloutState, Stop, WorkerView

DUMP_S = 0.5
"""What a worker gets to tell its stacks before it is killed."""

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


def _was_dumped(worker: WorkerView, deadline: Deadline) -> bool:
    """Whether it was asked for this deadline, and not for an earlier one after which it came back."""
    return worker.dumped_at is not None and worker.dumped_at >= deadline.at


def _deadlines(
    worker: WorkerView, stop: Stop | None, policy: RolloutPolicy, state: RolloutState
) -> list[Deadline]:
    """The deadlines that hold for the worker now."""

    def after(start: float, limit_s: float) -> float:
        return max(start, state.resumed_at) + limit_s

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
