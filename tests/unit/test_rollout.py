"""The planner by tables: each id states a rule, and each case compares a whole plan."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from harness.planning import (
    HOURLY,
    NEW,
    NOW,
    POLICY,
    SERVED,
    booting,
    completed,
    decision,
    delayed,
    drain,
    due,
    exited,
    kill,
    killed,
    leaving,
    listening,
    look,
    ready,
    rolling,
    spawn,
    stalled,
    started,
    struck,
    under_way,
)

from airflow_arbiter.orders import Orders
from airflow_arbiter.pool import (
    Action,
    Backoff,
    Departure,
    Drain,
    Dump,
    Event,
    Gap,
    Halt,
    Kill,
    Plan,
    PoolView,
    Progress,
    Quit,
    RolloutPolicy,
    RolloutState,
    Spawn,
    Stop,
    WorkerView,
)
from airflow_arbiter.rollout import plan

# -- start
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(
            look(target=4, state=NEW),
            decision(Spawn(count=1, must_prove=False), state=NEW),
            id="the-first-worker-goes-ahead-alone",
        ),
        pytest.param(
            look(booting(1), target=4, state=NEW),
            decision(state=NEW),
            id="nobody-follows-while-it-boots",
        ),
        pytest.param(
            look(killed(booting(1)), target=4, state=NEW),
            decision(state=NEW),
            id="nobody-follows-while-its-corpse-is-there",
        ),
        pytest.param(
            look(listening(1), target=4, state=NEW),
            decision(Spawn(count=3, must_prove=False), state=replace(NEW, has_served=True)),
            id="the-rest-follow-once-it-listens,-and-need-not-prove-what-nobody-has",
        ),
        pytest.param(
            look(ready(1), target=4, state=NEW),
            decision(spawn(3), state=replace(NEW, has_served=True, has_proved=True)),
            id="the-rest-prove-themselves-once-one-has-been-ready",
        ),
        pytest.param(
            look(target=4, departures=(Departure(worker=ready(1), cause="exit code 1"),), state=NEW),
            decision(
                spawn(4),
                state=replace(
                    NEW,
                    has_served=True,
                    has_proved=True,
                ),
                events=(exited(Departure(worker=ready(1), cause="exit code 1")),),
            ),
            id="a-first-worker-that-served-and-died-late-is-no-reason-to-halt",
        ),
        pytest.param(
            look(target=2, state=NEW, departures=(Departure(worker=booting(1), cause="exit code 3"),)),
            decision(
                Halt(cause="exit code 3"),
                state=replace(NEW, boot_backoff=struck(1, 1, "worker 1 exit code 3")),
                events=(exited(Departure(worker=booting(1), cause="exit code 3")),),
            ),
            id="halt-when-nothing-has-ever-served-and-the-first-worker-cannot-boot",
        ),
        pytest.param(
            look(
                target=2,
                state=NEW,
                departures=(Departure(worker=leaving(booting(1)), cause="exit code 0"),),
            ),
            decision(
                Spawn(count=1, must_prove=False),
                state=NEW,
                events=(exited(Departure(worker=leaving(booting(1)), cause="exit code 0"), is_error=False),),
            ),
            id="no-halt-when-the-first-worker-was-asked-to-leave",
        ),
        pytest.param(
            look(target=2, state=NEW, spawn_errors=("no memory",)),
            decision(
                state=replace(NEW, boot_backoff=struck(1, 1, "could not be spawned: no memory")),
            ),
            id="a-fork-that-fails-is-tried-again,-not-a-reason-to-halt",
        ),
        pytest.param(
            look(booting(1, since=NOW - 120, trouble="not probed yet"), target=2, state=NEW),
            decision(Dump(pid=101, age=1), state=NEW),
            id="a-first-worker-that-hangs-meets-its-boot-deadline",
        ),
    ],
)
def test_start(seen: PoolView, expected: Plan) -> None:
    """One worker shows that the app boots; then the rest come."""
    assert plan(seen, POLICY) == expected


# -- steady
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "policy"),
    [
        pytest.param(look(ready(1), ready(2), target=2), POLICY, id="all-are-ready"),
        pytest.param(look(ready(1), booting(2), target=2), POLICY, id="the-missing-one-boots"),
        pytest.param(look(listening(1), listening(2), target=2), POLICY, id="a-sick-worker-holds-its-place"),
        pytest.param(look(target=0), POLICY, id="none-is-wanted"),
        pytest.param(look(ready(1, since=901), target=1), HOURLY, id="the-age-is-not-reached"),
        pytest.param(
            look(ready(1, beat_at=0.0), target=1),
            RolloutPolicy(heartbeat_timeout_s=0),
            id="heartbeat-0-is-never",
        ),
        pytest.param(look(ready(2), ready(1), killed(ready(3)), target=2), POLICY, id="a-corpse-waits"),
    ],
)
def test_steady_pool_does_nothing(seen: PoolView, policy: RolloutPolicy) -> None:
    """Where nothing is missing, due or late, nothing is done, and we look again in a second."""
    assert plan(seen, policy) == decision()


# -- due
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "generation", "policy", "reason"),
    [
        pytest.param(ready(1, since=900), 1, HOURLY, "age", id="age-counts-from-ready"),
        pytest.param(
            ready(1, since=895, jitter=0.5),
            1,
            replace(HOURLY, refresh_jitter=0.1),
            "age",
            id="luck-of-a-half-adds-a-half-of-the-jitter",
        ),
        pytest.param(ready(1), 2, POLICY, "generation", id="an-older-generation-is-due"),
        pytest.param(due(1), 1, POLICY, "requests", id="a-worker-may-ask,-requests"),
        pytest.param(ready(1, retire_reason="memory"), 1, POLICY, "memory", id="a-worker-may-ask,-memory"),
        pytest.param(due(1), 2, HOURLY, "generation", id="generation-wins-over-what-was-asked"),
        pytest.param(due(1), 1, HOURLY, "requests", id="what-was-asked-wins-over-age"),
    ],
)
def test_due_worker_gets_a_successor(
    worker: WorkerView, generation: int, policy: RolloutPolicy, reason: str
) -> None:
    """Each reason opens a rollout with one successor, and takes nobody away yet."""
    assert plan(look(worker, target=1, generation=generation), policy) == rolling(
        spawn(1), since=NOW, events=(started(1, reason, 1),)
    )


@pytest.mark.parametrize(
    ("worker", "generation", "policy"),
    [
        pytest.param(ready(1, since=900), 1, HOURLY, id="age"),
        pytest.param(due(1), 1, POLICY, id="requests"),
        pytest.param(ready(1, retire_reason="memory"), 1, POLICY, id="memory"),
        pytest.param(ready(1, retire_reason="command"), 1, POLICY, id="command"),
        pytest.param(ready(1), 2, POLICY, id="generation"),
        pytest.param(booting(1), 2, POLICY, id="generation-while-booting"),
    ],
)
def test_surge_0_turns_replacement_off(worker: WorkerView, generation: int, policy: RolloutPolicy) -> None:
    """With surge 0 no reason makes a worker due, not even where another is to spare."""
    seen = look(worker, ready(2, generation=generation, since=950), target=2, generation=generation)
    assert plan(seen, replace(policy, surge=0)) == decision()


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        pytest.param(890.25, decision(wake_in_s=0.25), id="not-before-its-luck-is-used-up"),
        pytest.param(890.0, rolling(spawn(1), since=NOW, events=(started(1, "age", 1),)), id="then-at-once"),
    ],
)
def test_jitter_delays_the_age(since: float, expected: Plan) -> None:
    """A worker with all the luck is due at the interval and the whole jitter."""
    policy = RolloutPolicy(refresh_interval_s=80.0, refresh_jitter=0.5)
    assert plan(look(ready(1, since=since, jitter=0.75), target=1), policy) == expected


# -- a rollout
# --------------------------------------------------------------------------------------------------

OLD = (due(1), due(2), due(3), due(4))
DEAD = Departure(worker=due(2), cause="signal SIGSEGV")


@pytest.mark.parametrize(
    ("seen", "policy", "expected"),
    [
        pytest.param(
            look(*OLD, target=4),
            POLICY,
            rolling(spawn(1), since=NOW, events=(started(4, "requests", 4),)),
            id="surge-1-spawns-one",
        ),
        pytest.param(
            look(*OLD, target=4),
            RolloutPolicy(surge=2),
            rolling(spawn(2), since=NOW, events=(started(4, "requests", 4),)),
            id="surge-2-spawns-two",
        ),
        pytest.param(
            look(*OLD, target=4),
            RolloutPolicy(surge=4),
            rolling(spawn(4), since=NOW, events=(started(4, "requests", 4),)),
            id="surge-4-spawns-four",
        ),
        pytest.param(
            look(*OLD, target=4),
            RolloutPolicy(surge=9),
            rolling(spawn(4), since=NOW, events=(started(4, "requests", 4),)),
            id="never-more-surge-than-workers-wanted",
        ),
        pytest.param(
            look(due(1), ready(2), ready(3), target=3),
            RolloutPolicy(surge=3),
            rolling(spawn(1), since=NOW, events=(started(1, "requests", 3),)),
            id="one-successor-for-one-due",
        ),
        pytest.param(
            look(*OLD, booting(5), target=4, state=under_way()),
            POLICY,
            rolling(),
            id="nobody-leaves-while-the-newcomer-boots",
        ),
        pytest.param(
            look(*OLD, listening(5), target=4, state=under_way()),
            POLICY,
            rolling(),
            id="nobody-leaves-while-the-newcomer-is-not-ready",
        ),
        pytest.param(
            look(*OLD, ready(5), target=4, state=under_way()),
            POLICY,
            rolling(drain(1)),
            id="the-spare-worker-pays-for-the-oldest",
        ),
        pytest.param(
            look(due(4), ready(5), due(2), due(3), due(1), target=4, state=under_way()),
            POLICY,
            rolling(drain(1)),
            id="oldest-is-by-age,-whatever-the-order-of-the-view",
        ),
        pytest.param(
            look(ready(1), ready(2), due(3), due(4), ready(5), target=4, state=under_way()),
            POLICY,
            rolling(drain(3)),
            id="the-oldest-due-leaves,-not-the-oldest",
        ),
        pytest.param(
            look(*OLD, ready(5), ready(6), target=4, state=under_way()),
            RolloutPolicy(surge=2),
            rolling(drain(1), drain(2)),
            id="two-spare-pay-for-the-two-oldest",
        ),
        pytest.param(
            look(*OLD, ready(5), booting(6), target=4, state=under_way()),
            RolloutPolicy(surge=2),
            rolling(drain(1)),
            id="only-the-ready-ones-pay",
        ),
        pytest.param(
            look(leaving(due(1)), *OLD[1:], ready(5), target=4, state=under_way()),
            POLICY,
            rolling(),
            id="a-leaving-worker-is-live,-so-its-place-is-not-free",
        ),
        pytest.param(
            look(leaving(due(1)), *OLD[1:], ready(5), target=4, state=under_way()),
            RolloutPolicy(surge=2),
            rolling(spawn(1)),
            id="a-leaving-worker-takes-one-of-two-places",
        ),
        pytest.param(
            look(killed(due(1)), *OLD[1:], ready(5), target=4, state=under_way()),
            POLICY,
            rolling(),
            id="a-killed-worker-is-live-until-it-is-gone",
        ),
        pytest.param(
            look(
                *OLD[1:],
                ready(5),
                target=4,
                state=under_way(),
                departures=(Departure(worker=leaving(due(1)), cause="exit code 0"),),
            ),
            POLICY,
            rolling(
                spawn(1),
                replaced=1,
                events=(
                    exited(
                        Departure(worker=leaving(due(1)), cause="exit code 0"),
                        reason="requests",
                        is_error=False,
                    ),
                ),
            ),
            id="the-next-successor-comes-when-it-is-gone",
        ),
        pytest.param(
            look(
                *(ready(age) for age in (5, 6, 7, 8)),
                target=4,
                state=under_way(NOW - 90.5, replaced=3),
                departures=(Departure(worker=leaving(due(4)), cause="exit code 0"),),
            ),
            POLICY,
            decision(
                events=(
                    exited(
                        Departure(worker=leaving(due(4)), cause="exit code 0"),
                        reason="requests",
                        is_error=False,
                    ),
                    completed(4, 90.5),
                )
            ),
            id="it-is-complete-when-the-last-is-gone",
        ),
        pytest.param(
            look(leaving(due(1)), ready(2), target=1, state=under_way()),
            POLICY,
            rolling(),
            id="it-is-not-complete-while-the-last-leaves",
        ),
        pytest.param(
            look(leaving(ready(1)), ready(2), target=2, state=under_way()),
            POLICY,
            rolling(spawn(1)),
            id="who-leaves-does-not-complete-it",
        ),
        pytest.param(
            look(due(1), ready(3), target=2, state=under_way(), departures=(DEAD,)),
            POLICY,
            rolling(spawn(1), events=(exited(DEAD, reason="requests"),)),
            id="a-due-worker-that-dies-by-itself-was-not-replaced",
        ),
        pytest.param(
            look(due(1), due(2), target=1, state=under_way()),
            RolloutPolicy(surge=3),
            rolling(drain(1)),
            id="scaled-below-the-surge-it-is-lowered-too",
        ),
        pytest.param(
            look(booting(2), target=1, state=under_way(replaced=1)),
            POLICY,
            rolling(replaced=1),
            id="it-is-not-complete-below-target",
        ),
        pytest.param(
            look(due(1), booting(2, generation=0), target=2, state=under_way()),
            POLICY,
            rolling(drain(2, "generation"), spawn(1)),
            id="a-due-worker-that-does-not-listen-is-removed-without-budget",
        ),
    ],
)
def test_rollout(seen: PoolView, policy: RolloutPolicy, expected: Plan) -> None:
    """One for one, oldest first, paid for by spare workers, within target and surge."""
    assert plan(seen, policy) == expected


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        pytest.param(NOW - 9.75, rolling(wake_in_s=0.25), id="ready-is-not-yet-available"),
        pytest.param(NOW - 10, rolling(drain(1)), id="available-after-min-ready-seconds"),
    ],
)
def test_min_ready(since: float, expected: Plan) -> None:
    """A newcomer counts as capacity only when it has been ready for a while."""
    seen = look(due(1), ready(2, since=since), target=1, state=under_way())
    assert plan(seen, RolloutPolicy(min_ready_s=10)) == expected


def test_silent_worker_is_no_capacity() -> None:
    """After a suspension a worker that has not beaten again pays for no drain, and is not killed either."""
    state = replace(under_way(), gaps=(Gap(since=NOW - 41, until=NOW - 1),))
    seen = look(due(1), ready(2, beat_at=NOW - 40), target=1, state=state)
    assert plan(seen, POLICY) == decision(state=state)


def test_the_worked_example() -> None:
    """Four due workers and surge 1 roll as the comment above `plan` says, each step a whole plan."""
    state = SERVED
    workers = {age: due(age) for age in (1, 2, 3, 4)}
    told: list[tuple[tuple[Action, ...], tuple[str, ...]]] = []
    departures: tuple[Departure, ...] = ()
    for step in range(1, 14):
        now = NOW + step
        seen = look(
            *(replace(worker, beat_at=now) for worker in workers.values()),
            target=4,
            state=state,
            now=now,
            departures=departures,
        )
        result = plan(seen, POLICY)
        state, departures = result.state, ()
        told.append((result.actions, tuple(event.name for event in result.events)))
        for age in [age for age, worker in workers.items() if worker.draining_at is not None]:
            departures += (Departure(worker=workers.pop(age), cause="exit code 0"),)
        for action in result.actions:
            if isinstance(action, Spawn):
                age = max(workers) + 1
                workers[age] = ready(age, since=now)
            if isinstance(action, Drain):
                workers[action.age] = leaving(workers[action.age], since=now)
    nothing: tuple[tuple[Action, ...], tuple[str, ...]] = ((), ())
    assert told == [
        ((spawn(1),), ("rollout.started",)),
        ((drain(1),), ()),
        nothing,
        ((spawn(1),), ("worker.exited",)),
        ((drain(2),), ()),
        nothing,
        ((spawn(1),), ("worker.exited",)),
        ((drain(3),), ()),
        nothing,
        ((spawn(1),), ("worker.exited",)),
        ((drain(4),), ()),
        nothing,
        ((), ("worker.exited", "rollout.completed")),
    ]


# -- probation
# --------------------------------------------------------------------------------------------------

FIRST_CODE = (ready(1), ready(2), ready(3), ready(4))
NEXT = booting(6, generation=2)


def new_code(age: int, *, ready_s: float, heard_s: float = 0.0) -> WorkerView:
    """A newcomer of generation 2, ready for a while, and heard of last a while ago."""
    return ready(age, generation=2, since=NOW - ready_s, beat_at=NOW - heard_s)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(
            look(*FIRST_CODE, new_code(5, ready_s=0.875), NEXT, target=4, generation=2, state=under_way()),
            rolling(wake_in_s=0.125),
            id="nobody-leaves-for-new-code-that-has-just-become-ready",
        ),
        pytest.param(
            look(*FIRST_CODE, new_code(5, ready_s=1), NEXT, target=4, generation=2, state=under_way()),
            rolling(drain(1, "generation"), wake_in_s=0.125),
            id="one-leaves-for-who-has-served-for-a-second",
        ),
        pytest.param(
            look(
                *FIRST_CODE,
                new_code(5, ready_s=9, heard_s=8.5),
                NEXT,
                target=4,
                generation=2,
                state=under_way(),
            ),
            rolling(wake_in_s=0.125),
            id="nobody-leaves-for-who-has-hung-since",
        ),
        pytest.param(
            look(
                *FIRST_CODE,
                new_code(5, ready_s=1.25),
                new_code(6, ready_s=0.5),
                target=4,
                generation=2,
                state=under_way(),
            ),
            rolling(drain(1, "generation"), wake_in_s=0.125),
            id="the-second-newcomer-is-on-probation-too",
        ),
        pytest.param(
            look(
                *FIRST_CODE,
                new_code(5, ready_s=1.5),
                new_code(6, ready_s=0),
                target=4,
                generation=2,
                state=under_way(),
            ),
            rolling(drain(1, "generation"), drain(2, "generation")),
            id="until-the-first-has-shown-that-the-code-can-serve",
        ),
        pytest.param(
            look(due(1), ready(2), ready(3, since=NOW), target=2, state=under_way()),
            rolling(drain(1)),
            id="code-that-serves-already-needs-no-probation",
        ),
        pytest.param(
            look(
                ready(1),
                ready(2, since=NOW),
                target=1,
                state=replace(under_way(), orders=Orders(restart_age=1)),
            ),
            decision(wake_in_s=0.125, state=replace(under_way(), orders=Orders(restart_age=1))),
            id="a-restart-may-bring-new-code",
        ),
        pytest.param(
            look(
                due(1),
                ready(2, since=NOW - 59),
                ready(3, since=NOW - 59.5),
                target=1,
                state=replace(under_way(), crash_backoff=struck(1, 0, "worker 4 signal SIGSEGV")),
            ),
            decision(
                state=replace(under_way(), crash_backoff=struck(1, 0, "worker 4 signal SIGSEGV")),
            ),
            id="after-an-early-death-it-takes-a-minute,-for-each-of-them",
        ),
        pytest.param(
            look(
                due(1),
                ready(2, since=NOW - 60),
                target=1,
                state=replace(under_way(), crash_backoff=struck(1, 0, "worker 4 signal SIGSEGV")),
            ),
            decision(
                drain(1),
                state=replace(under_way(), crash_backoff=struck(1, 0, "worker 4 signal SIGSEGV")),
            ),
            id="which-a-minute-pays-for",
        ),
        pytest.param(
            look(
                due(1),
                ready(2, since=NOW - 60),
                ready(3, since=NOW),
                target=2,
                state=replace(
                    under_way(), crash_backoff=Backoff(strikes=4, struck_at=NOW - 61, retry_at=NOW - 53)
                ),
            ),
            rolling(drain(1)),
            id="until-one-that-came-after-it-has-outlived-it",
        ),
    ],
)
def test_probation(seen: PoolView, expected: Plan) -> None:
    """Newcomers pay for who leaves once they have shown, for a while, that they can serve."""
    assert plan(seen, RolloutPolicy(surge=2)) == expected


# -- deadlines
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "policy", "expected"),
    [
        pytest.param(
            look(ready(1), booting(2, since=NOW - 120), target=2),
            POLICY,
            decision(kill(2, "missed its boot deadline of 120 s"), spawn(1)),
            id="boot-deadline",
        ),
        pytest.param(
            look(ready(1), booting(2, since=NOW - 120, trouble="health check answered 503"), target=2),
            POLICY,
            decision(kill(2, "missed its boot deadline of 120 s: health check answered 503"), spawn(1)),
            id="boot-deadline-with-its-trouble",
        ),
        pytest.param(
            look(ready(1), booting(2, since=NOW - 119.5), target=2),
            POLICY,
            decision(wake_in_s=0.5),
            id="not-before-the-boot-deadline",
        ),
        pytest.param(
            look(ready(1), ready(2, beat_at=NOW - 30), target=2),
            POLICY,
            decision(kill(2, "missed its heartbeat deadline of 30 s"), spawn(1)),
            id="heartbeat-deadline",
        ),
        pytest.param(
            look(ready(1), ready(2, beat_at=NOW - 29.75), target=2),
            POLICY,
            decision(wake_in_s=0.25),
            id="not-before-the-heartbeat-deadline",
        ),
        pytest.param(
            look(ready(1), replace(ready(2, since=NOW - 30), beat_at=None), target=2),
            POLICY,
            decision(kill(2, "missed its heartbeat deadline of 30 s"), spawn(1)),
            id="who-never-beat-is-heard-when-it-began-to-listen",
        ),
        pytest.param(
            look(ready(1), listening(2, beat_at=NOW - 30), target=2),
            POLICY,
            decision(kill(2, "missed its heartbeat deadline of 30 s"), spawn(1)),
            id="a-sick-worker-has-to-beat-too",
        ),
        pytest.param(
            look(ready(1), leaving(ready(2), since=NOW - 30), target=1),
            POLICY,
            decision(kill(2, "missed its drain deadline of 30 s")),
            id="drain-deadline",
        ),
        pytest.param(
            look(ready(1), leaving(ready(2), since=NOW - 29.5), target=1),
            POLICY,
            decision(wake_in_s=0.5),
            id="not-before-the-drain-deadline",
        ),
        pytest.param(
            look(ready(1), leaving(ready(2), since=NOW), target=1),
            RolloutPolicy(drain_timeout_s=0),
            decision(kill(2, "missed its drain deadline of 0 s")),
            id="drain-0-gives-no-time",
        ),
        pytest.param(
            look(ready(1), leaving(ready(2, beat_at=NOW - 30), since=NOW - 5), target=1),
            POLICY,
            decision(kill(2, "missed its heartbeat deadline of 30 s")),
            id="a-leaving-worker-has-to-beat-too",
        ),
        pytest.param(
            look(ready(1), leaving(booting(2, since=NOW - 120), since=NOW - 5), target=1),
            POLICY,
            decision(kill(2, "missed its boot deadline of 120 s")),
            id="a-leaving-worker-that-boots-has-its-boot-deadline",
        ),
        pytest.param(
            look(ready(1), killed(leaving(ready(2, beat_at=0), since=0), since=NOW - 9), target=1),
            POLICY,
            decision(),
            id="kill-once",
        ),
        pytest.param(
            look(*(ready(age, beat_at=0) for age in (1, 2)), target=2),
            POLICY,
            decision(
                kill(1, "missed its heartbeat deadline of 30 s"),
                kill(2, "missed its heartbeat deadline of 30 s"),
                spawn(1),
            ),
            id="who-is-killed-is-still-live,-so-only-the-surge-comes-at-once",
        ),
        pytest.param(
            look(ready(1), booting(2, since=0), target=1),
            POLICY,
            decision(kill(2, "missed its boot deadline of 120 s")),
            id="kill-comes-before-surplus",
        ),
    ],
)
def test_deadlines(seen: PoolView, policy: RolloutPolicy, expected: Plan) -> None:
    """Startup, heartbeat and drain each have a deadline; who misses it tells its stacks, and dies."""
    assert_ends(seen, policy, expected)


def assert_ends(seen: PoolView, policy: RolloutPolicy, expected: Plan) -> None:
    """Hold the plan against the expected one, in which kills stand for what takes two steps."""
    kills = [action for action in expected.actions if isinstance(action, Kill)]
    dumps = [Dump(pid=kill.pid, age=kill.age) for kill in kills]
    first = plan(seen, policy)
    assert first == replace(expected, actions=(*dumps, *expected.actions[len(kills) :]))

    def after(seconds: float) -> list[Action]:
        ages = {kill.age for kill in kills}
        workers = tuple(replace(w, dumped_at=NOW) if w.age in ages else w for w in seen.workers)
        later = replace(seen, workers=workers, state=first.state, now=NOW + seconds)
        return [action for action in plan(later, policy).actions if isinstance(action, (Dump, Kill))]

    if kills:
        assert after(0.25) == []
        assert after(0.5) == kills


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(
            look(ready(1), replace(ready(2, beat_at=NOW - 40), dumped_at=NOW - 0.25), target=2),
            decision(spawn(1), wake_in_s=0.25),
            id="it-gets-half-a-second",
        ),
        pytest.param(
            look(ready(1), replace(ready(2), dumped_at=NOW - 5), target=2),
            decision(),
            id="who-beats-again-meanwhile-stays",
        ),
        pytest.param(
            look(ready(1), replace(ready(2, beat_at=NOW - 30), dumped_at=NOW - 50), target=2),
            decision(Dump(pid=102, age=2), spawn(1)),
            id="an-old-answer-is-no-answer",
        ),
        pytest.param(
            look(
                ready(1),
                replace(leaving(ready(2, beat_at=NOW - 30.5), since=NOW - 30.25), dumped_at=NOW - 0.5),
                target=1,
            ),
            decision(kill(2, "missed its heartbeat deadline of 30 s")),
            id="a-second-deadline-meanwhile-does-not-ask-again",
        ),
    ],
)
def test_stacks_before_a_kill(seen: PoolView, expected: Plan) -> None:
    """A worker that is to be killed is asked for its stacks once, and gets half a second."""
    assert plan(seen, POLICY) == expected


# -- memory
# --------------------------------------------------------------------------------------------------

MIB = 2**20
LIMITED = RolloutPolicy(memory_limit_bytes=300 * MIB)


def holding(
    worker: WorkerView, mib: int, *, samples_over: int = 0, over_since: float = math.inf
) -> WorkerView:
    """A worker whose private memory was sampled."""
    return replace(worker, private_bytes=mib * MIB, samples_over=samples_over, over_since=over_since)


def fat(age: int, *, over_since: float = NOW - 30, samples_over: int = 3) -> WorkerView:
    """A worker of a good age that is above the limit."""
    return holding(ready(age), 400, samples_over=samples_over, over_since=over_since)


GONE_FAT = Departure(worker=leaving(fat(1)), cause="exit code 0")
GONE_YOUNG_FAT = Departure(worker=leaving(fat(1, over_since=520.0)), cause="exit code 0")
NO_HELP = "new workers pass it too; none is replaced for its memory until the next reload"
OFF = replace(SERVED, memory_off_until=2)


@pytest.mark.parametrize(
    ("seen", "policy", "expected"),
    [
        pytest.param(
            look(fat(1), ready(2), target=2),
            LIMITED,
            rolling(spawn(1), since=NOW, events=(started(1, "memory", 2),)),
            id="a-worker-above-the-limit-is-due",
        ),
        pytest.param(
            look(fat(1, samples_over=2), ready(2), target=2),
            LIMITED,
            decision(),
            id="two-samples-are-not-enough",
        ),
        pytest.param(look(fat(1), ready(2), target=2), POLICY, decision(), id="no-limit"),
        pytest.param(
            look(holding(ready(1, since=NOW - 59.5), 400, samples_over=9, over_since=NOW - 50), target=1),
            LIMITED,
            decision(),
            id="not-in-its-first-minute",
        ),
        pytest.param(
            look(
                *(ready(age) for age in (2, 3)),
                target=2,
                state=under_way(),
                departures=(GONE_YOUNG_FAT,),
            ),
            LIMITED,
            decision(
                state=replace(SERVED, memory_flaps=1),
                events=(
                    exited(
                        Departure(worker=leaving(fat(1)), cause="exit code 0"),
                        reason="memory",
                        is_error=False,
                    ),
                    completed(1, 60.0),
                ),
            ),
            id="one-that-passed-it-young-may-be-chance",
        ),
        pytest.param(
            look(
                fat(2),
                ready(3),
                target=2,
                state=replace(SERVED, memory_flaps=1),
                departures=(GONE_YOUNG_FAT,),
            ),
            LIMITED,
            decision(
                state=OFF,
                events=(
                    exited(
                        Departure(worker=leaving(fat(1)), cause="exit code 0"),
                        reason="memory",
                        is_error=False,
                    ),
                    Event(
                        name="memory.limit_too_low",
                        level="error",
                        values=(
                            ("limit_bytes", 300 * MIB),
                            ("lifetime_s", 60.0),
                            ("because", NO_HELP),
                        ),
                    ),
                ),
            ),
            id="two-in-a-row-are-a-limit-that-is-too-low,-and-nobody-is-due-any-more",
        ),
        pytest.param(
            look(
                ready(2),
                ready(3),
                target=2,
                state=replace(SERVED, memory_flaps=1),
                departures=(GONE_FAT,),
            ),
            LIMITED,
            decision(
                state=SERVED,
                events=(
                    exited(
                        Departure(worker=leaving(fat(1)), cause="exit code 0"),
                        reason="memory",
                        is_error=False,
                    ),
                ),
            ),
            id="one-that-passed-it-in-a-good-age-ends-the-row",
        ),
        pytest.param(
            look(fat(1), target=1, state=OFF, generation=1),
            LIMITED,
            decision(state=OFF),
            id="off-in-this-generation",
        ),
        pytest.param(
            look(
                replace(fat(1), generation=2),
                target=1,
                state=OFF,
                generation=2,
            ),
            LIMITED,
            decision(
                spawn(1),
                state=replace(OFF, progress=Progress(started_at=NOW)),
                events=(started(1, "memory", 1),),
            ),
            id="on-again-in-the-next",
        ),
    ],
)
def test_memory(seen: PoolView, policy: RolloutPolicy, expected: Plan) -> None:
    """Private memory above the limit, several times in a row and not in its youth, makes a worker due."""
    assert plan(seen, policy) == expected


def roomy(mib: int, *workers: WorkerView, state: RolloutState = SERVED, target: int = 2) -> PoolView:
    """A pool in a container that has so much memory left, and that was whole before."""
    state = replace(state, whole=state.whole or target)
    return replace(look(*workers, target=target, state=state), memory_room_bytes=mib * MIB)


def in_place(age: int, room_mib: int) -> Event:
    values = (
        ("pid", 100 + age),
        ("age", age),
        ("memory_room_bytes", room_mib * MIB),
        ("because", "the container has no memory for one more worker"),
    )
    return Event(name="worker.replaced_in_place", level="warning", values=values)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(
            roomy(200, holding(due(1), 300), holding(ready(2), 100), state=under_way()),
            rolling(spawn(1)),
            id="a-newcomer-takes-what-the-newest-holds",
        ),
        pytest.param(
            roomy(99, holding(due(1), 80), holding(ready(2), 100), state=under_way()),
            rolling(drain(1), events=(in_place(1, 99),)),
            id="the-oldest-due-leaves-first-where-one-more-does-not-fit",
        ),
        pytest.param(
            roomy(99, holding(due(1), 80), holding(due(2), 100), state=under_way()),
            rolling(drain(1), events=(in_place(1, 99),)),
            id="one-at-a-time",
        ),
        pytest.param(
            roomy(99, leaving(holding(due(1), 80)), holding(due(2), 100), state=under_way()),
            rolling(),
            id="nobody-comes-or-goes-while-it-leaves",
        ),
        pytest.param(
            roomy(0, holding(due(2), 100), state=under_way()),
            rolling(spawn(1)),
            id="its-successor-comes-whatever-memory-there-is",
        ),
        pytest.param(
            roomy(0, holding(due(2), 100), booting(3), state=under_way()),
            rolling(),
            id="the-next-waits-until-the-successor-is-ready",
        ),
        pytest.param(
            roomy(
                0,
                holding(due(1), 100),
                holding(ready(2), 100),
                state=replace(
                    under_way(), boot_backoff=Backoff(strikes=1, struck_at=NOW - 1, retry_at=NOW + 0.5)
                ),
            ),
            decision(
                state=replace(
                    under_way(), boot_backoff=Backoff(strikes=1, struck_at=NOW - 1, retry_at=NOW + 0.5)
                ),
                wake_in_s=0.5,
            ),
            id="not-while-newcomers-fail",
        ),
        pytest.param(
            roomy(99, holding(due(1), 100), target=1, state=under_way()),
            rolling(),
            id="the-only-worker-stays",
        ),
        pytest.param(
            roomy(99, holding(ready(1, retire_reason="memory"), 100), target=1, state=under_way()),
            rolling(drain(1, "memory"), events=(in_place(1, 99),)),
            id="but-not-where-the-kernel-would-end-it",
        ),
        pytest.param(
            roomy(250, *(holding(due(age), 100) for age in (1, 2, 3)), target=3, state=under_way()),
            rolling(spawn(1)),
            id="no-more-than-the-surge",
        ),
        pytest.param(
            roomy(0, due(1), ready(2), state=under_way()),
            rolling(spawn(1)),
            id="nothing-is-known-before-a-sample",
        ),
    ],
)
def test_memory_of_the_container(seen: PoolView, expected: Plan) -> None:
    """Where one more worker would pass the container's limit, a due one leaves before its successor comes."""
    assert plan(seen, POLICY) == replace(expected, state=replace(expected.state, whole=seen.state.whole))


