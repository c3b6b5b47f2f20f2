"""
How far newcomers are trusted, and how many may come.

A health check proves that an app can start. Whether it can serve shows only at the first requests, and by
then the old workers may be gone. So a newcomer pays for the leaving of another worker only after its
probation, and for a whole rollout only once somebody with its code has served a little longer. After an early
death that takes a minute, for each of them.

Workers that die as soon as they are ready cost boots and serve nobody, so those are made good after a wait.
It holds back as many as died so, and nobody else.

Pure; part of the planner. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math

from airflow_arbiter.conditions import heard_at, is_available, is_superseded, stayers
from airflow_arbiter.deadlines import missed
from airflow_arbiter.pool import Departure, PoolView, RolloutPolicy, RolloutState, WorkerView

PROBATION_S = 1.0
"""What a newcomer must have served for before another worker leaves for it."""

PROOF_S = 1.5
"""What one newcomer must have served for until the others with its code need no probation.

Longer than the probation, so that whoever has lost its connection to the first worker that left has asked by
then. Each rollout of new code takes this much longer, however many workers there are.
"""

EARLY_DEATH_S = 60.0
"""A worker that dies within this time of becoming ready has died soon after birth."""

DEATH_AT_ONCE_S = 5.0
"""A worker that dies within this time was hardly worth its boot; another one like it can wait."""

ALONE_S = 5.0
"""Where nobody is left, one worker is tried after this time at the latest, however long the wait."""


def trusted(
    workers: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy, state: RolloutState
) -> tuple[WorkerView, ...]:
    """Choose the available workers that can be counted on when another one is to leave."""
    carrying = tuple(w for w in workers if is_available(w, view.now, policy))
    is_doubtful = state.crash_backoff.strikes > 0
    if not is_doubtful and any(_shows(w, view) for w in carrying):
        return carrying
    least_s = EARLY_DEATH_S if is_doubtful else PROBATION_S
    return tuple(w for w in carrying if served_s(w) >= least_s)


def is_on_probation(workers: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy) -> bool:
    """Whether some are available, and nobody has shown yet that their code can serve."""
    newcomers = [w for w in workers if is_available(w, view.now, policy) and not is_superseded(w, view)]
    return bool(newcomers) and not any(_shows(w, view) for w in newcomers)


def served_s(worker: WorkerView) -> float:
    """For how long it has served, up to its last heartbeat: one that hangs does not get on."""
    return -math.inf if worker.ready_at is None else heard_at(worker) - worker.ready_at


def died_early(gone: Departure, view: PoolView) -> bool:
    """
    Whether it crashed, or hung until it was killed, soon after birth, with the code that newcomers have.
    """
    return _died_within(gone, view, EARLY_DEATH_S)


def _died_within(gone: Departure, view: PoolView, limit_s: float) -> bool:
    worker = gone.worker
    if worker.ready_at is None or worker.draining_at is not None or is_superseded(worker, view):
        return False
    lived_s = view.now - worker.ready_at if worker.killed_at is None else served_s(worker)
    return lived_s < limit_s


def has_outlived(worker: WorkerView, struck_at: float, least_s: float = EARLY_DEATH_S) -> bool:
    """
    Whether it was spawned after an early death, and has not died so itself.

    :param least_s: what it must have served for.
    """
    return worker.spawned_at >= struck_at and served_s(worker) >= least_s


def held_back(state: RolloutState, view: PoolView, policy: RolloutPolicy) -> int:
    """
    How many of those that are missing are not made good yet: as many as died at once, but for the first time.

    Who is missing for another reason is not among them. Where others serve on, it is one at most: then it may
    be requests that kill, and not the code. It ends with the wait, or with one that came later and lived on.

    :param state: with the early deaths that are counted up to now.
    """
    backoff = state.crash_backoff
    if view.now >= backoff.retry_at or any(
        has_outlived(w, backoff.struck_at, DEATH_AT_ONCE_S) for w in view.workers
    ):
        return 0
    died = sum(_died_within(gone, view, DEATH_AT_ONCE_S) for gone in view.departures)
    others = [w for w in stayers(view) if missed(w, view, policy, state) is None]
    others_serve = any(served_s(w) >= DEATH_AT_ONCE_S for w in others)
    most = min(1 if others_serve else view.target, view.target - len(others))
    return max(0, min(most, state.held_back + (died if backoff.strikes > 1 else 0)))


def withheld(
    staying: tuple[WorkerView, ...], view: PoolView, policy: RolloutPolicy, state: RolloutState
) -> int:
    """How many of those that are missing must not be spawned now; not all for long, if nobody is left."""
    is_deserted = not any(w.listening_at is None or is_available(w, view.now, policy) for w in staying)
    if is_deserted and view.now >= alone_at(state):
        return min(state.held_back, max(0, view.target - len(staying) - 1))
    return state.held_back


def alone_at(state: RolloutState) -> float:
    """When one worker is tried, if nobody is left."""
    return state.crash_backoff.struck_at + ALONE_S


def _shows(worker: WorkerView, view: PoolView) -> bool:
    """Whether it shows that the code of newcomers can serve."""
    return served_s(worker) >= PROOF_S and not is_superseded(worker, view)
