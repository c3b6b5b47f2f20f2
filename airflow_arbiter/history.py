"""
What has happened to the pool since the last turn, and what follows from it for the next ones.

Owns the memory of the planner: strikes and backoffs, the progress of a rollout, the events that tell of both.
Pure, as :mod:`airflow_arbiter.rollout`, which decides by it. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import replace

from airflow_arbiter.conditions import (
    NO_ROOM,
    OFF,
    by_age,
    due,
    due_reason,
    in_force,
    is_full,
    is_leaving,
    is_ordered_away,
    is_outdated,
    stayers,
    was_over_memory_young,
)
from airflow_arbiter.deadlines import clocks
from airflow_arbiter.pool import (
    Backoff,
    Departure,
    Event,
    Gap,
    PoolView,
    Progress,
    RolloutPolicy,
    RolloutState,
)
from airflow_arbiter.probation import EARLY_DEATH_S, died_early, has_outlived, held_back

SUSPENDED_AFTER_S = 2.0
"""A longer gap between two turns: we did not run (SIGSTOP, a closed laptop), so deadlines are later."""

GAPS_KEPT = 1000
"""More of them in the time of one deadline are not counted: it would never come to an end."""

MEMORY_FLAPS = 2
"""Workers in a row that had passed the memory limit young, after which the limit is too low."""

BACKOFF_FIRST_S = 1.0
BACKOFF_LAST_S = 60.0


def learn(view: PoolView, policy: RolloutPolicy, *, wanted: int) -> tuple[RolloutState, list[Event]]:
    """
    Take in what has happened since the last turn.

    :param view: with the workers that are wanted now.
    :param wanted: workers that would be, if the container had memory for all of them.
    """
    state = _learn_gap(view.state, view)
    seen = (*view.workers, *(gone.worker for gone in view.departures))
    state = replace(
        state,
        turn_at=view.now,
        has_served=state.has_served or any(w.listening_at is not None for w in seen),
        has_proved=state.has_proved or any(w.ready_at is not None for w in seen),
    )
    state, on_memory = _learn_memory(state, view, policy)
    exits = _exit_events(view, policy)
    policy = in_force(policy, view, state)
    state, on_boots = _learn_boot_failures(state, view, policy)
    state, on_progress = _learn_progress(state, view, policy)
    state, on_crashes = _learn_crashes(state, view, policy)
    state = _learn_orders(state, view, policy)
    state, on_growth = _learn_growth(state, view, policy, wanted=wanted)
    return state, [*exits, *on_memory, *on_progress, *on_boots, *on_crashes, *on_growth]


def restart(state: RolloutState, newest_age: int) -> RolloutState:
    """
    Have everybody replaced who is there, and try at once: who orders it may have mended what failed.

    :param newest_age: the age of the last worker that was spawned.
    """
    return replace(_forgiven(state), orders=state.orders.restart(newest_age))


def settle_reload(state: RolloutState, *, failure: str = "") -> RolloutState:
    """
    Know that a reload is in, whose code has not failed yet; or that it will never be.

    :param failure: why it will not, in words.
    """
    state = state if failure else _forgiven(state)
    return replace(state, orders=state.orders.settle_reload(failure=failure))


def abort(state: RolloutState, generation: int) -> RolloutState:
    """
    Give up what was ordered, and with it the rollout and the wait for its newcomers.

    What is due for a reason of its own opens a rollout anew.
    """
    return replace(_forgiven(state), orders=state.orders.abort(generation), progress=None)


def _forgiven(state: RolloutState) -> RolloutState:
    """Hold nothing against newcomers: those that failed or died had other code, or are not asked for now."""
    return replace(state, boot_backoff=Backoff(), crash_backoff=Backoff(), held_back=0)


def _learn_gap(state: RolloutState, view: PoolView) -> RolloutState:
    """Notice time in which we did not run, and forget what no deadline needs any more."""
    gaps = state.gaps
    if state.turn_at is not None and view.now - state.turn_at > SUSPENDED_AFTER_S:
        gaps = (*gaps, Gap(since=state.turn_at, until=view.now))
    began_at = min(clocks(view), default=view.now)
    return replace(state, gaps=tuple(gap for gap in gaps if gap.until > began_at)[-GAPS_KEPT:])


def _learn_memory(
    state: RolloutState, view: PoolView, policy: RolloutPolicy
) -> tuple[RolloutState, list[Event]]:
    """
    Notice a memory limit that is too low for any worker, and let go of it until the next generation.

    One worker may pass the limit young by a single large request; when the next one that is replaced for its
    memory has done so too, replacing does not help.
    """
    if view.generation < state.memory_off_until:
        return state, []
    flaps = state.memory_flaps
    for gone in view.departures:
        if _was_asked(gone) and due_reason(gone.worker, view, policy) == "memory":
            flaps = flaps + 1 if was_over_memory_young(gone.worker, policy) else 0
    if flaps < MEMORY_FLAPS:
        return replace(state, memory_flaps=flaps), []
    values = (
        ("limit_bytes", policy.memory_limit_bytes),
        ("lifetime_s", policy.min_lifetime_s),
        ("because", "new workers pass it too; none is replaced for its memory until the next reload"),
    )
    event = Event(name="memory.limit_too_low", level="error", values=values)
    return replace(state, memory_flaps=0, memory_off_until=view.generation + 1), [event]


def _learn_boot_failures(
    state: RolloutState, view: PoolView, policy: RolloutPolicy
) -> tuple[RolloutState, list[Event]]:
    """
    Count newcomers that failed, and forget them after a success.

    Workers spawned before the last strike belong to the attempt that was counted: ten of them that fail
    together are one strike.
    """
    backoff = state.boot_backoff
    has_success = any(w.ready_at is not None and w.ready_at > backoff.struck_at for w in view.workers)
    is_at_rest = is_full(view.workers, view, policy) and not due(stayers(view), view, policy)
    if has_success or is_at_rest:
        backoff = Backoff()

    failures = [
        (gone.worker.spawned_at, f"worker {gone.worker.age} {gone.cause}")
        for gone in view.departures
        if _was_unproven(gone)
    ]
    failures += [
        (view.now, f"could not be spawned: {error}") for error in (*view.spawn_errors, *view.lasting_errors)
    ]
    counted = [cause for spawned_at, cause in failures if spawned_at >= backoff.struck_at]
    if counted:
        backoff = _strike(backoff, view.now, cause=counted[0])
    if any(not _was_asked(gone) and gone.worker.ready_at is not None for gone in view.departures):
        # Lost capacity is worth an attempt at once, whatever became of the newcomers before.
        backoff = replace(backoff, retry_at=min(backoff.retry_at, view.now))

    state = replace(state, boot_backoff=backoff)
    if not counted or not state.has_served:
        return state, []
    return state, [_waiting("rollout.stalled", backoff=backoff, now=view.now)]


def _learn_crashes(
    state: RolloutState, view: PoolView, policy: RolloutPolicy
) -> tuple[RolloutState, list[Event]]:
    """
    Count workers that died soon after birth, and forget them when one that came after them did not.

    They hold a rollout up, and hold back those that died at once.
    """
    backoff = state.crash_backoff
    has_success = any(has_outlived(w, backoff.struck_at) for w in view.workers)
    if has_success or view.now >= backoff.retry_at + EARLY_DEATH_S:
        backoff = Backoff()
    causes = [
        f"worker {gone.worker.age} {gone.cause}"
        for gone in view.departures
        if died_early(gone, view) and gone.worker.spawned_at >= backoff.struck_at
    ]
    if causes:
        backoff = _strike(backoff, view.now, cause=causes[0])
    state = replace(state, crash_backoff=backoff)
    state = replace(state, held_back=held_back(state, view, policy))
    if stalls_anew(view.state, state):
        return state, [_waiting("rollout.stalled", backoff=backoff, now=view.now)]
    if not causes or not state.held_back:
        return state, []
    return state, [_waiting("respawn.delayed", backoff=backoff, now=view.now)]


def stalls_anew(before: RolloutState, after: RolloutState) -> bool:
    """Whether early deaths hold a rollout up for one more reason, or one more rollout."""
    has_died = after.crash_backoff.struck_at > before.crash_backoff.struck_at
    is_held_up = after.progress is not None and after.crash_backoff.strikes > 0
    return is_held_up and (has_died or before.progress is None)


def _waiting(name: str, *, backoff: Backoff, now: float) -> Event:
    """Tell of a wait, and of what it is for."""
    retry_in_s = max(0.0, backoff.retry_at - now)
    values = (("cause", backoff.cause), ("failures", backoff.strikes), ("retry_in_s", retry_in_s))
    return Event(name=name, level="error", values=values)


def _learn_progress(
    state: RolloutState, view: PoolView, policy: RolloutPolicy
) -> tuple[RolloutState, list[Event]]:
    """Open a rollout when workers become due, count those that left, close it when none is left."""
    waiting = due(stayers(view), view, policy)
    leaving = due(tuple(w for w in by_age(view.workers) if is_leaving(w)), view, policy)
    events: list[Event] = []
    progress = state.progress
    if progress is None and waiting and not state.orders.is_paused:
        reason = due_reason(waiting[0], view, policy)
        progress = Progress(started_at=view.now)
        started = (("due", len(waiting)), ("reason", str(reason)), ("target", view.target))
        events.append(Event(name="rollout.started", values=started))
    if progress is None:
        return state, events

    gone = tuple(gone.worker for gone in view.departures if is_leaving(gone.worker))
    progress = replace(progress, replaced=progress.replaced + len(due(gone, view, policy)))
    is_complete = not waiting and not leaving and is_full(view.workers, view, policy)
    if is_complete:
        ended = (("replaced", progress.replaced), ("duration_s", round(view.now - progress.started_at, 3)))
        events.append(Event(name="rollout.completed", values=ended))
    return replace(state, progress=None if is_complete else progress), events


def _learn_orders(state: RolloutState, view: PoolView, policy: RolloutPolicy) -> RolloutState:
    """Notice when everybody is replaced whom the restarts, and the reloads that are in, were meant for."""
    orders = state.orders.forget([worker.age for worker in view.workers])
    completed = state.completed
    if orders.rolling:
        is_done = not any(is_outdated(w, view) or is_ordered_away(w, view) for w in view.workers)
        if is_done and is_full(view.workers, view, policy):
            completed, orders = max(completed, *orders.rolling), orders.complete()
        elif not policy.surge:
            orders = orders.give_up(OFF)
    return replace(state, orders=orders, completed=completed)


def _learn_growth(
    state: RolloutState, view: PoolView, policy: RolloutPolicy, *, wanted: int
) -> tuple[RolloutState, list[Event]]:
    """Notice with how many workers the pool is whole, and tell once that more of them do not fit."""
    if view.memory_room_bytes is None:
        return replace(state, whole=0, told_short_of=0), []
    whole = view.target if is_full(view.workers, view, policy) else min(state.whole, wanted)
    told = state.told_short_of if whole < wanted else 0
    is_news = view.target < wanted != told and whole == view.target
    state = replace(state, whole=whole, told_short_of=wanted if is_news else told)
    values = (
        ("target", wanted),
        ("reachable", view.target),
        ("memory_room_bytes", view.memory_room_bytes),
        ("because", NO_ROOM),
    )
    return state, [Event(name="pool.growth_held", level="warning", values=values)] if is_news else []


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
                ("reason", gone.worker.drain_reason or due_reason(gone.worker, view, policy) or ""),
                ("uptime_s", round(view.now - gone.worker.spawned_at, 3)),
            ),
        )
        for gone in view.departures
    ]


def _strike(backoff: Backoff, now: float, *, cause: str) -> Backoff:
    """Count one more failed attempt."""
    strikes = backoff.strikes + 1
    delay_s = min(BACKOFF_FIRST_S * 2 ** min(strikes - 1, 16), BACKOFF_LAST_S)
    return Backoff(strikes=strikes, struck_at=now, retry_at=now + delay_s, cause=cause)


def boot_failures(view: PoolView) -> list[str]:
    """Why workers could not be made, or have gone before they had proved anything."""
    return [gone.cause for gone in view.departures if _was_unproven(gone)] + list(view.lasting_errors)


def _was_asked(gone: Departure) -> bool:
    return gone.worker.draining_at is not None


def _was_unproven(gone: Departure) -> bool:
    return gone.worker.ready_at is None and not _was_asked(gone)