def whole(workers: int) -> RolloutState:
    return replace(SERVED, whole=workers)


def held(age: int) -> WorkerView:
    """A worker that holds 100 MiB."""
    return holding(ready(age), 100)


TWO = (held(1), held(2))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(roomy(250, *TWO, target=6, state=whole(2)), (spawn(2),), id="as-many-as-fit"),
        pytest.param(roomy(99, *TWO, target=6, state=whole(2)), (), id="nobody-where-nobody-fits"),
        pytest.param(
            roomy(250, *TWO, booting(3), booting(4), target=6, state=whole(2)),
            (),
            id="who-boots-takes-as-much",
        ),
        pytest.param(roomy(0, held(1), target=3, state=whole(3)), (spawn(2),), id="what-was-lost-comes-back"),
        pytest.param(
            roomy(0, held(1), target=6, state=whole(3)), (spawn(2),), id="what-was-lost,-and-no-more"
        ),
        pytest.param(
            replace(look(held(1), target=4), memory_room_bytes=0),
            (spawn(3),),
            id="a-server-that-starts-has-said-how-many",
        ),
        pytest.param(
            roomy(0, ready(1), ready(2), target=6, state=whole(2)), (spawn(4),), id="unknown-before-a-sample"
        ),
        pytest.param(
            roomy(150, holding(due(1), 100), held(2), target=6, state=whole(2)),
            (spawn(1),),
            id="growth-comes-before-replacing",
        ),
        pytest.param(
            roomy(99, holding(due(1), 100), held(2), target=6, state=whole(2)),
            (drain(1),),
            id="a-pool-that-cannot-grow-is-replaced-all-the-same",
        ),
        pytest.param(
            roomy(99, leaving(held(1)), held(2), held(3), target=6, state=whole(2)),
            (),
            id="who-leaves-still-holds-memory",
        ),
    ],
)
def test_growth_within_the_memory(seen: PoolView, expected: tuple[Action, ...]) -> None:
    """A pool that is to have more workers than before gets as many as the container holds."""
    assert plan(seen, POLICY).actions == expected


