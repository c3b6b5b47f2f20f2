"""
The planner against a model pool that does whatever processes do.

The pool is acted on as :mod:`airflow_arbiter.arbiter` does, and the promises are worked out here anew from
the facts: nothing is asked of the planner's own helpers, so that a wrong helper cannot hide itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from airflow_arbiter import history
from airflow_arbiter.orders import Orders
from airflow_arbiter.pool import (
    Action,
    Departure,
    Drain,
    Dump,
    Halt,
    Kill,
    Plan,
    PoolView,
    Quit,
    Reason,
    RolloutPolicy,
    RolloutState,
    Spawn,
    Stop,
    WorkerView,
)
from airflow_arbiter.rollout import plan

SUSPENDED_AFTER_S = 2.0
DUMP_S = 0.5
QUICK_STOP_S = 2.0
PROBATION_S = 1.0
PROOF_S = 1.5
EARLY_DEATH_S = 60.0
DEATH_AT_ONCE_S = 5.0
ALONE_S = 5.0
MIB = 2**20
FAIR_TURNS = 400
"""A backoff is a minute at most, a turn is a second at most, and a pool has a few workers."""

picks = st.integers(min_value=0, max_value=7)
policies = st.builds(
    RolloutPolicy,
    surge=st.integers(min_value=0, max_value=4),
    refresh_interval_s=st.sampled_from([0.0, 0.0, 3.0, 20.0]),
    refresh_jitter=st.sampled_from([0.0, 0.5]),
    boot_timeout_s=st.sampled_from([3.0, 20.0]),
    min_ready_s=st.sampled_from([0.0, 0.0, 2.5]),
    heartbeat_timeout_s=st.sampled_from([0.0, 2.0, 5.0]),
    drain_timeout_s=st.sampled_from([0.5, 4.0]),
    memory_limit_bytes=st.sampled_from([0, 0, 200 * MIB]),
    min_lifetime_s=st.sampled_from([0.0, 5.0]),
)


@dataclass
class Process:
    """A worker as the world has it; what the planner sees of it is :attr:`view`."""

    view: WorkerView
    must_prove: bool
    is_hung: bool = False
    kill_cause: str = ""

    def becomes(
        self,
        *,
        listening_at: float | None = None,
        ready_at: float | None = None,
        beat_at: float | None = None,
        draining_at: float | None = None,
        quit_at: float | None = None,
        dumped_at: float | None = None,
        killed_at: float | None = None,
        retire_reason: Reason | None = None,
        trouble: str | None = None,
    ) -> None:
        old = self.view
        self.view = replace(
            old,
            listening_at=old.listening_at if listening_at is None else listening_at,
            ready_at=old.ready_at if ready_at is None else ready_at,
            beat_at=old.beat_at if beat_at is None else beat_at,
            draining_at=old.draining_at if draining_at is None else draining_at,
            quit_at=old.quit_at if quit_at is None else quit_at,
            dumped_at=old.dumped_at if dumped_at is None else dumped_at,
            killed_at=old.killed_at if killed_at is None else killed_at,
            retire_reason=old.retire_reason or retire_reason,
            trouble=old.trouble if trouble is None else trouble,
        )

    def is_sampled(self, *, mib: int, limit_bytes: int, now: float) -> None:
        """Take a sample of its private memory."""
        old = self.view
        is_over = bool(limit_bytes) and mib * MIB > limit_bytes
        over_since = min(old.over_since, now) if is_over else float("inf")
        samples_over = old.samples_over + 1 if is_over else 0
        self.view = replace(old, private_bytes=mib * MIB, samples_over=samples_over, over_since=over_since)


class Pool:
    """Processes, clock and master: everything around the planner."""

    def __init__(self, policy: RolloutPolicy, target: int) -> None:
        self.policy = policy
        self.target = target
        self.generation = 1
        self.now = 5000.0
        self.ages = 0
        self.has_fork_trouble = False
        self.luck = 0.0
        self.drained: set[int] = set()
        self.killed: set[int] = set()
        self.start()

    def start(self) -> None:
        """Begin as a new master does, knowing nothing."""
        self.processes: dict[int, Process] = {}
        self.state = RolloutState()
        self.departures: list[Departure] = []
        self.spawn_errors: list[str] = []
        self.wake_in_s = 1.0
        self.looked_at: float | None = None
        self.gaps: list[tuple[float, float]] = []
        self.has_listened = False
        self.stop: Stop | None = None
        self.room_mib: int | None = None
        self.whole = 0
        self.memory_off_until = 0
        self.died_at_once = 0
        self.outdated: set[int] = set()
        self.ordered: set[int] = set()
        self.restarted: set[int] = set()
        self.meant_by: dict[int, set[int]] = {}
        self.is_given_up = False

    # -- facts, worked out from what is there ----------------------------------------------------------------

    @property
    def views(self) -> list[WorkerView]:
        return [process.view for process in self.processes.values()]

    def heard_at(self, worker: WorkerView) -> float:
        return max(at for at in (worker.spawned_at, worker.listening_at, worker.beat_at) if at is not None)

    def began_at(self, worker: WorkerView) -> float:
        """Since when the oldest deadline counts that it may have to keep."""
        began = worker.spawned_at if worker.listening_at is None else self.heard_at(worker)
        return began if worker.draining_at is None else min(began, worker.draining_at)

    def carries(self, worker: WorkerView) -> bool:
        """Whether the worker is capacity: ready for long enough, beating, not leaving, not killed."""
        silence_s = self.now - self.heard_at(worker)
        limit_s = self.policy.heartbeat_timeout_s
        return (
            worker.ready_at is not None
            and worker.ready_at + self.policy.min_ready_s <= self.now
            and (limit_s == 0 or silence_s < limit_s)
            and worker.draining_at is None
            and worker.killed_at is None
        )

    def reason(self, worker: WorkerView) -> Reason | None:
        if self.policy.surge == 0:
            return None
        if worker.age in self.outdated | self.ordered:
            return "generation" if worker.age in self.outdated else "command"
        if worker.retire_reason:
            return worker.retire_reason
        if (
            self.policy.memory_limit_bytes
            and worker.samples_over >= 3
            and worker.ready_at is not None
            and worker.ready_at + self.policy.min_lifetime_s <= self.now
            and self.generation >= self.memory_off_until
        ):
            return "memory"
        interval_s = self.policy.refresh_interval_s
        if interval_s and worker.ready_at is not None:
            life_s = interval_s * (1 + worker.jitter * self.policy.refresh_jitter)
            if worker.ready_at + life_s <= self.now:
                return "age"
        return None

    def served_s(self, worker: WorkerView) -> float:
        """For how long it has been seen to serve; who hangs does not get on."""
        return float("-inf") if worker.ready_at is None else self.heard_at(worker) - worker.ready_at

    def has_died_early(self, worker: WorkerView, limit_s: float = EARLY_DEATH_S) -> bool:
        """Whether one that is gone died or hung soon after birth, with the code that newcomers have."""
        if worker.ready_at is None or worker.draining_at is not None or self.has_old_code(worker):
            return False
        lived_s = self.served_s(worker) if worker.killed_at is not None else self.now - worker.ready_at
        return lived_s < limit_s

    def has_old_code(self, worker: WorkerView) -> bool:
        return worker.age in self.outdated | self.restarted

    def counted_on(self, carrying: list[WorkerView], *, is_doubtful: bool) -> set[int]:
        """Those that may be left alone with the requests: what newcomers are worth shows with time."""
        newcomers = [worker for worker in carrying if not self.has_old_code(worker)]
        least_s = PROBATION_S
        if is_doubtful:
            least_s = EARLY_DEATH_S
        elif any(self.served_s(worker) >= PROOF_S for worker in newcomers):
            least_s = float("-inf")
        return {worker.age for worker in carrying if self.served_s(worker) >= least_s}

    def good(self) -> int:
        """How many carry capacity, and are not of the newest generation."""
        found = [p for p in self.processes.values() if p.view.generation < self.generation]
        return sum(self.carries(process.view) for process in found)

    @property
    def is_paused(self) -> bool:
        return self.state.orders.is_paused

    @property
    def living(self) -> set[int]:
        return {view.age for view in self.views}

    def missed(self, worker: WorkerView) -> dict[str, float]:
        """The deadlines that the worker has missed, and when; time in which nobody ran does not count."""
        limits = {}

        def limit(name: str, start: float, limit_s: float) -> None:
            limits[name] = start + limit_s
            for since, until in self.gaps:
                if limits[name] > since:  # who was late before it stays late
                    limits[name] += max(0.0, min(until - since - 1, until - start))

        if worker.draining_at is not None:
            limit("drain", worker.draining_at, self.policy.drain_timeout_s)
        if self.stop is not None and self.stop.quick_at is not None:
            limit("stop", self.stop.quick_at, QUICK_STOP_S)
        if worker.listening_at is None:
            limit("boot", worker.spawned_at, self.policy.boot_timeout_s)
        elif self.policy.heartbeat_timeout_s:
            limit("heartbeat", self.heard_at(worker), self.policy.heartbeat_timeout_s)
        return {name: at for name, at in limits.items() if at <= self.now}

    def fits(self, workers: tuple[WorkerView, ...]) -> float:
        """How many more workers the container's memory holds, as far as anything is known of it."""
        held = {w.age: w.private_bytes for w in workers if w.ready_at is not None and w.private_bytes}
        if self.room_mib is None or not held:
            return float("inf")
        return self.room_mib * MIB // held[max(held)] - sum(w.ready_at is None for w in workers)

    def assured(self) -> int:
        """The workers that come back whatever the memory is: those with which the pool was whole once."""
        return min(self.target, self.whole) if self.whole else self.target

    def reachable(self, workers: tuple[WorkerView, ...]) -> float:
        """The workers that there can be: all that are wanted, unless that is growth beyond the memory."""
        return min(self.target, max(self.assured(), len(workers) + self.fits(workers)))

    def note_whole(self, workers: tuple[WorkerView, ...]) -> None:
        """See how many workers the pool is whole with, where its memory has a limit."""
        reachable = self.reachable(workers)
        if self.room_mib is None:
            self.whole = 0
        elif sum(map(self.carries, workers)) >= reachable:
            self.whole = int(reachable)
        else:
            self.whole = min(self.whole, self.target)

    # -- the world moves -------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass in which everybody runs, and who is not hung beats."""
        self.now += seconds
        for process in self.processes.values():
            if not process.is_hung and process.view.killed_at is None:
                process.becomes(beat_at=self.now)

    def departs(self, process: Process, cause: str) -> None:
        del self.processes[process.view.pid]
        self.departures.append(Departure(worker=process.view, cause=process.kill_cause or cause))

    def listens(self, process: Process, *, is_ready: bool) -> None:
        process.becomes(
            listening_at=self.now, ready_at=self.now if is_ready else None, beat_at=self.now, trouble=""
        )

    # -- orders ----------------------------------------------------------------------------------------------

    def order(self, orders: Orders) -> None:
        self.state = replace(self.state, orders=orders)

    def ask_for_reload(self) -> None:
        self.order(self.state.orders.reload())
        self.is_given_up = False

    def open_generation(self) -> None:
        """New code is in: whoever is there is outdated."""
        self.generation += 1
        self.outdated |= self.living | {gone.worker.age for gone in self.departures}
        for revision in self.state.orders.awaiting:
            self.meant_by[revision] = self.living
        self.state = history.settle_reload(self.state)

    def restart(self) -> None:
        self.state = history.restart(self.state, self.ages)
        self.ordered |= self.living
        self.restarted |= self.living | {gone.worker.age for gone in self.departures}
        self.is_given_up = False
        self.meant_by[self.state.orders.revision] = self.living

    def abort(self) -> None:
        self.state = history.abort(self.state, self.generation)
        self.outdated, self.ordered, self.restarted, self.meant_by = set(), set(), set(), {}
        self.is_given_up = True

    # -- the master's turn -----------------------------------------------------------------------------------

    def observe(self) -> PoolView:
        return PoolView(
            now=self.now,
            target=self.target,
            generation=self.generation,
            workers=tuple(replace(view) for view in self.views),
            state=replace(self.state),
            departures=tuple(self.departures),
            spawn_errors=tuple(self.spawn_errors),
            memory_room_bytes=None if self.room_mib is None else self.room_mib * MIB,
            stop=self.stop,
        )

    def turn(self) -> Plan:
        """Observe, decide, act; and hold the plan against the promises."""
        if self.looked_at is not None and self.now - self.looked_at > SUSPENDED_AFTER_S:
            self.gaps.append((self.looked_at, self.now))
        self.gaps = [gap for gap in self.gaps if gap[1] > min([self.now, *map(self.began_at, self.views)])]
        self.looked_at = self.now
        seen, again = self.observe(), self.observe()
        self.departures, self.spawn_errors = [], []
        result = plan(seen, self.policy)
        assert plan(again, self.policy) == result, "equal views, other plans"
        self.has_listened |= any(
            worker.listening_at is not None
            for worker in (*seen.workers, *(gone.worker for gone in seen.departures))
        )
        self.memory_off_until = result.state.memory_off_until
        self.check(seen, result)
        self.check_completed(seen, result)
        self.note_whole(seen.workers)
        self.state, self.wake_in_s = result.state, result.wake_in_s
        for action in result.actions:
            self.act(action)
        return result

    def act(self, action: Action) -> None:
        if isinstance(action, Halt):
            self.start()
        elif isinstance(action, Spawn):
            self.spawn(action)
        elif isinstance(action, Drain):
            self.processes[action.pid].becomes(draining_at=self.now)
        elif isinstance(action, Quit):
            self.processes[action.pid].becomes(quit_at=self.now)
        elif isinstance(action, Dump):
            self.processes[action.pid].becomes(dumped_at=self.now)
        else:
            self.processes[action.pid].becomes(killed_at=self.now)
            self.processes[action.pid].kill_cause = action.cause

    def spawn(self, action: Spawn) -> None:
        for _ in range(action.count):
            self.ages += 1
            if self.has_fork_trouble:
                self.spawn_errors.append("Resource temporarily unavailable")
                return
            pid = next(pid for pid in range(10, 100) if pid not in self.processes)  # pids come again
            self.luck = (self.luck + 0.375) % 1
            worker = WorkerView(
                pid=pid, age=self.ages, generation=self.generation, spawned_at=self.now, jitter=self.luck
            )
            self.processes[pid] = Process(view=worker, must_prove=action.must_prove)

    # -- the promises ----------------------------------------------------------------------------------------

    def check(self, seen: PoolView, result: Plan) -> None:
        assert 0 < result.wake_in_s <= 1
        workers = {worker.age: worker for worker in seen.workers}
        drains = [action for action in result.actions if isinstance(action, Drain)]
        kills = [action for action in result.actions if isinstance(action, Kill)]
        dumps = [action for action in result.actions if isinstance(action, Dump)]
        spawns = [action for action in result.actions if isinstance(action, Spawn)]
        named = [(drain.age, drain.pid) for drain in drains]
        named += [(kill.age, kill.pid) for kill in kills]
        named += [(dump.age, dump.pid) for dump in dumps]
        assert all(workers[age].pid == pid for age, pid in named)
        if seen.stop is not None:
            self.check_stop(seen, result)
        if seen.stop is None and self.check_halt(seen, result):
            return
        self.check_ends(workers, dumps, kills)
        if any(self.has_died_early(gone.worker) for gone in seen.departures):
            assert result.state.crash_backoff.strikes, "an early death is remembered"
            self.died_at_once += sum(
                self.has_died_early(gone.worker, DEATH_AT_ONCE_S) for gone in seen.departures
            )
        if seen.stop is not None:
            return
        overdue = {age for age, worker in workers.items() if self.missed(worker)}
        self.check_drains(workers, drains, overdue, result)
        leaving = overdue | {drain.age for drain in drains}
        staying = [view for view in seen.workers if view.draining_at is None and view.killed_at is None]
        left = sum(view.age not in leaving for view in staying)
        self.check_spawns(seen, result, spawns, left)

    def check_stop(self, seen: PoolView, result: Plan) -> None:
        """Nobody new, and everybody who is not overdue is asked, once."""
        assert not any(isinstance(action, (Spawn, Halt)) for action in result.actions)
        asked = [action.age for action in result.actions if isinstance(action, (Drain, Quit))]
        kind: type[Action] = Drain if seen.stop is not None and seen.stop.quick_at is None else Quit
        assert all(isinstance(action, (kind, Dump, Kill)) for action in result.actions)
        expected = [
            worker.age
            for worker in seen.workers
            if worker.killed_at is None
            and not self.missed(worker)
            and (worker.draining_at if kind is Drain else worker.quit_at) is None
        ]
        assert sorted(asked) == sorted(expected)

    def check_halt(self, seen: PoolView, result: Plan) -> bool:
        failed = [
            gone
            for gone in seen.departures
            if gone.worker.ready_at is None and gone.worker.draining_at is None
        ]
        must_halt = bool(failed) and not self.has_listened
        assert any(isinstance(action, Halt) for action in result.actions) == must_halt
        assert not must_halt or result.actions == (Halt(cause=failed[0].cause),)
        return must_halt

    def check_ends(self, workers: dict[int, WorkerView], dumps: list[Dump], kills: list[Kill]) -> None:
        """Who missed a deadline is asked for its stacks, and killed half a second later."""
        to_dump, to_kill = set(), {}
        for worker in workers.values():
            missed = self.missed(worker)
            if worker.killed_at is not None or not missed:
                continue
            first = min(missed.values())
            if worker.dumped_at is None or worker.dumped_at < first:
                to_dump.add(worker.age)
            elif worker.dumped_at + DUMP_S <= self.now:
                to_kill[worker.age] = {name for name, at in missed.items() if at == first}
        assert sorted(dump.age for dump in dumps) == sorted(to_dump)
        assert sorted(kill.age for kill in kills) == sorted(to_kill)
        for kill in kills:
            words = {"stop": "deadline of 2 s of a quick stop"}
            deadlines = [words.get(name, f"its {name} deadline") for name in to_kill[kill.age]]
            assert any(deadline in kill.cause for deadline in deadlines)
            assert kill.age not in self.killed, "killed twice"
            self.killed.add(kill.age)

    def check_drains(
        self, workers: dict[int, WorkerView], drains: list[Drain], overdue: set[int], result: Plan
    ) -> None:
        ages = [drain.age for drain in drains]
        assert len(set(ages)) == len(ages)
        assert not self.drained.intersection(ages), "asked to leave twice"
        self.drained.update(ages)
        assert all(workers[age].draining_at is None and workers[age].killed_at is None for age in ages)
        assert not overdue.intersection(ages), "asked and killed at once"

        carrying = {worker.age for worker in workers.values() if self.carries(worker)} - overdue
        taken = carrying.intersection(ages)
        is_doubtful = result.state.crash_backoff.strikes > 0
        sure = self.counted_on([workers[age] for age in carrying], is_doubtful=is_doubtful)
        in_place = [event for event in result.events if event.name == "worker.replaced_in_place"]
        if in_place:
            assert len(taken) == 1, "one at a time"
            views = tuple(workers.values())
            assert len(workers) == len(sure) == self.reachable(views), "out of a whole pool"
            assert self.fits(views) < 1, "only for want of memory"
        else:
            assert not taken or len(sure - taken) >= self.target, "capacity floor"

        reasons = {age: self.reason(workers[age]) for age in workers}
        for drain in drains:
            if drain.reason in {"scale", "surplus"}:
                assert reasons[drain.age] is None or self.is_paused
                assert (drain.age in carrying) == (drain.reason == "scale")
            else:
                assert not self.is_paused, "paused means that nobody is replaced"
                assert reasons[drain.age] == drain.reason
        due = set() if self.is_paused else {age for age in carrying if reasons[age]}
        assert_oldest(taken & due, due)
        assert_oldest(taken - due, carrying - due, is_reversed=self.is_given_up)
        assert not taken - due or due <= taken, "the due leave before the rest"

    def check_spawns(self, seen: PoolView, result: Plan, spawns: list[Spawn], staying: int) -> None:
        assert len(spawns) <= 1
        count = spawns[0].count if spawns else 0
        live = len(seen.workers) + count
        reachable = self.reachable(seen.workers)
        surge_live = max(len(seen.workers), self.assured()) + max(0, self.fits(seen.workers))
        ceiling = min(reachable + min(self.policy.surge, reachable), surge_live)
        has_proved = any(worker.ready_at is not None for worker in seen.workers) or result.state.has_proved
        assert not spawns or (count > 0 and spawns[0].must_prove == has_proved)
        assert not count or live <= ceiling, "process ceiling"
        assert self.has_listened or not count or live == 1, "the first worker goes ahead alone"
        assert not self.is_paused or not count or staying + count <= self.target, "only what is missing"
        boots, crashes = result.state.boot_backoff, result.state.crash_backoff
        if self.now < boots.retry_at:
            assert not count, "a backoff is a wait"
            return
        if self.now < crashes.retry_at:
            assert not count or staying + count <= self.target, "successors wait"
        held_back = result.state.held_back
        assert not held_back or (self.now < crashes.retry_at and held_back <= self.died_at_once)
        if self.has_listened:
            assert staying + count + held_back >= reachable or live >= ceiling, "what is missing is spawned"
            is_deserted = not staying and self.now >= crashes.struck_at + ALONE_S
            assert not is_deserted or count or not reachable or live >= ceiling, "somebody is tried"

    def check_completed(self, seen: PoolView, result: Plan) -> None:
        """
        Revisions are complete when nobody is left whom they were meant for, and every one has one end.

        A reload whose code is not in is not complete.
        """
        before, after = seen.state.orders, result.state.orders
        given_up = {revision for item in after.given_up[-1:] for revision in item.revisions}
        ended = (
            set(before.open) - set(after.open) - (given_up if after.given_up != before.given_up else set())
        )
        assert result.state.completed == max([seen.state.completed, *ended])
        assert ended.isdisjoint(before.awaiting)
        assert set(after.open) <= set(before.open)
        if not ended:
            return
        meant = {age for ages in self.meant_by.values() for age in ages}
        assert not meant & {worker.age for worker in seen.workers}
        assert sum(map(self.carries, seen.workers)) >= self.reachable(seen.workers)

    def is_whole(self) -> bool:
        """Whether there are as many workers as wanted, or a few more in a pause, and all of them serve."""
        views = tuple(self.views)
        return len(views) >= self.reachable(views) and all(map(self.carries, views))

    def is_settled(self) -> bool:
        """Whether the pool is as wanted, and knows it."""
        views = self.views
        orders = self.state.orders
        return (
            len(views) == self.target
            and all(self.carries(worker) and self.reason(worker) is None for worker in views)
            and self.state.progress is None
            and not orders.open
        )


