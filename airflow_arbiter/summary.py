"""
How the report of a server is made out of one look at it.

Pure: what is told here follows from the same words by which the planner decides.
"""

from __future__ import annotations

from airflow_arbiter.conditions import (
    NO_ROOM,
    OFF,
    available,
    by_age,
    due_reason,
    is_available,
    is_leaving,
    within_memory,
)
from airflow_arbiter.pool import PoolView, Reason, RolloutPolicy, WorkerView
from airflow_arbiter.report import (
    Counters,
    PoolReport,
    ReloadReport,
    Report,
    RolloutReport,
    ServerReport,
    WorkerReport,
    WorkerState,
)
from airflow_arbiter.rollout import effective_surge, is_stuck

NO_MEMORY = "the container has no memory for a successor beside the only worker: give it more, or restart"


def summarize(
    view: PoolView,
    policy: RolloutPolicy,
    *,
    server: ServerReport,
    reload: ReloadReport,
    counters: Counters,
) -> Report:
    """
    Put everything that is told of a server into one value.

    :param view: the pool as it is.
    :param policy: the policy that is in force.
    """
    return Report(
        server=server,
        pool=_pool(view, policy),
        rollout=_rollout(view, policy),
        reload=reload,
        workers=tuple(_worker(worker, view, policy) for worker in by_age(view.workers)),
        counters=counters,
    )


def _pool(view: PoolView, policy: RolloutPolicy) -> PoolReport:
    states = [_state(worker, view, policy) for worker in view.workers]
    return PoolReport(
        target=view.target,
        available=available(view.workers, view.now, policy),
        live=len(view.workers),
        surge=effective_surge(view.target, policy),
        booting=states.count("booting"),
        draining=states.count("draining"),
        memory_room_bytes=view.memory_room_bytes,
    )


def _rollout(view: PoolView, policy: RolloutPolicy) -> RolloutReport:
    state = view.state
    is_stalled, because = _held_up(view, policy)
    reasons = [reason for w in by_age(view.workers) if (reason := _due(w, view, policy)) is not None]
    return RolloutReport(
        phase="stalled" if is_stalled and not state.orders.is_paused else state.phase,
        reasons=tuple(dict.fromkeys(reasons)),
        replaced=state.progress.replaced if state.progress else 0,
        due=len(reasons),
        running_s=_ago(state.progress.started_at if state.progress else None, view.now),
        retry_in_s=_retry_in_s(view),
        because=because,
        stalled=is_stalled,
        revision=state.orders.revision,
        completed=state.completed,
        aborted=state.orders.aborted,
        open=state.orders.open,
        given_up=state.orders.given_up,
    )


def _held_up(view: PoolView, policy: RolloutPolicy) -> tuple[bool, str]:
    """Whether the pool does not get on, and why, by what a person must see to first."""
    state = view.state
    failing = state.held_up_by
    if not policy.surge:
        return failing is not None, OFF
    if failing is not None:
        return True, failing.cause
    if state.held_back:
        return not available(view.workers, view.now, policy), state.crash_backoff.cause
    if is_stuck(view, policy):
        return True, NO_MEMORY
    reachable = within_memory(view).target
    if reachable == view.target or any(is_leaving(w) for w in view.workers):
        return False, ""
    is_moving = state.progress is not None or bool(state.orders.open)  # which that does not hinder
    return len(view.workers) >= reachable and not is_moving, f"{NO_ROOM} than {reachable}"


def _retry_in_s(view: PoolView) -> float | None:
    """Seconds until newcomers come again that are held back now."""
    state = view.state
    is_waiting = (state.held_up_by or state.held_back) and state.retry_at > view.now
    return round(state.retry_at - view.now, 3) if is_waiting else None


def _worker(worker: WorkerView, view: PoolView, policy: RolloutPolicy) -> WorkerReport:
    return WorkerReport(
        pid=worker.pid,
        age=worker.age,
        generation=worker.generation,
        state=_state(worker, view, policy),
        booted=worker.listening_at is not None,
        uptime_s=round(view.now - worker.spawned_at, 3),
        requests=worker.requests,
        in_flight=worker.in_flight,
        private_bytes=worker.private_bytes,
        beat_ago_s=_ago(worker.beat_at, view.now),
        probe=worker.trouble,
        probe_ago_s=_ago(worker.probed_at, view.now),
        due=_due(worker, view, policy),
    )


def _due(worker: WorkerView, view: PoolView, policy: RolloutPolicy) -> Reason | None:
    """Why it is replaced; one that leaves for something else, as in a pool that was scaled down, is not."""
    return None if worker.drain_reason in ("scale", "surplus", "stop") else due_reason(worker, view, policy)


def _state(worker: WorkerView, view: PoolView, policy: RolloutPolicy) -> WorkerState:
    if worker.killed_at is not None:
        return "killed"
    if worker.draining_at is not None or worker.quit_at is not None:
        return "draining"
    if worker.listening_at is None:
        return "booting"
    if is_available(worker, view.now, policy):
        return "available"
    return "listening" if worker.ready_at is None else "ready"


def _ago(moment: float | None, now: float) -> float | None:
    """Seconds since a moment; a worker may have told of one that comes after we began to look."""
    return None if moment is None else round(max(0.0, now - moment), 3)