def test_growth_that_does_not_fit_is_told_once() -> None:
    """With the number that is there, and again only for another one."""
    seen = roomy(99, *TWO, target=6, state=whole(2))
    first = plan(seen, POLICY)
    values = (
        ("target", 6),
        ("reachable", 2),
        ("memory_room_bytes", 99 * MIB),
        ("because", "the container has no memory for more workers"),
    )
    assert first.events == (Event(name="pool.growth_held", level="warning", values=values),)
    assert plan(replace(seen, state=first.state), POLICY).events == ()
    other = plan(replace(seen, state=first.state, target=5), POLICY)
    assert [dict(event.values)["target"] for event in other.events] == [5]
    fits = plan(replace(seen, state=other.state, target=2), POLICY)
    assert (fits.events, fits.state.told_short_of) == ((), 0)


def test_a_pool_grows_step_by_step_as_memory_comes() -> None:
    """What it has been whole with is assured from then on."""
    seen = roomy(100, *TWO, target=6, state=whole(2))
    grown = replace(seen, workers=(*TWO, held(3)), memory_room_bytes=0)
    state = plan(grown, POLICY).state
    assert state.whole == 3
    lost = replace(grown, workers=TWO, state=state)
    assert plan(lost, POLICY).actions == (spawn(1),)
    down = plan(replace(lost, target=1), POLICY).state
    assert down.whole == 1