def assert_oldest(taken: set[int], candidates: set[int], *, is_reversed: bool = False) -> None:
    """FIFO: who leaves is older than whoever stays; the other way round after giving up."""
    ordered = sorted(candidates, reverse=is_reversed)
    assert sorted(taken) == sorted(ordered[: len(taken)]), "oldest first"


def has(is_one: Callable[[Process], bool]) -> Callable[[RolloutMachine], bool]:
    return lambda machine: any(map(is_one, machine.pool.processes.values()))


def is_newborn(process: Process) -> bool:
    view = process.view
    return (
        all(at is None for at in (view.listening_at, view.draining_at, view.killed_at))
        and not process.is_hung
    )


def is_sick(process: Process) -> bool:
    view = process.view
    return (
        view.listening_at is not None
        and view.ready_at is None
        and view.killed_at is None
        and not process.is_hung
    )


def is_leaving(process: Process) -> bool:
    return process.view.draining_at is not None and not process.is_hung


def is_killed(process: Process) -> bool:
    return process.view.killed_at is not None


def is_alive(process: Process) -> bool:
    return process.view.killed_at is None


def is_awaiting(machine: RolloutMachine) -> bool:
    return bool(machine.pool.state.orders.awaiting)


def is_paused(machine: RolloutMachine) -> bool:
    return machine.pool.is_paused


