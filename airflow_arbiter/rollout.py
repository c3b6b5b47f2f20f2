"""
The rules by which workers are replaced, as one pure function.

Owns every decision about the pool: who is spawned, who is asked to leave, who is killed, when to wait. It
must not do anything: no process, signal, clock, random number or log, and no import but its own words
(:mod:`airflow_arbiter.pool`), what they mean (:mod:`airflow_arbiter.conditions`) and what has happened before
(:mod:`airflow_arbiter.history`), which do nothing either. :func:`plan` maps what was observed to what to do,
and the same view always gives the same plan.

The loop around it is level-triggered: nothing here remembers an order that was given, except in facts that
the next view shows again (a worker that drains, a process that is gone). Times are seconds of one monotonic
clock.
"""

from __future__ import annotations

from airflow_arbiter.conditions import (
    assured,
    by_age,
    due,
    due_reason,
    expires_at,
    in_force,
    is_available,
    is_full,
    stayers,
    within_memory,
    workers_that_fit,
)
from airflow_arbiter.deadlines import USUAL_PAUSE_S, ends, missed, moments
from airflow_arbiter.history import boot_failures, learn
from airflow_arbiter.pool import (
    Action,
    Drain,
    Event,
    Halt,
    Plan,
    PoolView,
    Quit,
    RolloutPolicy,
    RolloutState,
    Spawn,
    Stop,
    WorkerView,
)
from airflow_arbiter.probation import alone_at, is_on_probation, trusted, withheld

IDLE_WAKE_S = USUAL_PAUSE_S
"""Longest pause between two turns, so that anything missed heals within about a second."""

PROBATION_WAKE_S = 0.125
"""Longest pause while a rollout waits for the first newcomers to show that they can serve."""


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
#
# They are due by generation, and worker 5 has new code: nobody leaves for it before it has served for 1 s, or
# for another newcomer before 1.5 s; from then on newcomers pay as soon as they are ready. Worker 5 crashes at
# its first request instead, or hangs and is killed: a strike, and waits that double, as above. Until a worker
# outlives a minute, or somebody orders anew, only workers of that age pay for a drain.
#
# The pool is scaled to 6, and the container has memory for one more worker: 5 are wanted, until it has more.
#
# The container has no memory for a fifth worker: drain worker 1 at once, and spawn worker 5 when it has left;
# the available workers are 3 meanwhile, and worker 2 waits until they are 4 again.
def plan(view: PoolView, policy: RolloutPolicy) -> Plan:
    """
    Decide what to do about the pool.

    :param view: the world as it is.
    :param policy: the world as it should be.
    """
    wanted, view = view.target, within_memory(view)
    state, events = learn(view, policy, wanted=wanted)
    policy = in_force(policy, view, state)
    if view.stop is not None:
        return _plan_stop(view, view.stop, policy, state, events)
    if not state.has_served and (causes := boot_failures(view)):
        return Plan(
            actions=(Halt(cause=causes[0]),), state=state, events=tuple(events), wake_in_s=IDLE_WAKE_S
        )

    ended = ends(view, policy, state)
    staying = tuple(w for w in stayers(view) if missed(w, view, policy, state) is None)
    drains = _drains(staying, view, policy, state)
    staying = _without(staying, drains)
    in_place = _in_place(staying, view, policy, state)
    if in_place is not None:
        drains.append(in_place)
        events.append(_in_place_event(in_place, view))
        staying = _without(staying, [in_place])
    count = _spawn_count(staying, view, policy, state)
    spawns = [Spawn(count=count, must_prove=state.has_proved)] if count else []

    return Plan(
        actions=(*ended, *drains, *spawns),
        state=state,
        events=tuple(events),
        wake_in_s=_wake_in_s(view, policy, state),
    )


