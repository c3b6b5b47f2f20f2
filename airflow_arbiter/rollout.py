"""
The rules by which workers are replaced, as one pure function.

Owns every decision about the pool: who is spawned, who is asked to leave, who is killed, when to wait. It
must not do anything: no process, signal, clock, random number or log, and no import but its own words, which
are in :mod:`airflow_arbiter.pool`. :func:`plan` maps what was observed to what to do, and the same view
always gives the same plan.

The loop around it is level-triggered: nothing here remembers an order that was given, except in facts that
the next view shows again (a worker that drains, a process that is gone). Times are seconds of one monotonic
clock.
"""

from __future__ import annotations

from dataclasses import replace

from airflow_arbiter.pool import (
    Backoff,
    Departure,
    Drain,
    Event,
    Halt,
    Kill,
    Plan,
    PoolView,
    Progress,
    Reason,
    RolloutPolicy,
    RolloutState,
    Spawn,
    WorkerView,
)

IDLE_WAKE_S = 1.0
"""Longest pause between two turns, so that anything missed heals within about a second."""

SUSPENDED_AFTER_S = 2 * IDLE_WAKE_S
"""A longer gap between two turns: we did not run (SIGSTOP, a closed laptop), so deadlines start anew."""

EARLY_DEATH_S = 60.0
"""A worker that dies within this time of becoming ready has died soon after birth."""

BACKOFF_FIRST_S = 1.0
BACKOFF_LAST_S = 60.0


# A worked example: target 4, surge 1, workers 1 to 4 are due by age, everything else is well.
#
#   live 4, available 4: surge_room 1, so spawn one             -> worker 5 boots
#   live 5, available 4: drain_budget 0, surge_room 0           -> wait
#   worker 5 proves itself: available 5, drain_budget 1         -> drain worker 1, the oldest due
#   live 5 (worker 1 still answers its last request)            -> wait: draining workers hold memory too
#   worker 1 leaves: live 4, available 4, surge_room 1          -> spawn worker 6, and so on
#
# Worker 5 fails instead: strike 1, wait 1 s, spawn worker 6; fails again: wait 2 s ... The available workers
# stay 4 throughout, whatever the newcomers do, because only a *spare* available worker pays for a drain.
def plan(view: PoolView, policy: RolloutPolicy) -> Plan:
    """
    Decide what to do about the pool.

    :param view: the world as it is.
    :param policy: the world as it should be.
    """
    state, events = _learn(view, policy)
    staying = _staying(view)

    if not state.has_served and (causes := _boot_failures(view)):
        return Plan(
            actions=(Halt(cause=causes[0]),), state=state, events=tuple(events), wake_in_s=IDLE_WAKE_S
        )

    kills = [
        Kill(pid=worker.pid, age=worker.age, cause=cause)
        for worker in view.workers
        if (cause := overdue(worker, view.now, policy, state))
    ]
    staying = _without(staying, kills)
    drains = _drains(staying, view, policy)
    staying = _without(staying, drains)
    count = _spawn_count(staying, view, policy, state)
    spawns = [Spawn(count=count, must_prove=state.has_proved)] if count else []

    return Plan(
        actions=(*kills, *drains, *spawns),
        state=state,
        events=tuple(events),
        wake_in_s=_wake_in_s(view, policy, state),
    )


# -- questions about one worker
# -------------------------------------------------------------------------------


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
    expires_at = _expires_at(worker, policy)
    return "age" if expires_at is not None and now >= expires_at else None


def overdue(worker: WorkerView, now: float, policy: RolloutPolicy, state: RolloutState) -> str | None:
    """Which deadline the worker has missed, in words, or None."""
    if worker.killed_at is not None:
        return None
    for deadline, cause in _deadlines(worker, policy, state):
        if now >= deadline:
            return cause
    return None


# -- questions about the pool
# ---------------------------------------------------------------------------------


def available(workers: tuple[WorkerView, ...], now: float, policy: RolloutPolicy) -> int:
    """How many workers carry capacity."""
    return sum(is_available(worker, now, policy) for worker in workers)


