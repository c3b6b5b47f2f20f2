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

from airflow_arbiter.pool import (
    Action,
    Departure,
    Drain,
    Halt,
    Kill,
    Plan,
    PoolView,
    Reason,
    RolloutPolicy,
    RolloutState,
    Spawn,
    WorkerView,
)
from airflow_arbiter.rollout import plan

SUSPENDED_AFTER_S = 2.0
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
            killed_at=old.killed_at if killed_at is None else killed_at,
            retire_reason=old.retire_reason or retire_reason,
            trouble=old.trouble if trouble is None else trouble,
        )


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
        self.resumed_at = float("-inf")
        self.has_listened = False

    # -- facts, worked out from what is there ----------------------------------------------------------------

    @property
    def views(self) -> list[WorkerView]:
        return [process.view for process in self.processes.values()]

    def heard_at(self, worker: WorkerView) -> float:
        return max(at for at in (worker.spawned_at, worker.listening_at, worker.beat_at) if at is not None)

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
        if worker.generation != self.generation:
            return "generation"
        if worker.retire_reason:
            return worker.retire_reason
        interval_s = self.policy.refresh_interval_s
        if interval_s and worker.ready_at is not None:
            life_s = interval_s * (1 + worker.jitter * self.policy.refresh_jitter)
            if worker.ready_at + life_s <= self.now:
                return "age"
        return None

    def missed(self, worker: WorkerView) -> set[str]:
        """The deadlines that the worker has missed; time in which nobody ran does not count."""
        missed = set()

        def is_past(start: float, limit_s: float) -> bool:
            return max(start, self.resumed_at) + limit_s <= self.now

        if worker.draining_at is not None and is_past(worker.draining_at, self.policy.drain_timeout_s):
            missed.add("drain")
        if worker.listening_at is None:
            if is_past(worker.spawned_at, self.policy.boot_timeout_s):
                missed.add("boot")
        elif self.policy.heartbeat_timeout_s and is_past(
            self.heard_at(worker), self.policy.heartbeat_timeout_s
        ):
            missed.add("heartbeat")
        return missed

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
        )

    def turn(self) -> Plan:
        """Observe, decide, act; and hold the plan against the promises."""
        if self.looked_at is not None and self.now - self.looked_at > SUSPENDED_AFTER_S:
            self.resumed_at = self.now
        self.looked_at = self.now
        seen, again = self.observe(), self.observe()
        self.departures, self.spawn_errors = [], []
        result = plan(seen, self.policy)
        assert plan(again, self.policy) == result, "equal views, other plans"
        self.has_listened |= any(
            worker.listening_at is not None
            for worker in (*seen.workers, *(gone.worker for gone in seen.departures))
        )
        self.check(seen, result)
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
        spawns = [action for action in result.actions if isinstance(action, Spawn)]
        named = [(action.age, action.pid) for action in drains] + [
            (action.age, action.pid) for action in kills
        ]
        assert all(workers[age].pid == pid for age, pid in named)
        if self.check_halt(seen, result):
            return
        self.check_kills(workers, kills)
        self.check_drains(workers, drains, {kill.age for kill in kills})
        named_ages = {age for age, _ in named}
        staying = [view for view in seen.workers if view.draining_at is None and view.killed_at is None]
        left = sum(view.age not in named_ages for view in staying)
        self.check_spawns(seen, result, spawns, left)

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

    def check_kills(self, workers: dict[int, WorkerView], kills: list[Kill]) -> None:
        overdue = {
            worker.age: self.missed(worker)
            for worker in workers.values()
            if worker.killed_at is None and self.missed(worker)
        }
        assert sorted(kill.age for kill in kills) == sorted(overdue), (
            "killed are those that missed a deadline"
        )
        for kill in kills:
            assert any(f"its {deadline} deadline" in kill.cause for deadline in overdue[kill.age])
            assert kill.age not in self.killed, "killed twice"
            self.killed.add(kill.age)

    def check_drains(self, workers: dict[int, WorkerView], drains: list[Drain], killed: set[int]) -> None:
        ages = [drain.age for drain in drains]
        assert len(set(ages)) == len(ages)
        assert not self.drained.intersection(ages), "asked to leave twice"
        self.drained.update(ages)
        assert all(workers[age].draining_at is None and workers[age].killed_at is None for age in ages)
        assert not killed.intersection(ages), "asked and killed at once"

        carrying = {worker.age for worker in workers.values() if self.carries(worker)}
        assert not carrying & killed, "a kill takes no capacity"
        taken = carrying.intersection(ages)
        assert not taken or len(carrying - taken) >= self.target, "capacity floor"

        reasons = {age: self.reason(workers[age]) for age in workers}
        for drain in drains:
            if drain.reason in {"scale", "surplus"}:
                assert reasons[drain.age] is None
                assert (drain.age in carrying) == (drain.reason == "scale")
            else:
                assert reasons[drain.age] == drain.reason
        due = {age for age in carrying if reasons[age]}
        assert_oldest(taken & due, due)
        assert_oldest(taken - due, carrying - due)
        assert not taken - due or due <= taken, "the due leave before the rest"

    def check_spawns(self, seen: PoolView, result: Plan, spawns: list[Spawn], staying: int) -> None:
        assert len(spawns) <= 1
        count = spawns[0].count if spawns else 0
        live = len(seen.workers) + count
        ceiling = self.target + min(self.policy.surge, self.target)
        has_proved = any(worker.ready_at is not None for worker in seen.workers) or result.state.has_proved
        assert not spawns or (count > 0 and spawns[0].must_prove == has_proved)
        assert not count or live <= ceiling, "process ceiling"
        assert self.has_listened or not count or live == 1, "the first worker goes ahead alone"
        is_waiting = self.now < result.state.retry_at
        assert not (is_waiting and count), "a backoff is a wait"
        if not is_waiting and self.has_listened:
            assert staying + count >= self.target or live >= ceiling, "what is missing is spawned"

    def is_settled(self) -> bool:
        """Whether the pool is as wanted, and knows it."""
        views = self.views
        return (
            len(views) == self.target
            and all(self.carries(worker) and self.reason(worker) is None for worker in views)
            and self.state.progress is None
        )


def assert_oldest(taken: set[int], candidates: set[int]) -> None:
    """FIFO: who leaves is older than whoever stays."""
    assert sorted(taken) == sorted(candidates)[: len(taken)], "oldest first"


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

    @rule(pick=picks, reason=st.sampled_from(["requests", "memory", "command"]))
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

    # -- the operator and the machine ------------------------------------------------------------------------

    @rule(workers=st.integers(min_value=0, max_value=6))
    def scale(self, workers: int) -> None:
        self.pool.target = workers

    @rule()
    def reload(self) -> None:
        self.pool.generation += 1

    @rule(policy=policies)
    def reload_with_other_options(self, policy: RolloutPolicy) -> None:
        self.pool.policy = policy
        self.pool.generation += 1

    @rule(is_broken=st.booleans())
    def fork_breaks_or_heals(self, is_broken: bool) -> None:
        self.pool.has_fork_trouble = is_broken

    # -- a fair world ----------------------------------------------------------------------------------------

    @rule()
    def fair_world(self) -> None:
        """From here on everything goes well: the pool becomes what is wanted, and stays it."""
        pool = self.pool
        kept, pool.policy = pool.policy, replace(pool.policy, refresh_interval_s=0.0)
        pool.has_fork_trouble = False
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