def _plan_stop(
    view: PoolView, stop: Stop, policy: RolloutPolicy, state: RolloutState, events: list[Event]
) -> Plan:
    """Decide about the pool of a server that ends: nobody new, and everybody asked to leave."""
    staying = tuple(w for w in view.workers if missed(w, view, policy, state) is None and not w.killed_at)
    if stop.quick_at is None:
        asks: list[Action] = [
            Drain(pid=w.pid, age=w.age, reason="stop") for w in by_age(staying) if w.draining_at is None
        ]
    else:
        asks = [Quit(pid=w.pid, age=w.age) for w in by_age(staying) if w.quit_at is None]
    return Plan(
        actions=(*ends(view, policy, state), *asks),
        state=state,
        events=tuple(events),
        wake_in_s=_wake_in_s(view, policy, state),
    )


# -- how many
# ------------------------------------------------------------------------------------------------


def effective_surge(target: int, policy: RolloutPolicy) -> int:
    """The surge, never more than the workers wanted (scaling down may have passed below it)."""
    return min(policy.surge, target)


def drain_budget(
    staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy, state: RolloutState
) -> int:
    """How many available workers may be asked to leave: the spare ones, of those that can be counted on."""
    return max(0, len(trusted(staying, view, policy, state)) - view.target)


def surge_room(view: PoolView, policy: RolloutPolicy) -> int:
    """
    How many more processes may live, those counted that are leaving.

    Up to what the pool has been whole with always; beyond it, for a pool that grows and for the surge, as far
    as the container has memory for it.
    """
    live = len(view.workers)
    most = view.target + effective_surge(view.target, policy)
    return max(0, min(most, max(live, assured(view)) + workers_that_fit(view)) - live)


def replaceable(
    staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy
) -> tuple[WorkerView, ...]:
    """The due workers, oldest first, that may be replaced now: all of them, or none while it is paused."""
    return () if view.state.orders.is_paused else due(staying, view, policy)