def due(workers: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> tuple[WorkerView, ...]:
    """The workers that have a reason to be replaced, oldest first."""
    return tuple(w for w in workers if due_reason(w, view.now, view.generation, policy))


def effective_surge(target: int, policy: RolloutPolicy) -> int:
    """The surge, never more than the workers wanted (scaling down may have passed below it)."""
    return min(policy.surge, target)


def _is_full(workers: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> bool:
    return available(workers, view.now, policy) >= view.target


def drain_budget(staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> int:
    """How many available workers may be asked to leave: the spare ones."""
    return max(0, available(staying, view.now, policy) - view.target)


def surge_room(view: PoolView, policy: RolloutPolicy) -> int:
    """How many more processes may live, those counted that are leaving."""
    return max(0, view.target + effective_surge(view.target, policy) - len(view.workers))


# -- the steps of a plan
# --------------------------------------------------------------------------------------


def _drains(staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> list[Drain]:
    """
    Choose who is asked to leave.

    First, at no cost, whoever is not missed and not wanted any more: due itself, or more than the pool needs
    (newest first, as it has the longest way to go). Then, paid for by spare available workers,
    the due ones and after them the oldest of a pool that was scaled down.
    """
    is_full = _is_full(staying, view, policy)

    def is_free(worker: WorkerView) -> bool:
        """Whether nobody misses it: it takes no connections, or carries nothing while enough others do."""
        return worker.listening_at is None or (is_full and not is_available(worker, view.now, policy))

    drains = [
        Drain(pid=w.pid, age=w.age, reason=reason)
        for w in staying
        if is_free(w) and (reason := due_reason(w, view.now, view.generation, policy))
    ]
    staying = _without(staying, drains)

    due_now = due(staying, view, policy)
    surplus = len(staying) - view.target - min(len(due_now), effective_surge(view.target, policy))
    unwanted = [w for w in reversed(staying) if is_free(w)][: max(0, surplus)]
    drains += [Drain(pid=w.pid, age=w.age, reason="surplus") for w in unwanted]
    staying = _without(staying, drains)

    budget = drain_budget(staying, view, policy)
    for worker in due_now[:budget]:
        reason = due_reason(worker, view.now, view.generation, policy)
        assert reason is not None  # by the definition of due
        drains.append(Drain(pid=worker.pid, age=worker.age, reason=reason))
    if len(due_now) < budget:
        others = [w for w in staying if w not in due_now and is_available(w, view.now, policy)]
        drains += [Drain(pid=w.pid, age=w.age, reason="scale") for w in others[: budget - len(due_now)]]
    return drains


def _spawn_count(
    staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy, state: RolloutState
) -> int:
    """Count what is missing, and a successor for each that is due, within the room there is."""
    if view.now < state.retry_at:
        return 0
    wanted = view.target + len(due(staying, view, policy)) - len(staying)
    count = max(0, min(wanted, surge_room(view, policy)))
    if not state.has_served:
        # The first worker goes ahead alone: an app that cannot boot fails once, not `target` times, and the
        # first answer does not wait for the other boots to share the processors.
        return min(count, 0 if view.workers else 1)
    return count


def _learn(view: PoolView, policy: RolloutPolicy) -> tuple[RolloutState, list[Event]]:
    """Take in what has happened since the last turn."""
    state = view.state
    if state.turn_at is not None and view.now - state.turn_at > SUSPENDED_AFTER_S:
        state = replace(state, resumed_at=view.now)
    seen = (*view.workers, *(gone.worker for gone in view.departures))
    state = replace(
        state,
        turn_at=view.now,
        has_served=state.has_served or any(w.listening_at is not None for w in seen),
        has_proved=state.has_proved or any(w.ready_at is not None for w in seen),
    )
    state, events = _learn_failures(state, view, policy)
    state, more = _learn_progress(state, view, policy)
    return state, [*_exit_events(view, policy), *more, *events]


def _learn_failures(
    state: RolloutState, view: PoolView, policy: RolloutPolicy
) -> tuple[RolloutState, list[Event]]:
    """
    Count strikes, and forget them after a success.

    Workers spawned before the last strike belong to the attempt that was counted: ten of them that fail
    together are one strike.
    """
    boot, crash = state.boot_backoff, state.crash_backoff
    has_success = any(w.ready_at is not None and w.ready_at > boot.struck_at for w in view.workers)
    is_at_rest = _is_full(view.workers, view, policy) and not due(_staying(view), view, policy)
    if has_success or is_at_rest:
        boot = Backoff()
    if crash.strikes and view.now >= crash.retry_at + EARLY_DEATH_S:
        crash = Backoff()

    failures = [
        (gone.worker.spawned_at, f"worker {gone.worker.age} {gone.cause}")
        for gone in view.departures
        if _was_unproven(gone)
    ]
    failures += [
        (view.now, f"could not be spawned: {error}") for error in (*view.spawn_errors, *view.lasting_errors)
    ]
    counted = [cause for spawned_at, cause in failures if spawned_at >= boot.struck_at]
    if counted:
        boot = _strike(boot, view.now)
    if any(
        _died_early(gone, view.now) and gone.worker.spawned_at >= crash.struck_at for gone in view.departures
    ):
        crash = _strike(crash, view.now, free=1)

    if any(not _was_asked(gone) and gone.worker.ready_at is not None for gone in view.departures):
        # Lost capacity is worth an attempt at once, whatever became of the newcomers before.
        boot = replace(boot, retry_at=min(boot.retry_at, view.now))

    state = replace(state, boot_backoff=boot, crash_backoff=crash)
    if not counted or not state.has_served:
        return state, []
    return state, [
        Event(
            name="rollout.stalled",
            level="error",
            values=(
                ("cause", counted[0]),
                ("failures", boot.strikes),
                ("retry_in_s", boot.retry_at - view.now),
            ),
        )
    ]


def _learn_progress(
    state: RolloutState, view: PoolView, policy: RolloutPolicy
) -> tuple[RolloutState, list[Event]]:
    """Open a rollout when workers become due, count those that left, close it when none is left."""
    waiting = due(_staying(view), view, policy)
    leaving = due(tuple(w for w in _by_age(view.workers) if _is_leaving(w)), view, policy)
    events: list[Event] = []
    progress = state.progress
    if progress is None and waiting:
        reason = due_reason(waiting[0], view.now, view.generation, policy)
        progress = Progress(started_at=view.now)
        started = (("due", len(waiting)), ("reason", str(reason)), ("target", view.target))
        events.append(Event(name="rollout.started", values=started))
    if progress is None:
        return state, events

    gone = tuple(gone.worker for gone in view.departures if _is_leaving(gone.worker))
    progress = replace(progress, replaced=progress.replaced + len(due(gone, view, policy)))
    is_complete = not waiting and not leaving and _is_full(view.workers, view, policy)
    if is_complete:
        ended = (("replaced", progress.replaced), ("duration_s", round(view.now - progress.started_at, 3)))
        events.append(Event(name="rollout.completed", values=ended))
    return replace(state, progress=None if is_complete else progress), events


def _exit_events(view: PoolView, policy: RolloutPolicy) -> list[Event]:
    """Tell of every worker that is gone; as an error only where nobody asked it to go."""
    return [
        Event(
            name="worker.exited",
            level="info" if _was_asked(gone) and gone.worker.killed_at is None else "error",
            values=(
                ("pid", gone.worker.pid),
                ("age", gone.worker.age),
                ("generation", gone.worker.generation),
                ("cause", gone.cause),
                ("reason", due_reason(gone.worker, view.now, view.generation, policy) or ""),
                ("uptime_s", round(view.now - gone.worker.spawned_at, 3)),
            ),
        )
        for gone in view.departures
    ]


def _wake_in_s(view: PoolView, policy: RolloutPolicy, state: RolloutState) -> float:
    """Seconds until the next moment at which time alone changes the plan."""
    moments = [state.retry_at]
    for worker in view.workers:
        if worker.killed_at is not None:
            continue
        moments += [deadline for deadline, _ in _deadlines(worker, policy, state)]
        if worker.ready_at is not None and worker.draining_at is None:
            moments.append(worker.ready_at + policy.min_ready_s)
            expires_at = _expires_at(worker, policy)
            moments += [] if expires_at is None else [expires_at]
    return min([IDLE_WAKE_S, *(moment - view.now for moment in moments if moment > view.now)])


# -- small helpers
# --------------------------------------------------------------------------------------------


def _deadlines(worker: WorkerView, policy: RolloutPolicy, state: RolloutState) -> list[tuple[float, str]]:
    """The deadlines that hold for the worker now, each with what to say when it is missed."""

    def after(start: float, limit_s: float) -> float:
        return max(start, state.resumed_at) + limit_s

    deadlines: list[tuple[float, str]] = []
    if worker.draining_at is not None:
        cause = f"missed its drain deadline of {policy.drain_timeout_s:g} s"
        deadlines.append((after(worker.draining_at, policy.drain_timeout_s), cause))
    if worker.listening_at is None:
        cause = f"missed its boot deadline of {policy.boot_timeout_s:g} s"
        cause += f": {worker.trouble}" if worker.trouble else ""
        deadlines.append((after(worker.spawned_at, policy.boot_timeout_s), cause))
    elif policy.heartbeat_timeout_s:
        cause = f"missed its heartbeat deadline of {policy.heartbeat_timeout_s:g} s"
        deadlines.append((after(_heard_at(worker), policy.heartbeat_timeout_s), cause))
    return deadlines


def _strike(backoff: Backoff, now: float, *, free: int = 0) -> Backoff:
    """Count one more failed attempt, of which the first `free` cost no wait."""
    strikes = backoff.strikes + 1
    doublings = min(strikes - 1 - free, 16)
    delay_s = 0.0 if doublings < 0 else min(BACKOFF_FIRST_S * 2**doublings, BACKOFF_LAST_S)
    return Backoff(strikes=strikes, struck_at=now, retry_at=now + delay_s)


def _heard_at(worker: WorkerView) -> float:
    return max(worker.beat_at or worker.spawned_at, worker.listening_at or worker.spawned_at)


def _is_silent(worker: WorkerView, now: float, policy: RolloutPolicy) -> bool:
    return bool(policy.heartbeat_timeout_s) and now >= _heard_at(worker) + policy.heartbeat_timeout_s


def _expires_at(worker: WorkerView, policy: RolloutPolicy) -> float | None:
    if not policy.refresh_interval_s or worker.ready_at is None:
        return None
    return worker.ready_at + policy.refresh_interval_s * (1 + policy.refresh_jitter * worker.jitter)


def _boot_failures(view: PoolView) -> list[str]:
    """Why workers could not be made, or have gone before they had proved anything."""
    return [gone.cause for gone in view.departures if _was_unproven(gone)] + list(view.lasting_errors)


def _is_leaving(worker: WorkerView) -> bool:
    return worker.draining_at is not None or worker.killed_at is not None


def _was_asked(gone: Departure) -> bool:
    return gone.worker.draining_at is not None


def _was_unproven(gone: Departure) -> bool:
    return gone.worker.ready_at is None and not _was_asked(gone)


def _died_early(gone: Departure, now: float) -> bool:
    ready_at = gone.worker.ready_at
    return not _was_asked(gone) and ready_at is not None and now - ready_at < EARLY_DEATH_S


def _by_age(workers: tuple[WorkerView, ...]) -> tuple[WorkerView, ...]:
    return tuple(sorted(workers, key=lambda worker: worker.age))


def _staying(view: PoolView) -> tuple[WorkerView, ...]:
    """The workers that nobody has asked to leave or killed, oldest first."""
    return _by_age(tuple(w for w in view.workers if not _is_leaving(w)))


def _without(workers: tuple[WorkerView, ...], gone: list[Kill] | list[Drain]) -> tuple[WorkerView, ...]:
    ages = {action.age for action in gone}
    return tuple(worker for worker in workers if worker.age not in ages)
