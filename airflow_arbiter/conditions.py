"""
Questions about workers and pools that every rule asks: who is available, who is due, who missed a deadline.

Owns what these words mean, as pure functions of what was seen. Decides nothing; the decisions are in
:mod:`airflow_arbiter.rollout`. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from airflow_arbiter.pool import PoolView, Reason, RolloutPolicy, RolloutState, WorkerView

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


def due_reason(worker: WorkerView, now: float, generation: int, policy: RolloutPolicy) -> Reason | None:
    """
    Why the worker is to be replaced, or None.

    Age counts from becoming ready, so that an interval shorter than a boot cannot ask for a newcomer's
    replacement before it has served at all.
    """
    if not policy.surge:
        return None
    if worker.generation < generation:
        return "generation"
    if worker.retire_reason is not None:
        return worker.retire_reason
    expiry = expires_at(worker, policy)
    return "age" if expiry is not None and now >= expiry else None


def overdue(worker: WorkerView, now: float, policy: RolloutPolicy, state: RolloutState) -> str | None:
    """Which deadline the worker has missed, in words, or None."""
    if worker.killed_at is not None:
        return None
    for deadline, cause in deadlines(worker, policy, state):
        if now >= deadline:
            return cause
    return None


def expires_at(worker: WorkerView, policy: RolloutPolicy) -> float | None:
    """When the worker's time in service ends, if it does."""
    if not policy.refresh_interval_s or worker.ready_at is None:
        return None
    return worker.ready_at + policy.refresh_interval_s * (1 + policy.refresh_jitter * worker.jitter)


def is_leaving(worker: WorkerView) -> bool:
    """Whether the worker was asked to leave, or killed."""
    return worker.draining_at is not None or worker.killed_at is not None


def deadlines(worker: WorkerView, policy: RolloutPolicy, state: RolloutState) -> list[tuple[float, str]]:
    """The deadlines that hold for the worker now, each with what to say when it is missed."""

    def after(start: float, limit_s: float) -> float:
        return max(start, state.resumed_at) + limit_s

    found: list[tuple[float, str]] = []
    if worker.draining_at is not None:
        cause = f"missed its drain deadline of {policy.drain_timeout_s:g} s"
        found.append((after(worker.draining_at, policy.drain_timeout_s), cause))
    if worker.listening_at is None:
        cause = f"missed its boot deadline of {policy.boot_timeout_s:g} s"
        cause += f": {worker.trouble}" if worker.trouble else ""
        found.append((after(worker.spawned_at, policy.boot_timeout_s), cause))
    elif policy.heartbeat_timeout_s:
        cause = f"missed its heartbeat deadline of {policy.heartbeat_timeout_s:g} s"
        found.append((after(_heard_at(worker), policy.heartbeat_timeout_s), cause))
    return found


def _heard_at(worker: WorkerView) -> float:
    return max(worker.beat_at or worker.spawned_at, worker.listening_at or worker.spawned_at)


def _is_silent(worker: WorkerView, now: float, policy: RolloutPolicy) -> bool:
    return bool(policy.heartbeat_timeout_s) and now >= _heard_at(worker) + policy.heartbeat_timeout_s


# -- the pool
# --------------------------------------------------------------------------------------------------


def available(workers: tuple[WorkerView, ...], now: float, policy: RolloutPolicy) -> int:
    """How many workers carry capacity."""
    return sum(is_available(worker, now, policy) for worker in workers)


def due(workers: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> tuple[WorkerView, ...]:
    """The workers that have a reason to be replaced, oldest first."""
    return tuple(w for w in workers if due_reason(w, view.now, view.generation, policy))


def is_full(workers: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> bool:
    """Whether these workers are all the capacity that is wanted."""
    return available(workers, view.now, policy) >= view.target


def stayers(view: PoolView) -> tuple[WorkerView, ...]:
    """The workers that nobody has asked to leave or killed, oldest first."""
    return by_age(tuple(w for w in view.workers if not is_leaving(w)))


def by_age(workers: tuple[WorkerView, ...]) -> tuple[WorkerView, ...]:
    """In the order in which they were spawned."""
    return tuple(sorted(workers, key=lambda worker: worker.age))