def test_a_restart_of_a_pool_that_cannot_grow_comes_to_an_end() -> None:
    """Complete is what the container lets be."""
    state = replace(whole(2), orders=Orders().restart(2))
    seen = roomy(0, held(3), held(4), target=6, state=state)
    assert plan(seen, POLICY).state.completed == 1


# -- the stop of the server
# --------------------------------------------------------------------------------------------------


def stopping(*workers: WorkerView, began_s: float = 5.0, quick_s: float | None = None) -> PoolView:
    stop = Stop(began_at=NOW - began_s, quick_at=None if quick_s is None else NOW - quick_s)
    return replace(look(*workers, target=2), stop=stop)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(
            stopping(ready(2), booting(1)), decision(drain(1, "stop"), drain(2, "stop")), id="all-are-asked"
        ),
        pytest.param(stopping(leaving(ready(1))), decision(), id="once"),
        pytest.param(
            stopping(quick_s=0.0),
            decision(),
            id="nobody-new",
        ),
        pytest.param(
            stopping(leaving(ready(1)), ready(2), quick_s=0.0),
            decision(Quit(pid=101, age=1), Quit(pid=102, age=2)),
            id="a-quick-stop-asks-all-again",
        ),
        pytest.param(
            stopping(replace(ready(1), quit_at=NOW - 1.5), quick_s=1.5),
            decision(wake_in_s=0.5),
            id="and-that-once",
        ),
        pytest.param(
            stopping(replace(leaving(ready(1)), quit_at=NOW - 2), quick_s=2.0),
            decision(kill(1, "missed the deadline of 2 s of a quick stop")),
            id="a-quick-stop-has-two-seconds",
        ),
        pytest.param(
            stopping(leaving(ready(1), since=NOW - 30), began_s=30),
            decision(kill(1, "missed its drain deadline of 30 s")),
            id="a-stop-has-the-time-of-a-drain",
        ),
        pytest.param(
            stopping(killed(leaving(ready(1)))),
            decision(),
            id="who-was-killed-is-waited-for",
        ),
    ],
)
def test_stop(seen: PoolView, expected: Plan) -> None:
    """At the end of the server everybody is asked to leave, nobody comes, and deadlines hold."""
    assert_ends(seen, POLICY, expected)


