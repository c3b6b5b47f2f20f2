"""Workers that die again and again, in virtual time: how many are left, and how many boots that costs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import mean

import pytest

from airflow_arbiter import history
from airflow_arbiter.pool import (
    Backoff,
    Departure,
    Drain,
    PoolView,
    RolloutPolicy,
    RolloutState,
    Spawn,
    WorkerView,
)
from airflow_arbiter.probation import ALONE_S, DEATH_AT_ONCE_S, held_back
from airflow_arbiter.rollout import plan

STEP_S = 0.25
TARGET = 4
BOOT_S = 2.0
POLICY = RolloutPolicy()

Deaths = Callable[["Pool"], list[WorkerView]]
"""Who dies in a step."""


@dataclass(slots=True, kw_only=True)
class Pool:
    """
    Workers that boot for two seconds and beat, until something ends them.

    :ivar available: how many were ready, at each step.
    :ivar spawned_at: when each worker was spawned.
    """

    now: float = 1000.0
    generation: int = 1
    workers: dict[int, WorkerView] = field(default_factory=dict)
    state: RolloutState = field(default_factory=RolloutState)
    departures: tuple[Departure, ...] = ()
    available: list[int] = field(default_factory=list)
    spawned_at: list[float] = field(default_factory=list)

    @property
    def ready(self) -> list[WorkerView]:
        return [worker for worker in self.workers.values() if worker.ready_at is not None]

    def run(self, seconds: float, deaths: Deaths) -> None:
        """Let time pass."""
        for _ in range(int(seconds / STEP_S)):
            self.now += STEP_S
            for age, worker in list(self.workers.items()):
                self.workers[age] = self._lives(worker)
            for worker in deaths(self):
                self.departures += (Departure(worker=self.workers.pop(worker.age), cause="signal SIGSEGV"),)
            self._turn()
            self.available.append(len(self.ready))

    def _lives(self, worker: WorkerView) -> WorkerView:
        if worker.ready_at is None and self.now >= worker.spawned_at + BOOT_S:
            worker = replace(worker, listening_at=self.now, ready_at=self.now)
        return replace(worker, beat_at=self.now)

    def _turn(self) -> None:
        view = PoolView(
            now=self.now,
            target=TARGET,
            generation=self.generation,
            workers=tuple(self.workers.values()),
            state=self.state,
            departures=self.departures,
        )
        result = plan(view, POLICY)
        self.state, self.departures = result.state, ()
        for action in result.actions:
            if isinstance(action, Drain):
                self.departures += (
                    Departure(
                        worker=replace(self.workers.pop(action.age), draining_at=self.now),
                        cause="exit code 0",
                    ),
                )
            for _ in range(action.count if isinstance(action, Spawn) else 0):
                self._spawn()

    def _spawn(self) -> None:
        self.spawned_at.append(self.now)
        age = len(self.spawned_at)
        self.workers[age] = WorkerView(
            pid=age, age=age, generation=self.generation, spawned_at=self.now, beat_at=self.now
        )


def nobody(_pool: Pool) -> list[WorkerView]:
    return []


def poison(every_s: float, seed: int) -> Deaths:
    """Make a request come again and again that kills whoever gets it."""
    luck = random.Random(seed)

    def deaths(pool: Pool) -> list[WorkerView]:
        return [luck.choice(pool.ready)] if pool.ready and pool.now % every_s == 0 else []

    return deaths


def crash_loop(after_s: float) -> Deaths:
    """Make all workers die so long after they became ready."""
    return lambda pool: [w for w in pool.ready if w.ready_at is not None and pool.now >= w.ready_at + after_s]


def standing() -> Pool:
    """A pool that has served for a while."""
    pool = Pool()
    pool.run(100, nobody)
    pool.available.clear()
    return pool


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("every_s", "fewest", "on_average"),
    [pytest.param(8.0, 3, 3.7, id="each-8-s"), pytest.param(4.0, 2, 2.7, id="each-4-s")],
)
def test_poison_does_not_shrink_the_pool(every_s: float, fewest: int, on_average: float, seed: int) -> None:
    """Requests that kill their worker cost a boot each, and hardly more."""
    pool = standing()
    pool.run(1000, poison(every_s, seed))
    assert min(pool.available) >= fewest
    assert mean(pool.available) >= on_average


@pytest.mark.parametrize("after_s", [0.0, 0.75, 3.0])
def test_a_crash_loop_backs_off(after_s: float) -> None:
    """Where all die as soon as they are ready, one is tried every few seconds, and not four at once."""
    pool = standing()
    known = len(pool.spawned_at)
    pool.run(600, crash_loop(after_s))
    spawned_at = pool.spawned_at[known:]
    assert len(spawned_at) < 600 / ALONE_S
    pauses = [later - earlier for earlier, later in itertools.pairwise(spawned_at)]
    assert max(pauses) <= ALONE_S + BOOT_S + after_s


def test_the_end_of_a_crash_loop_fills_the_pool() -> None:
    """The first that lives is believed after a few seconds, and brings the others."""
    pool = standing()
    pool.run(600, crash_loop(0.0))
    pool.run(ALONE_S + BOOT_S + DEATH_AT_ONCE_S + BOOT_S + 1, nobody)
    assert pool.available[-1] == TARGET


@pytest.mark.parametrize("after_s", [0.0, 0.75, 3.0])
def test_mended_code_does_not_wait_for_the_crashes_before_it(after_s: float) -> None:
    """A reload serves after a boot, whatever its forerunner has done."""
    pool = standing()
    pool.run(600, crash_loop(after_s))
    pool.generation += 1
    pool.state = history.settle_reload(pool.state)
    pool.run(BOOT_S + 1, nobody)
    assert pool.available[-1] == TARGET


def test_only_as_many_are_held_back_as_died_at_once() -> None:
    """Of two that are missing, one that died at once waits; the other one, which nobody blames, does not."""
    ready = [
        WorkerView(pid=age, age=age, generation=1, spawned_at=997.0, ready_at=999.0, beat_at=1000.0)
        for age in (1, 2, 3)
    ]
    state = RolloutState(crash_backoff=Backoff(strikes=2, struck_at=1000.0, retry_at=1002.0))
    view = PoolView(
        now=1000.0,
        target=TARGET,
        generation=1,
        workers=tuple(ready[:2]),
        state=state,
        departures=(Departure(worker=ready[2], cause="signal SIGSEGV"),),
    )
    assert held_back(state, view, POLICY) == 1