def successors(staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> int:
    """
    How many workers more than wanted may stay, because due ones are still to go.

    In a pause these are the newcomers that were under way when it began, which wait for its end.
    """
    waiting = len(due(staying, view, policy))
    most = min(waiting, effective_surge(view.target, policy))
    return min(most, len(staying) - waiting) if view.state.orders.is_paused else most


# -- the steps of a plan
# --------------------------------------------------------------------------------------


def _drains(
    staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy, state: RolloutState
) -> list[Drain]:
    """
    Choose who is asked to leave, until nobody more has to.

    Once may not be enough in a pause: where a pool that is scaled down loses due workers, fewer successors
    are waiting for their places.
    """
    drains: list[Drain] = []
    while found := _next_drains(staying, view, policy, state):
        drains += found
        staying = _without(staying, found)
    return drains


def _next_drains(
    staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy, state: RolloutState
) -> list[Drain]:
    """
    Choose who is asked to leave.

    First, at no cost, whoever is not missed and not wanted any more: due itself, or more than the pool needs
    (newest first, as it has the longest way to go). Then, paid for by spare available workers,
    the due ones and after them the oldest of a pool that was scaled down; or its newest, where a rollout was
    given up: they came with it.
    """
    has_enough = is_full(staying, view, policy)

    def is_free(worker: WorkerView) -> bool:
        """Whether nobody misses it: it takes no connections, or carries nothing while enough others do."""
        return worker.listening_at is None or (has_enough and not is_available(worker, view.now, policy))

    to_replace = replaceable(staying, view, policy)
    drains = [_replacing(worker, view, policy) for worker in to_replace if is_free(worker)]
    staying = _without(staying, drains)

    surplus = len(staying) - view.target - successors(staying, view, policy)
    unwanted = [w for w in reversed(staying) if is_free(w)][: max(0, surplus)]
    drains += [Drain(pid=w.pid, age=w.age, reason="surplus") for w in unwanted]
    staying = _without(staying, drains)

    budget = drain_budget(staying, view, policy, state)
    due_now = replaceable(staying, view, policy)
    drains += [_replacing(worker, view, policy) for worker in due_now[:budget]]
    budget -= max(len(due_now), successors(staying, view, policy))
    ages_due = {w.age for w in due_now}
    others = [w for w in staying if w.age not in ages_due and is_available(w, view.now, policy)]
    if view.state.orders.is_given_up:
        others.reverse()
    drains += [Drain(pid=w.pid, age=w.age, reason="scale") for w in others[: max(0, budget)]]
    return drains


def _replacing(worker: WorkerView, view: PoolView, policy: RolloutPolicy) -> Drain:
    reason = due_reason(worker, view, policy)
    assert reason is not None  # by the definition of due
    return Drain(pid=worker.pid, age=worker.age, reason=reason)


def _in_place(
    staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy, state: RolloutState
) -> Drain | None:
    """
    Choose the oldest due worker to leave before its successor comes, where there is no memory for both.

    One at a time, out of a pool that is whole, with workers that can be counted on, and not while newcomers
    that failed are waited for. Never the only worker for a reason that can wait: its successor may be bad.
    """
    waiting = replaceable(staying, view, policy)
    is_whole = len(view.workers) == view.target == len(trusted(staying, view, policy, state))
    if not waiting or not is_whole or view.now < state.retry_at or workers_that_fit(view):
        return None
    drain = _replacing(waiting[0], view, policy)
    return None if view.target == 1 and drain.reason != "memory" else drain


def is_stuck(view: PoolView, policy: RolloutPolicy) -> bool:
    """Whether the only worker is due and stays, because there is no memory for its successor beside it."""
    waiting = replaceable(stayers(view), view, policy)
    is_alone = view.target == len(view.workers) == 1
    return (
        is_alone
        and bool(waiting)
        and not workers_that_fit(view)
        and due_reason(waiting[0], view, policy) != "memory"
    )


def _in_place_event(drain: Drain, view: PoolView) -> Event:
    values = (
        ("pid", drain.pid),
        ("age", drain.age),
        ("memory_room_bytes", view.memory_room_bytes or 0),
        ("because", "the container has no memory for one more worker"),
    )
    return Event(name="worker.replaced_in_place", level="warning", values=values)


def _spawn_count(
    staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy, state: RolloutState
) -> int:
    """
    Count what is missing, and a successor for each that is due, within the room there is.

    Nobody comes while newcomers fail before they are ready. After early deaths successors wait, and of what
    is missing those that died at once.
    """
    if view.now < state.boot_backoff.retry_at:
        return 0
    wanted = view.target - len(staying) - withheld(staying, view, policy, state)
    if view.now >= state.retry_at:
        wanted += len(replaceable(staying, view, policy))
    count = max(0, min(wanted, surge_room(view, policy)))
    if not state.has_served:
        # The first worker goes ahead alone: an app that cannot boot fails once, not `target` times, and the
        # first answer does not wait for the other boots to share the processors.
        return min(count, 0 if view.workers else 1)
    return count


def _wake_in_s(view: PoolView, policy: RolloutPolicy, state: RolloutState) -> float:
    """Seconds until the next moment at which time alone changes the plan."""
    instants = [state.boot_backoff.retry_at, state.crash_backoff.retry_at, alone_at(state)]
    for worker in view.workers:
        if worker.killed_at is not None:
            continue
        instants += moments(worker, view, policy, state)
        if worker.ready_at is not None and worker.draining_at is None:
            instants.append(worker.ready_at + policy.min_ready_s)
            expiry = expires_at(worker, policy)
            instants += [] if expiry is None else [expiry]
    if replaceable(stayers(view), view, policy) and is_on_probation(stayers(view), view, policy):
        instants.append(view.now + PROBATION_WAKE_S)
    return min([IDLE_WAKE_S, *(instant - view.now for instant in instants if instant > view.now)])


def _without(workers: tuple[WorkerView, ...], gone: list[Drain]) -> tuple[WorkerView, ...]:
    ages = {action.age for action in gone}
    return tuple(worker for worker in workers if worker.age not in ages)