def is_hung(process: Process) -> bool:
    return process.is_hung and process.view.killed_at is None


class RolloutMachine(RuleBasedStateMachine):
    """What may happen to a pool, in any order."""

    pool: Pool

    @initialize(policy=policies, workers=st.integers(min_value=1, max_value=5), served=st.booleans())
    def begin(self, policy: RolloutPolicy, workers: int, served: bool) -> None:
        self.pool = Pool(policy, workers)
        self.look()
        if served:  # half of the stories begin with a pool that stands
            for _ in range(2):
                self.boot_all()
                self.look()

    # -- the master ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take a turn, and another at the same instant, which finds nothing left to do."""
        pool = self.pool
        due = {view.age for view in pool.views if pool.reason(view)}
        first = pool.turn()
        if any(isinstance(action, Halt) for action in first.actions):
            return  # a new master starts, which has everything to do
        failed_to_fork = bool(pool.spawn_errors)
        second = pool.turn()
        assert second.actions == (), "idempotence"
        # A fork that failed is news, and so is a due worker's death: it was killed after the first look.
        is_news = failed_to_fork or any(isinstance(a, Kill) and a.age in due for a in first.actions)
        assert is_news or second.events == (), "idempotence"

    @rule(
        fractions=st.lists(
            st.floats(min_value=0, max_value=1, allow_nan=False, exclude_min=True), min_size=1, max_size=4
        )
    )
    def wake_early_or_in_time(self, fractions: list[float]) -> None:
        for fraction in fractions:
            self.pool.advance(self.pool.wake_in_s * fraction)
            self.look()

    @rule(turns=st.integers(min_value=1, max_value=6))
    def wake_in_time(self, turns: int) -> None:
        for _ in range(turns):
            self.pool.advance(self.pool.wake_in_s)
            self.look()

    @rule(late_s=st.sampled_from([0.5, 1.5, 2.0]))
    def wake_late(self, late_s: float) -> None:
        self.pool.advance(late_s)
        self.look()

    @rule(late_s=st.sampled_from([2.25, 5.0]), turns=st.integers(min_value=1, max_value=8))
    def turns_are_slow(self, late_s: float, turns: int) -> None:
        """The master is late again and again, and the workers run meanwhile."""
        for _ in range(turns):
            self.pool.advance(late_s)
            self.look()

    @rule(gap_s=st.sampled_from([2.5, 10.0, 4000.0]))
    def suspend(self, gap_s: float) -> None:
        """Everything stands still: nobody beats."""
        self.pool.now += gap_s
        self.look()

    # -- workers ---------------------------------------------------------------------------------------------

    def some(self, pick: int, is_one: Callable[[Process], bool]) -> Process | None:
        found = [process for process in self.pool.processes.values() if is_one(process)]
        return found[pick % len(found)] if found else None

    @rule(pick=picks)
    @precondition(has(is_newborn))
    def boot(self, pick: int) -> None:
        if process := self.some(pick, is_newborn):
            self.pool.listens(process, is_ready=True)

    @rule()
    @precondition(has(is_newborn))
    def boot_all(self) -> None:
        for process in [*filter(is_newborn, self.pool.processes.values())]:
            self.pool.listens(process, is_ready=True)

    @rule(pick=picks)
    @precondition(has(is_newborn))
    def probe_fails(self, pick: int) -> None:
        if process := self.some(pick, is_newborn):
            if process.must_prove:
                process.becomes(trouble="health check answered 503")
            else:
                self.pool.listens(process, is_ready=False)

    @rule(pick=picks)
    @precondition(has(is_sick))
    def heal(self, pick: int) -> None:
        if process := self.some(pick, is_sick):
            process.becomes(ready_at=self.pool.now)

    @rule(pick=picks, count=st.integers(min_value=1, max_value=3))
    @precondition(has(is_newborn))
    def boot_fails(self, pick: int, count: int) -> None:
        for _ in range(count):
            if process := self.some(pick, is_newborn):
                self.pool.departs(process, "exit code 3")

    @rule(pick=picks)
    @precondition(has(is_alive))
    def hang(self, pick: int) -> None:
        if process := self.some(pick, is_alive):
            process.is_hung = True

    @rule(pick=picks)
    @precondition(has(is_hung))
    def recover(self, pick: int) -> None:
        if process := self.some(pick, is_hung):
            process.is_hung = False
            process.becomes(beat_at=self.pool.now)

    @rule(pick=picks)
    @precondition(has(is_alive))
    def die(self, pick: int) -> None:
        if process := self.some(pick, is_alive):
            self.pool.departs(process, "signal SIGSEGV")

    @rule(hangs=st.booleans(), after_s=st.sampled_from([0.0, 0.5, 0.9]), turns=st.integers(1, 6))
    def new_code_fails_at_its_first_requests(self, hangs: bool, after_s: float, turns: int) -> None:
        """Newcomers become ready, and then die or hang, as often as they come: nobody leaves for them."""
        pool = self.pool
        pool.room_mib = None
        for process in filter(is_hung, pool.processes.values()):
            process.is_hung = False  # nobody can know of it before its deadline
        self.reload()
        enough = min(pool.target, pool.good())
        for _ in range(turns):
            newcomers = [p for p in pool.processes.values() if p.view.generation == pool.generation]
            for process in filter(is_newborn, newcomers):
                pool.listens(process, is_ready=True)
            self.look()
            pool.advance(after_s)
            for process in [p for p in newcomers if p.view.ready_at is not None and is_alive(p)]:
                if hangs:
                    process.is_hung = True
                else:
                    pool.departs(process, "signal SIGSEGV")
            self.look()
            pool.advance(pool.wake_in_s)
            assert pool.good() >= enough

    @rule(pick=picks)
    @precondition(has(is_leaving))
    def drain_ends(self, pick: int) -> None:
        if process := self.some(pick, is_leaving):
            self.pool.departs(process, "exit code 0")

    @rule(pick=picks)
    @precondition(has(is_killed))
    def kill_ends(self, pick: int) -> None:
        if process := self.some(pick, is_killed):
            self.pool.departs(process, "signal SIGKILL")

    @rule(pick=picks, reason=st.sampled_from(["requests", "memory"]))
    @precondition(has(is_alive))
    def retire(self, pick: int, reason: Reason) -> None:
        if process := self.some(pick, is_alive):
            process.becomes(retire_reason=reason)

    @rule(pick=picks)
    @precondition(has(is_alive))
    def leave_by_itself(self, pick: int) -> None:
        """Somebody else sends the worker SIGTERM."""
        process = self.some(pick, is_alive)
        if process and process.view.draining_at is None:
            process.becomes(draining_at=self.pool.now)

    @rule(pick=picks, mib=st.sampled_from([50, 150, 250, 250]), times=st.integers(min_value=1, max_value=4))
    @precondition(has(is_alive))
    def memory_is_sampled(self, pick: int, mib: int, times: int) -> None:
        if process := self.some(pick, is_alive):
            for _ in range(times):
                limit_bytes = self.pool.policy.memory_limit_bytes
                process.is_sampled(mib=mib, limit_bytes=limit_bytes, now=self.pool.now)

    @rule(room_mib=st.sampled_from([None, 0, 100, 300, 1000]))
    def container_has_memory(self, room_mib: int | None) -> None:
        self.pool.room_mib = room_mib

    # -- the operator and the machine ------------------------------------------------------------------------

    @rule(workers=st.integers(min_value=0, max_value=6))
    def scale(self, workers: int) -> None:
        self.pool.target = workers

    @rule()
    def reload(self) -> None:
        self.pool.ask_for_reload()
        self.pool.open_generation()

    @rule(policy=policies)
    def reload_with_other_options(self, policy: RolloutPolicy) -> None:
        self.pool.policy = policy
        self.reload()

    @rule()
    def ask_for_reload(self) -> None:
        self.pool.ask_for_reload()

    @rule(has_failed=st.booleans())
    @precondition(is_awaiting)
    def reload_comes_to_an_end(self, has_failed: bool) -> None:
        if has_failed:
            self.pool.state = history.settle_reload(self.pool.state, failure="SyntaxError")
        else:
            self.pool.open_generation()

    @rule()
    def restart(self) -> None:
        self.pool.restart()

    @rule()
    def pause(self) -> None:
        self.pool.order(self.pool.state.orders.pause())

    @rule()
    @precondition(is_paused)
    def resume(self) -> None:
        self.pool.order(self.pool.state.orders.resume())

    @rule()
    def abort(self) -> None:
        self.pool.abort()

    @rule(pick=picks)
    @precondition(has(is_alive))
    def stop_worker(self, pick: int) -> None:
        if process := self.some(pick, is_alive):
            self.pool.order(self.pool.state.orders.stop(process.view.age))
            self.pool.ordered.add(process.view.age)

    @rule(is_broken=st.booleans())
    def fork_breaks_or_heals(self, is_broken: bool) -> None:
        self.pool.has_fork_trouble = is_broken

    @rule(is_quick=st.booleans(), picked=st.lists(picks, max_size=4))
    def stop_server(self, is_quick: bool, picked: list[int]) -> None:
        """Some leave when asked and some do not; in the end, all are gone, and a new server starts."""
        pool = self.pool
        pool.stop = Stop(began_at=pool.now)
        pool.turn()
        for pick in picked:
            if process := self.some(pick, is_leaving):
                pool.departs(process, "exit code 0")
        if is_quick:
            pool.stop = replace(pool.stop, quick_at=pool.now)
        for _ in range(FAIR_TURNS):
            pool.turn()
            for process in [*filter(is_killed, pool.processes.values())]:
                pool.departs(process, "signal SIGKILL")
            if not pool.processes:
                break
            pool.advance(pool.wake_in_s)
        assert not pool.processes, "no end of the stop"
        pool.start()

    # -- a fair world ----------------------------------------------------------------------------------------

    @rule()
    def fair_world_in_a_pause(self) -> None:
        """Everything goes well, and nobody is replaced: the pool is whole all the same, and stands still."""
        pool = self.pool
        pool.has_fork_trouble = False
        for _ in range(FAIR_TURNS):
            pool.order(pool.state.orders.pause())  # once more: after a halt it is another server
            for process in list(pool.processes.values()):
                self.treat_fairly(process)
            pool.advance(pool.wake_in_s)
            if not pool.turn().actions and pool.is_whole():
                break
        assert pool.is_whole(), f"not whole: {pool.observe()}"
        assert pool.turn().actions == ()
        pool.order(pool.state.orders.resume())

    @rule()
    def fair_world(self) -> None:
        """From here on everything goes well: the pool becomes what is wanted, and stays it."""
        pool = self.pool
        kept = pool.policy
        pool.order(pool.state.orders.resume())
        if pool.state.orders.awaiting:
            pool.open_generation()
        pool.policy = replace(kept, refresh_interval_s=0.0, memory_limit_bytes=0)
        pool.has_fork_trouble = False
        pool.room_mib = None
        for _ in range(FAIR_TURNS):
            for process in list(pool.processes.values()):
                self.treat_fairly(process)
            pool.advance(pool.wake_in_s)
            pool.turn()
            if pool.is_settled():
                break
        assert pool.is_settled(), f"no end: {pool.observe()}"
        assert pool.turn() == Plan(
            actions=(), events=(), state=replace(pool.state, turn_at=pool.now), wake_in_s=pool.wake_in_s
        )
        assert pool.state.phase == "idle"
        pool.policy = kept

    def treat_fairly(self, process: Process) -> None:
        view = process.view
        process.is_hung = False
        if view.killed_at is not None:
            self.pool.departs(process, "signal SIGKILL")
        elif view.draining_at is not None:
            self.pool.departs(process, "exit code 0")
        elif view.listening_at is None:
            self.pool.listens(process, is_ready=True)
        elif view.ready_at is None:
            process.becomes(ready_at=self.pool.now)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.fair_world()


TestRollout = RolloutMachine.TestCase
TestRollout.settings = settings(
    max_examples=1000,
    stateful_step_count=30,
    deadline=None,
    derandomize=False,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