LATE = (
    booting(1, since=NOW - 400),
    ready(2, beat_at=NOW - 400),
    leaving(ready(3), since=NOW - 400),
)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param(
            replace(SERVED, turn_at=NOW - 391),
            decision(state=replace(SERVED, gaps=(Gap(since=NOW - 391, until=NOW),)), wake_in_s=1.0),
            id="a-gap-gives-everybody-the-time-that-was-lost",
        ),
        pytest.param(
            replace(SERVED, gaps=(Gap(since=NOW - 399, until=NOW - 27.5),)),
            decision(state=replace(SERVED, gaps=(Gap(since=NOW - 399, until=NOW - 27.5),)), wake_in_s=0.5),
            id="and-no-more",
        ),
        pytest.param(
            replace(SERVED, gaps=(Gap(since=NOW - 399, until=NOW - 28),)),
            decision(
                kill(2, "missed its heartbeat deadline of 30 s"),
                kill(3, "missed its drain deadline of 30 s"),
                state=replace(SERVED, gaps=(Gap(since=NOW - 399, until=NOW - 28),)),
            ),
            id="each-deadline-has-its-own-length",
        ),
        pytest.param(
            replace(
                SERVED,
                gaps=(Gap(since=NOW - 399, until=NOW - 199), Gap(since=NOW - 198, until=NOW - 25)),
            ),
            decision(
                state=replace(
                    SERVED,
                    gaps=(Gap(since=NOW - 399, until=NOW - 199), Gap(since=NOW - 198, until=NOW - 25)),
                ),
                wake_in_s=1.0,
            ),
            id="gaps-add-up",
        ),
        pytest.param(
            replace(SERVED, turn_at=NOW - 2),
            decision(
                kill(1, "missed its boot deadline of 120 s"),
                kill(2, "missed its heartbeat deadline of 30 s"),
                kill(3, "missed its drain deadline of 30 s"),
            ),
            id="a-gap-of-2-s-gives-nothing",
        ),
        pytest.param(
            replace(SERVED, turn_at=NOW - 100),
            decision(
                kill(1, "missed its boot deadline of 120 s"),
                kill(2, "missed its heartbeat deadline of 30 s"),
                kill(3, "missed its drain deadline of 30 s"),
                state=replace(SERVED, gaps=(Gap(since=NOW - 100, until=NOW),)),
            ),
            id="who-was-late-before-it-stays-late",
        ),
        pytest.param(
            replace(SERVED, gaps=(Gap(since=NOW - 500, until=NOW - 400),)),
            decision(
                kill(1, "missed its boot deadline of 120 s"),
                kill(2, "missed its heartbeat deadline of 30 s"),
                kill(3, "missed its drain deadline of 30 s"),
            ),
            id="what-began-after-it-is-as-ever",
        ),
    ],
)
def test_suspension(state: RolloutState, expected: Plan) -> None:
    """No deadline counts time in which we did not run."""
    assert_ends(look(*LATE, target=2, state=state), POLICY, expected)


