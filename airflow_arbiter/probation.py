"""
How far newcomers are trusted.

A health check proves that an app can start. Whether it can serve shows only at the first requests, and by
then the old workers may be gone. So a newcomer pays for the leaving of another worker only after its
probation, and for a whole rollout only once somebody with its code has served a little longer. After an early
death that takes a minute, for each of them.

Pure; part of the planner. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math

from airflow_arbiter.conditions import heard_at, is_available, is_superseded
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
    worker = gone.worker
    if worker.ready_at is None or worker.draining_at is not None or is_superseded(worker, view):
        return False
    lived_s = view.now - worker.ready_at if worker.killed_at is None else served_s(worker)
    return lived_s < EARLY_DEATH_S


def has_outlived(worker: WorkerView, struck_at: float) -> bool:
    """Whether it was spawned after an early death, and has not died so itself."""
    return worker.spawned_at >= struck_at and served_s(worker) >= EARLY_DEATH_S


def _shows(worker: WorkerView, view: PoolView) -> bool:
    """Whether it shows that the code of newcomers can serve."""
    return served_s(worker) >= PROOF_S and not is_superseded(worker, view)
