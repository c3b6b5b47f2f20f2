"""
Questions about workers and pools that every rule asks: who is available, who is due.

Owns what these words mean, as pure functions of what was seen. Decides nothing; the decisions are in
:mod:`airflow_arbiter.rollout`. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import replace

from airflow_arbiter.pool import PoolView, Reason, RolloutPolicy, RolloutState, WorkerView

SAMPLES_OVER = 3
"""Samples in a row above the memory limit that make a worker due; one may be a single large request."""

NO_ROOM = "the container has no memory for more workers"
OFF = "replacing is off: worker_refresh_batch_size is 0"

# -- one worker
# ------------------------------------------------------------------------------------------------


def is_available(worker: WorkerView, now: float, policy: RolloutPolicy) -> bool:
    """Whether the worker carries capacity: proved, long enough ready, beating, and not leaving."""
    return (
        worker.ready_at is not None
        and worker.draining_at is None
        and worker.killed_at is None
        and now >= worker.ready_at + policy.min_ready_s
        and not _is_silent(worker, now, policy)
    )


def due_reason(worker: WorkerView, view: PoolView, policy: RolloutPolicy) -> Reason | None:
    """
    Why the worker is to be replaced, or None.

    Age counts from becoming ready, so that an interval shorter than a boot cannot ask for a newcomer's
    replacement before it has served at all.
    """
    if not policy.surge:
        return None
    if is_outdated(worker, view):
        return "generation"
    if is_ordered_away(worker, view):
        return "command"
    if worker.retire_reason is not None:
        return worker.retire_reason
    if is_over_memory(worker, policy) and view.now >= _may_retire_at(worker, policy):
        return "memory"
    expiry = expires_at(worker, policy)
    return "age" if expiry is not None and view.now >= expiry else None


def is_outdated(worker: WorkerView, view: PoolView) -> bool:
    """Whether a reload has opened a generation after the worker's, and was not given up since."""
    return worker.generation < view.generation != view.state.orders.spared_generation


def is_superseded(worker: WorkerView, view: PoolView) -> bool:
    """Whether newcomers may have other code: it is of an older generation, or from before a restart."""
    return is_outdated(worker, view) or worker.age <= view.state.orders.restart_age


def is_ordered_away(worker: WorkerView, view: PoolView) -> bool:
    """Whether an operator wants it replaced, alone or with everybody of its time."""
    orders = view.state.orders
    return worker.age <= orders.restart_age or worker.age in orders.stopped


def expires_at(worker: WorkerView, policy: RolloutPolicy) -> float | None:
    """When the worker's time in service ends, if it does."""
    if not policy.refresh_interval_s or worker.ready_at is None:
        return None
    return worker.ready_at + policy.refresh_interval_s * (1 + policy.refresh_jitter * worker.jitter)


def is_over_memory(worker: WorkerView, policy: RolloutPolicy) -> bool:
    """Whether the worker holds more private memory than it may, for long enough to mean it."""
    return bool(policy.memory_limit_bytes) and worker.samples_over >= SAMPLES_OVER


def was_over_memory_young(worker: WorkerView, policy: RolloutPolicy) -> bool:
    """Whether it passed the memory limit in its first time, as its successor will too."""
    return worker.over_since < _may_retire_at(worker, policy)


def _may_retire_at(worker: WorkerView, policy: RolloutPolicy) -> float:
    return math.inf if worker.ready_at is None else worker.ready_at + policy.min_lifetime_s


def is_leaving(worker: WorkerView) -> bool:
    """Whether the worker was asked to leave, or killed."""
    return worker.draining_at is not None or worker.killed_at is not None


def heard_at(worker: WorkerView) -> float:
    """When the worker last gave a sign of life."""
    return max(worker.beat_at or worker.spawned_at, worker.listening_at or worker.spawned_at)


def _is_silent(worker: WorkerView, now: float, policy: RolloutPolicy) -> bool:
    return bool(policy.heartbeat_timeout_s) and now >= heard_at(worker) + policy.heartbeat_timeout_s


# -- the pool
# --------------------------------------------------------------------------------------------------


def available(workers: tuple[WorkerView, ...], now: float, policy: RolloutPolicy) -> int:
    """How many workers carry capacity."""
    return sum(is_available(worker, now, policy) for worker in workers)


def due(workers: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> tuple[WorkerView, ...]:
    """The workers that have a reason to be replaced, oldest first."""
    return tuple(w for w in workers if due_reason(w, view, policy))


def is_full(workers: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> bool:
    """Whether these workers are all the capacity that is wanted."""
    return available(workers, view.now, policy) >= view.target


def workers_that_fit(view: PoolView) -> int:
    """
    How many more workers the container has memory for.

    A newcomer takes what the newest ready worker holds; so will those that still boot.
    """
    held = [(w.age, w.private_bytes) for w in view.workers if w.private_bytes and w.ready_at is not None]
    if view.memory_room_bytes is None or not held:
        return view.target  # as many as any surge is
    _, newest_bytes = max(held)
    booting = sum(w.ready_at is None for w in view.workers)
    return max(0, view.memory_room_bytes // newest_bytes - booting)


def assured(view: PoolView) -> int:
    """
    Up to how many workers are spawned whatever the container has left: what the pool has been whole with.

    Before that it is the target. One who starts a server has said how many workers it needs, and none of them
    shows what they will hold.
    """
    return min(view.target, view.state.whole or view.target)


def within_memory(view: PoolView) -> PoolView:
    """The same pool, with no more workers wanted than the container holds, where it is to grow."""
    reachable = max(assured(view), len(view.workers) + workers_that_fit(view))
    return replace(view, target=min(view.target, reachable))


def stayers(view: PoolView) -> tuple[WorkerView, ...]:
    """The workers that nobody has asked to leave or killed, oldest first."""
    return by_age(tuple(w for w in view.workers if not is_leaving(w)))


def by_age(workers: tuple[WorkerView, ...]) -> tuple[WorkerView, ...]:
    """In the order in which they were spawned."""
    return tuple(sorted(workers, key=lambda worker: worker.age))


def in_force(policy: RolloutPolicy, view: PoolView, state: RolloutState) -> RolloutPolicy:
    """The policy without the reason that does not help: a memory limit that every worker passes."""
    return replace(policy, memory_limit_bytes=0) if view.generation < state.memory_off_until else policy