@pytest.mark.parametrize(
    ("pause_s", "within_s"),
    [
        pytest.param(1.9, 34, id="1.9-s"),
        pytest.param(2.1, 70, id="2.1-s"),
        pytest.param(10.0, 320, id="10-s"),
    ],
)
def test_slow_turns_end_in_action(pause_s: float, within_s: float) -> None:
    """A master whose turns come late acts late, and not never: the stacks once, then the kill."""
    state, worker, now = replace(SERVED, turn_at=NOW), ready(1, beat_at=NOW), NOW
    told: list[Action] = []
    while worker.killed_at is None:
        now += pause_s
        assert now <= NOW + within_s
        result = plan(look(worker, target=1, state=state, now=now), POLICY)
        state = result.state
        for action in result.actions:
            if isinstance(action, Dump):
                worker = replace(worker, dumped_at=now)
            if isinstance(action, Kill):
                worker = replace(worker, killed_at=now)
        told += [action for action in result.actions if not isinstance(action, Spawn)]
    assert told == [Dump(pid=101, age=1), kill(1, "missed its heartbeat deadline of 30 s")]


# -- scale
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(look(ready(1), target=4), decision(spawn(3)), id="up-spawns-what-is-missing"),
        pytest.param(
            look(ready(3), ready(1), ready(4), ready(2), target=2),
            decision(drain(1, "scale"), drain(2, "scale")),
            id="down-drains-the-oldest",
        ),
        pytest.param(
            look(ready(1), booting(2), booting(3), booting(4), target=2),
            decision(drain(4, "surplus"), drain(3, "surplus")),
            id="down-removes-who-boots,-newest-first",
        ),
        pytest.param(
            look(ready(1), ready(2), booting(3), target=1),
            decision(drain(3, "surplus"), drain(1, "scale")),
            id="down-removes-who-boots-before-who-serves",
        ),
        pytest.param(
            look(leaving(ready(1)), leaving(ready(2)), ready(3), target=2),
            decision(),
            id="up-again-while-two-leave-waits-for-room",
        ),
        pytest.param(
            look(ready(1), ready(2), booting(3), target=0),
            decision(drain(3, "surplus"), drain(1, "scale"), drain(2, "scale")),
            id="target-0-lets-all-go",
        ),
        pytest.param(
            look(due(1), ready(2), target=0, state=under_way()),
            rolling(drain(1), drain(2, "scale")),
            id="target-0-in-a-rollout-lets-all-go,-and-nobody-comes",
        ),
        pytest.param(
            look(due(1), ready(2), ready(3), ready(4), booting(5), target=3, state=under_way()),
            rolling(drain(5, "surplus"), drain(1)),
            id="down-in-a-rollout-is-paid-with-the-due-one-and-needs-no-successor",
        ),
        pytest.param(
            look(ready(1), ready(2), due(3), ready(4), target=2, state=under_way()),
            rolling(drain(3), drain(1, "scale")),
            id="down-takes-the-due-before-the-old",
        ),
        pytest.param(
            look(*OLD, target=2, state=under_way()),
            rolling(drain(1), drain(2)),
            id="down-in-a-rollout-waits-for-room-for-successors",
        ),
        pytest.param(
            look(due(1), ready(2), booting(3), target=3, state=under_way()),
            rolling(spawn(1)),
            id="up-in-a-rollout-adds-to-the-successors",
        ),
        pytest.param(
            look(due(1), due(2), leaving(due(3)), booting(4), target=3, state=under_way()),
            rolling(),
            id="up-in-a-rollout-keeps-to-target-and-surge",
        ),
    ],
)
def test_scale(seen: PoolView, expected: Plan) -> None:
    """The pool follows its target, also during a rollout."""
    assert plan(seen, POLICY) == expected


# -- workers that listen and never prove themselves
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "drained"),
    [
        pytest.param(look(ready(1), listening(2), target=0), [1, 2], id="target-0-lets-all-go"),
        pytest.param(look(ready(1), listening(2), target=1), [2], id="down-takes-who-carries-nothing"),
        pytest.param(
            look(listening(1), ready(2), ready(3, generation=2), target=2, generation=2, state=under_way()),
            [1],
            id="a-rollout-replaces-it-as-any-other",
        ),
        pytest.param(
            look(ready(1), listening(2), ready(3, generation=2), target=2, generation=2, state=under_way()),
            [2],
            id="a-rollout-does-not-wait-for-it-to-heal",
        ),
    ],
)
def test_unproven_worker_that_listens_can_be_removed(seen: PoolView, drained: list[int]) -> None:
    """A worker that carries no capacity needs no spare one to pay for its leaving."""
    actions = plan(seen, POLICY).actions
    assert sorted(action.age for action in actions if isinstance(action, Drain)) == drained


def test_only_capacity_is_paid_for() -> None:
    """A due worker that is silent takes no spare worker's place: the oldest due available one leaves too."""
    state = replace(under_way(), gaps=(Gap(since=NOW - 41, until=NOW - 1),))
    seen = look(replace(due(1), beat_at=NOW - 40), due(2), due(3), ready(4), ready(5), target=3, state=state)
    actions = plan(seen, RolloutPolicy(surge=2)).actions
    assert 2 in [action.age for action in actions if isinstance(action, Drain)]


# -- newcomers that fail
# --------------------------------------------------------------------------------------------------


def test_newcomer_that_fails_stalls_the_rollout() -> None:
    """The old worker stays, the failure is told with its values, and the retry waits."""
    gone = Departure(worker=booting(2), cause="exit code 3")
    assert plan(look(due(1), target=1, state=under_way(), departures=(gone,)), POLICY) == decision(
        state=replace(under_way(), boot_backoff=struck(1, 1, "worker 2 exit code 3")),
        events=(exited(gone), stalled("worker 2 exit code 3", 1, 1.0)),
    )


def test_fork_that_fails_stalls_the_rollout() -> None:
    """A process that cannot be made is a newcomer that fails."""
    assert plan(look(ready(1), target=2, spawn_errors=("out of memory", "again")), POLICY) == decision(
        state=replace(SERVED, boot_backoff=struck(1, 1, "could not be spawned: out of memory")),
        events=(stalled("could not be spawned: out of memory", 1, 1.0),),
    )


def test_backoff_doubles_up_to_a_minute() -> None:
    """Each failed attempt doubles the wait, from 1 s to 60 s, and `failures` counts them."""
    state, now = SERVED, NOW
    told = []
    for age in range(2, 11):
        gone = Departure(worker=booting(age, since=now), cause="exit code 3")
        now += 0.5
        state = replace(state, turn_at=now - 1)
        result = plan(look(ready(1, beat_at=now), target=2, state=state, departures=(gone,), now=now), POLICY)
        assert result.actions == ()
        told.append((dict(result.events[1].values), result.state.phase))
        state, now = result.state, result.state.retry_at
        after = plan(
            look(ready(1, beat_at=now), target=2, state=replace(state, turn_at=now), now=now), POLICY
        )
        assert after == decision(spawn(1), state=state, now=now)
    assert told == [
        ({"cause": f"worker {age} exit code 3", "failures": age - 1, "retry_in_s": wait_s}, "stalled")
        for age, wait_s in enumerate([1, 2, 4, 8, 16, 32, 60, 60, 60], start=2)
    ]


STRUCK = replace(SERVED, boot_backoff=Backoff(strikes=3, struck_at=NOW - 2, retry_at=NOW + 2))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(
            look(ready(1), target=2, state=STRUCK),
            decision(state=STRUCK),
            id="nothing-is-spawned-before-the-retry",
        ),
        pytest.param(
            look(ready(1), ready(2, since=NOW - 1), target=3, state=STRUCK),
            decision(spawn(1)),
            id="a-worker-that-became-ready-since-ends-the-wait",
        ),
        pytest.param(
            look(
                ready(1),
                target=2,
                state=STRUCK,
                departures=tuple(
                    Departure(worker=booting(age, since=NOW - 3), cause="exit code 3") for age in (5, 6)
                ),
            ),
            decision(
                state=STRUCK,
                events=tuple(
                    exited(Departure(worker=booting(age, since=NOW - 3), cause="exit code 3"))
                    for age in (5, 6)
                ),
            ),
            id="workers-of-the-attempt-that-was-counted-are-no-further-strike",
        ),
        pytest.param(
            look(
                ready(1),
                target=3,
                state=STRUCK,
                departures=tuple(
                    Departure(worker=booting(age, since=NOW - 2), cause="exit code 3") for age in (5, 6)
                ),
            ),
            decision(
                state=replace(SERVED, boot_backoff=struck(4, 8, "worker 5 exit code 3")),
                events=(
                    *(
                        exited(Departure(worker=booting(age, since=NOW - 2), cause="exit code 3"))
                        for age in (5, 6)
                    ),
                    stalled("worker 5 exit code 3", 4, 8.0),
                ),
            ),
            id="several-of-one-attempt-that-fail-together-are-one-strike",
        ),
        pytest.param(
            look(
                ready(1),
                target=2,
                state=STRUCK,
                departures=(Departure(worker=leaving(booting(5)), cause="exit code 0"),),
            ),
            decision(
                state=STRUCK,
                events=(exited(Departure(worker=leaving(booting(5)), cause="exit code 0"), is_error=False),),
            ),
            id="who-was-asked-to-leave-has-not-failed",
        ),
        pytest.param(
            look(
                ready(1),
                target=1,
                departures=(Departure(worker=killed(leaving(ready(5))), cause="missed its drain deadline"),),
            ),
            decision(
                events=(
                    exited(Departure(worker=killed(leaving(ready(5))), cause="missed its drain deadline")),
                )
            ),
            id="who-was-killed-leaving-is-told-as-an-error,-and-is-no-strike",
        ),
    ],
)
def test_strikes(seen: PoolView, expected: Plan) -> None:
    """Attempts are counted, not workers; a success forgets them."""
    assert plan(seen, POLICY) == expected


def test_full_pool_is_not_stalled() -> None:
    """Once nothing is missing or due there is nothing to retry: the pool is at rest."""
    state = replace(SERVED, boot_backoff=Backoff(strikes=1, struck_at=NOW - 400, retry_at=NOW - 399))
    assert plan(look(ready(1), target=1, state=state), POLICY).state.phase == "idle"


# -- ready workers that crash
# --------------------------------------------------------------------------------------------------


def crash(age: int, *, spawned_at: float, ready_at: float) -> Departure:
    worker = WorkerView(
        pid=100 + age, age=age, generation=1, spawned_at=spawned_at, listening_at=ready_at, ready_at=ready_at
    )
    return Departure(worker=worker, cause="signal SIGSEGV")


LATE_CRASH = crash(2, spawned_at=NOW - 61, ready_at=NOW - 60)
EARLY_CRASH = crash(2, spawned_at=NOW - 60, ready_at=NOW - 59)
CRASH_AT_ONCE = crash(2, spawned_at=NOW - 5, ready_at=NOW - 4)
CRASHED = replace(SERVED, crash_backoff=Backoff(strikes=1, struck_at=NOW - 60, retry_at=NOW - 60))


def died(strikes: int, *, ago_s: float, wait_s: float, held_back: int = 0) -> RolloutState:
    """What is remembered of early deaths, the last of them some seconds ago."""
    backoff = Backoff(strikes=strikes, struck_at=NOW - ago_s, retry_at=NOW - ago_s + wait_s, cause="before")
    return replace(SERVED, crash_backoff=backoff, held_back=held_back)


def struck_by_crash(strikes: int, wait_s: float, *, held_back: int = 0) -> RolloutState:
    backoff = struck(strikes, wait_s, "worker 2 signal SIGSEGV")
    return replace(SERVED, crash_backoff=backoff, held_back=held_back)


@pytest.mark.parametrize(
    ("state", "gone", "expected"),
    [
        pytest.param(
            SERVED,
            LATE_CRASH,
            decision(spawn(1), events=(exited(LATE_CRASH),)),
            id="late-is-replaced-at-once",
        ),
        pytest.param(
            SERVED,
            EARLY_CRASH,
            decision(spawn(1), events=(exited(EARLY_CRASH),), state=struck_by_crash(1, 1)),
            id="the-first-early-one-is-replaced-at-once",
        ),
        pytest.param(
            SERVED,
            CRASH_AT_ONCE,
            decision(spawn(1), events=(exited(CRASH_AT_ONCE),), state=struck_by_crash(1, 1)),
            id="also-one-that-died-at-once",
        ),
        pytest.param(
            died(1, ago_s=6, wait_s=1),
            CRASH_AT_ONCE,
            decision(
                events=(exited(CRASH_AT_ONCE), delayed("worker 2 signal SIGSEGV", 2, 2.0)),
                state=struck_by_crash(2, 2, held_back=1),
            ),
            id="the-second-that-died-at-once-waits-two-seconds",
        ),
        pytest.param(
            died(5, ago_s=60, wait_s=16),
            EARLY_CRASH,
            decision(spawn(1), events=(exited(EARLY_CRASH),), state=struck_by_crash(6, 32)),
            id="one-that-has-served-for-a-while-never-waits",
        ),
        pytest.param(
            died(6, ago_s=6, wait_s=32),
            CRASH_AT_ONCE,
            decision(
                events=(exited(CRASH_AT_ONCE), delayed("worker 2 signal SIGSEGV", 7, 60.0)),
                state=struck_by_crash(7, 60, held_back=1),
            ),
            id="the-seventh-that-died-at-once-waits-a-minute",
        ),
        pytest.param(
            died(7, ago_s=1, wait_s=60),
            LATE_CRASH,
            decision(spawn(1), events=(exited(LATE_CRASH),), state=died(7, ago_s=1, wait_s=60)),
            id="late-is-replaced-at-once-in-any-wait",
        ),
        pytest.param(
            died(1, ago_s=10, wait_s=1),
            EARLY_CRASH,
            decision(spawn(1), events=(exited(EARLY_CRASH),), state=died(1, ago_s=10, wait_s=1)),
            id="one-from-before-the-strike-is-no-further-strike",
        ),
        pytest.param(
            CRASHED,
            EARLY_CRASH,
            decision(spawn(1), events=(exited(EARLY_CRASH),), state=struck_by_crash(1, 1)),
            id="a-minute-after-the-strike-it-is-the-first-again",
        ),
    ],
)
def test_crash_of_a_ready_worker(state: RolloutState, gone: Departure, expected: Plan) -> None:
    """A worker that dies is made good at once; one that died at once, again and again, after a wait."""
    assert plan(look(ready(1), target=2, state=state, departures=(gone,)), POLICY) == expected


HELD = died(7, ago_s=3, wait_s=60, held_back=2)
NEWBORN = ready(1, since=NOW - 1)
DESERTED = died(7, ago_s=5, wait_s=60, held_back=3)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(look(NEWBORN, target=3, state=HELD), decision(state=HELD), id="they-wait"),
        pytest.param(
            look(NEWBORN, target=4, state=HELD), decision(spawn(1), state=HELD), id="and-nobody-else"
        ),
        pytest.param(
            look(ready(1), target=3, state=HELD),
            decision(spawn(1), state=replace(HELD, held_back=1)),
            id="where-others-serve-on-it-is-only-one",
        ),
        pytest.param(
            look(NEWBORN, booting(2), target=3, state=HELD),
            decision(state=replace(HELD, held_back=1)),
            id="who-is-not-missed-is-not-waited-for",
        ),
        pytest.param(
            look(ready(1), target=3, state=died(7, ago_s=60, wait_s=60, held_back=2)),
            decision(spawn(2), state=died(7, ago_s=60, wait_s=60)),
            id="until-the-wait-is-over",
        ),
        pytest.param(
            look(ready(1, since=NOW - 5), target=3, state=died(7, ago_s=6, wait_s=60, held_back=2)),
            decision(spawn(2), state=died(7, ago_s=6, wait_s=60)),
            id="or-one-that-came-after-them-has-served-for-longer",
        ),
        pytest.param(
            look(target=3, state=replace(HELD, held_back=3)),
            decision(state=replace(HELD, held_back=3)),
            id="where-nobody-is-left-all-wait-too",
        ),
        pytest.param(
            look(target=3, state=DESERTED),
            decision(spawn(1), state=DESERTED),
            id="but-one-for-five-seconds-only",
        ),
        pytest.param(
            look(booting(8), target=3, state=replace(DESERTED, held_back=2)),
            decision(state=replace(DESERTED, held_back=2)),
            id="and-the-others-for-the-whole-wait",
        ),
        pytest.param(
            look(NEWBORN, replace(booting(8, since=NOW - 120), dumped_at=NOW), target=3, state=HELD),
            decision(state=HELD, wake_in_s=0.5),
            id="who-has-missed-a-deadline-is-missed-too",
        ),
        pytest.param(
            look(due(1), target=1, state=HELD),
            decision(
                events=(started(1, "requests", 1), stalled("before", 7, 57.0)),
                state=replace(HELD, held_back=0, progress=Progress(started_at=NOW)),
            ),
            id="successors-wait",
        ),
    ],
)
def test_who_waits_after_crashes(seen: PoolView, expected: Plan) -> None:
    """A number of workers is held back, and not the whole pool."""
    assert plan(seen, POLICY) == expected


HUNG = killed(ready(3, since=NOW - 200, beat_at=NOW - 141))


@pytest.mark.parametrize(
    ("gone", "failures"),
    [
        pytest.param(EARLY_CRASH, 1, id="one-that-crashed"),
        pytest.param(Departure(worker=HUNG, cause="hung"), 1, id="one-that-hung-soon,-however-long-it-took"),
        pytest.param(
            Departure(worker=replace(HUNG, beat_at=NOW - 140), cause="hung"), 0, id="not-one-that-hung-late"
        ),
        pytest.param(LATE_CRASH, 0, id="not-one-that-crashed-late"),
        pytest.param(
            replace(EARLY_CRASH, worker=leaving(EARLY_CRASH.worker)), 0, id="nor-one-that-was-asked-to-leave"
        ),
        pytest.param(
            replace(EARLY_CRASH, worker=replace(EARLY_CRASH.worker, generation=0)),
            0,
            id="nor-one-whose-code-newcomers-do-not-have",
        ),
    ],
)
def test_early_death_stalls_a_rollout(gone: Departure, failures: int) -> None:
    """What happens to newcomers after they became ready holds a rollout up, and is told with its reason."""
    result = plan(look(due(1), ready(9), target=2, state=under_way(), departures=(gone,)), POLICY)
    told = [event for event in result.events if event.name == "rollout.stalled"]
    cause = f"worker {gone.worker.age} {gone.cause}"
    assert told == [stalled(cause, failures, 1.0)] * failures
    assert result.state.phase == ("stalled" if failures else "progressing")


def test_a_healthy_minute_forgets_crashes() -> None:
    """Sixty seconds after the end of the last wait the count starts anew."""
    assert plan(look(ready(1), ready(2), target=2, state=CRASHED), POLICY) == decision()


def test_crash_in_a_rollout_is_replaced_though_another_leaves() -> None:
    """What is missing is spawned within the room that the leaving worker leaves."""
    gone = crash(3, spawned_at=100, ready_at=101)
    seen = look(leaving(due(1)), due(2), ready(4), target=3, state=under_way(), departures=(gone,))
    assert plan(seen, POLICY) == rolling(spawn(1), events=(exited(gone),))


# -- halt
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(replace(NEW, has_served=True), id="one-has-listened"),
        pytest.param(SERVED, id="one-has-been-ready"),
    ],
)
def test_no_halt_once_anything_has_served(state: RolloutState) -> None:
    """A server that has served is never ended by its newcomers, even with nobody left."""
    gone = Departure(worker=booting(2), cause="exit code 3")
    assert plan(look(target=1, state=state, departures=(gone,)), POLICY) == decision(
        state=replace(state, boot_backoff=struck(1, 1, "worker 2 exit code 3")),
        events=(exited(gone), stalled("worker 2 exit code 3", 1, 1.0)),
    )


# -- when to look again
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "policy", "wake_in_s"),
    [
        pytest.param(look(ready(1), target=1), POLICY, 1.0, id="at-most-a-second"),
        pytest.param(look(target=0), POLICY, 1.0, id="a-second-in-an-empty-pool"),
        pytest.param(look(booting(1, since=NOW - 119.75), target=1), POLICY, 0.25, id="boot-deadline"),
        pytest.param(look(ready(1, beat_at=NOW - 29.75), target=1), POLICY, 0.25, id="heartbeat-deadline"),
        pytest.param(
            look(leaving(ready(1), since=NOW - 29.75), ready(2), target=1), POLICY, 0.25, id="drain-deadline"
        ),
        pytest.param(
            look(ready(1, since=NOW - 9.75), target=1), RolloutPolicy(min_ready_s=10), 0.25, id="min-ready"
        ),
        pytest.param(look(ready(1, since=900.25), target=1), HOURLY, 0.25, id="age"),
        pytest.param(
            look(
                ready(1),
                target=2,
                state=replace(
                    SERVED, boot_backoff=Backoff(strikes=1, struck_at=NOW - 0.75, retry_at=NOW + 0.25)
                ),
            ),
            POLICY,
            0.25,
            id="end-of-the-backoff",
        ),
        pytest.param(
            look(ready(1, beat_at=NOW - 29.5), ready(2, beat_at=NOW - 29.75), target=2),
            POLICY,
            0.25,
            id="the-nearest-of-several",
        ),
        pytest.param(
            look(killed(booting(1, since=NOW - 119.75)), ready(2), target=1),
            POLICY,
            1.0,
            id="not-for-the-dead",
        ),
        pytest.param(
            look(leaving(ready(1, since=900.25)), ready(2, since=950), target=1),
            HOURLY,
            1.0,
            id="not-for-the-age-of-one-that-leaves",
        ),
    ],
)
def test_wake(seen: PoolView, policy: RolloutPolicy, wake_in_s: float) -> None:
    """The next turn is at the next moment at which time alone changes something, within a second."""
    state = replace(seen.state, turn_at=NOW)
    assert plan(seen, policy) == Plan(actions=(), state=state, events=(), wake_in_s=wake_in_s)


# -- the rest
# --------------------------------------------------------------------------------------------------


def test_equal_views_give_equal_plans() -> None:
    """The plan is a function of the values alone."""

    def busy() -> PoolView:
        gone = (Departure(worker=booting(9), cause="exit code 3"), crash(8, spawned_at=980, ready_at=990))
        return look(
            *OLD, ready(5), booting(6), target=4, generation=1, departures=gone, spawn_errors=("full",)
        )

    assert plan(busy(), replace(HOURLY, surge=2)) == plan(busy(), replace(HOURLY, surge=2))


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        pytest.param(SERVED, "idle", id="at-rest"),
        pytest.param(under_way(), "progressing", id="moving"),
        pytest.param(STRUCK, "stalled", id="held-up"),
        pytest.param(replace(STRUCK, progress=Progress(started_at=1)), "stalled", id="held-up-while-moving"),
        pytest.param(CRASHED, "idle", id="a-crash-is-no-stall"),
    ],
)
def test_phase(state: RolloutState, phase: str) -> None:
    """The phase follows from the facts."""
    assert state.phase == phase


@pytest.mark.parametrize(
    ("boot", "crashes", "retry_at"),
    [(-math.inf, -math.inf, -math.inf), (3.0, 2.0, 3.0), (2.0, 3.0, 3.0)],
)
def test_retry_waits_for_both_backoffs(boot: float, crashes: float, retry_at: float) -> None:
    """Nobody gets a successor before the later of the two."""
    state = RolloutState(boot_backoff=Backoff(retry_at=boot), crash_backoff=Backoff(retry_at=crashes))
    assert state.retry_at == retry_at


@pytest.mark.parametrize("value", [-1, -0.5, math.inf, math.nan])
@pytest.mark.parametrize(
    "name",
    [
        "surge",
        "refresh_interval_s",
        "refresh_jitter",
        "boot_timeout_s",
        "min_ready_s",
        "heartbeat_timeout_s",
        "drain_timeout_s",
    ],
)
def test_policy_refuses_what_makes_no_sense(name: str, value: float) -> None:
    """A policy is valid or does not exist; the message names the field and the value."""
    with pytest.raises(ValueError, match=rf"^{name} must be a finite number.* not {value!r}$"):
        RolloutPolicy(**{name: value})  # type: ignore[arg-type]  # the names are of several types


def test_policy_needs_time_to_boot() -> None:
    """A boot deadline of 0 would kill every newcomer."""
    with pytest.raises(ValueError, match=r"^boot_timeout_s must be a finite number above 0, not 0$"):
        RolloutPolicy(boot_timeout_s=0)
