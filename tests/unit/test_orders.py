"""What an operator orders, and what the planner makes of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from harness.planning import (
    HOURLY,
    NOW,
    POLICY,
    SERVED,
    booting,
    decision,
    drain,
    due,
    leaving,
    look,
    ready,
    spawn,
    started,
    struck,
)

from airflow_arbiter import history
from airflow_arbiter.conditions import OFF
from airflow_arbiter.orders import GIVEN_UP_KEPT, OPEN_KEPT, TOO_MANY, GivenUp, Orders
from airflow_arbiter.pool import (
    Action,
    Plan,
    PoolView,
    Progress,
    RolloutPolicy,
    RolloutState,
    Stop,
    WorkerView,
)
from airflow_arbiter.restoring import restore
from airflow_arbiter.rollout import plan

PROGRESS = Progress(started_at=NOW - 60)
RESTART = Orders().restart(4)
PAUSED = Orders().pause()
PAUSED_RESTART = RESTART.pause()
FOUR = (ready(1), ready(2), ready(3), ready(4))


def ordered(orders: Orders, *, completed: int = 0, is_moving: bool = False) -> RolloutState:
    return replace(SERVED, orders=orders, completed=completed, progress=PROGRESS if is_moving else None)


def actions(seen: PoolView, policy: RolloutPolicy = POLICY) -> tuple[Action, ...]:
    return plan(seen, policy).actions


# -- restart, and one worker
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(
            look(*FOUR, target=4, state=ordered(RESTART)),
            decision(
                spawn(1),
                state=replace(ordered(RESTART), progress=Progress(started_at=NOW)),
                events=(started(4, "command", 4),),
            ),
            id="everybody-who-is-there-is-due",
        ),
        pytest.param(
            look(*FOUR, ready(5), target=4, state=ordered(RESTART, is_moving=True)),
            decision(drain(1, "command"), state=ordered(RESTART, is_moving=True)),
            id="oldest-first,-and-not-who-came-after",
        ),
        pytest.param(
            look(ready(1), ready(2), booting(3), target=2, state=ordered(RESTART, is_moving=True)),
            decision(drain(3, "command"), state=ordered(RESTART, is_moving=True)),
            id="a-newcomer-that-was-there-already-is-meant-too",
        ),
        pytest.param(
            look(*FOUR, target=4, state=ordered(Orders().stop(3))),
            decision(
                spawn(1),
                state=replace(ordered(Orders().stop(3)), progress=Progress(started_at=NOW)),
                events=(started(1, "command", 4),),
            ),
            id="one-worker-gets-its-successor-first",
        ),
        pytest.param(
            look(*FOUR, ready(5), target=4, state=ordered(Orders().stop(3), is_moving=True)),
            decision(drain(3, "command"), state=ordered(Orders().stop(3), is_moving=True)),
            id="one-worker-leaves-then,-and-no-older-one",
        ),
        pytest.param(
            look(due(1), ready(2), target=1, state=ordered(RESTART, is_moving=True)),
            decision(drain(1, "command"), state=ordered(RESTART, is_moving=True)),
            id="an-order-comes-before-what-the-worker-asks",
        ),
        pytest.param(
            look(ready(1), ready(2, generation=2), target=1, generation=2, state=ordered(RESTART)),
            decision(
                drain(1, "generation"),
                state=replace(ordered(RESTART), progress=Progress(started_at=NOW)),
                events=(started(2, "generation", 1),),
            ),
            id="a-new-generation-comes-before-an-order",
        ),
    ],
)
def test_replacing_by_order(seen: PoolView, expected: Plan) -> None:
    """An order makes workers due, who are then replaced as any other."""
    assert plan(seen, POLICY) == expected


def test_names_of_the_gone_are_forgotten() -> None:
    """A worker that was named and is gone leaves nothing behind."""
    orders = Orders().stop(3).stop(4).stop(4)
    assert plan(look(ready(4), ready(5), target=2, state=ordered(orders)), POLICY).state.orders.stopped == (
        4,
    )


# -- when it is over
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "completed"),
    [
        pytest.param(look(*FOUR, target=4, state=ordered(RESTART)), 0, id="not-before-anybody-has-gone"),
        pytest.param(
            look(leaving(ready(4)), ready(5), target=1, state=ordered(RESTART)),
            0,
            id="not-while-the-last-one-leaves",
        ),
        pytest.param(
            look(booting(5), target=1, state=ordered(RESTART)), 0, id="not-before-all-are-available"
        ),
        pytest.param(look(ready(5), target=1, state=ordered(RESTART)), 1, id="once-everybody-else-is-gone"),
        pytest.param(
            look(ready(5, since=800), ready(6, since=990), target=2, state=ordered(RESTART)),
            1,
            id="whoever-is-due-for-another-reason",
        ),
        pytest.param(
            look(ready(5), target=1, state=ordered(RESTART.reload())),
            1,
            id="whatever-becomes-of-a-reload-that-is-awaited",
        ),
        pytest.param(
            look(
                ready(5),
                target=1,
                generation=2,
                state=ordered(RESTART.reload().settle_reload()),
            ),
            0,
            id="not-while-the-new-generation-is-not-there",
        ),
        pytest.param(
            look(ready(5), target=1, state=ordered(RESTART.reload().settle_reload(failure="SyntaxError"))),
            1,
            id="whatever-became-of-a-later-reload",
        ),
        pytest.param(look(ready(5), target=1, state=ordered(RESTART.abort(1))), 0, id="never-once-given-up"),
        pytest.param(
            look(ready(9), target=1, state=ordered(RESTART.abort(1).restart(8))), 2, id="the-next-one-again"
        ),
    ],
)
def test_completed(seen: PoolView, completed: int) -> None:
    """A revision is complete when nobody is left whom it was meant for, and the pool is whole."""
    assert plan(seen, HOURLY).state.completed == completed


@pytest.mark.parametrize(
    ("workers", "aborted"),
    [pytest.param((ready(1),), 1, id="somebody-is-left"), pytest.param((ready(5),), 0, id="nobody-is-left")],
)
def test_an_order_is_given_up_where_replacing_is_off(workers: tuple[WorkerView, ...], aborted: int) -> None:
    """With surge 0 an order that means somebody will never be done, and whoever waits for it must hear it."""
    seen = look(*workers, target=1, state=ordered(RESTART))
    after = plan(seen, RolloutPolicy(surge=0)).state
    assert (after.orders.aborted, after.completed) == (aborted, 1 - aborted)
    assert after.orders.given_up == ((GivenUp(revisions=(1,), because=OFF),) if aborted else ())


# -- newcomers that fail
# --------------------------------------------------------------------------------------------------

STALLED = replace(SERVED, boot_backoff=struck(3, 4, "worker 5 exit code 3"))
CRASHED = replace(SERVED, crash_backoff=struck(6, 16, "worker 5 signal SIGSEGV"))


@pytest.mark.parametrize(
    ("state", "is_waiting"),
    [
        pytest.param(STALLED, True, id="newcomers-that-failed-are-waited-for"),
        pytest.param(history.restart(STALLED, 4), False, id="a-restart-tries-at-once"),
        pytest.param(
            history.settle_reload(history.restart(STALLED, 4)),
            False,
            id="so-does-a-reload",
        ),
        pytest.param(
            history.settle_reload(STALLED, failure="SyntaxError"),
            True,
            id="but-not-one-that-has-failed-itself",
        ),
    ],
)
def test_who_orders_may_have_mended_it(state: RolloutState, is_waiting: bool) -> None:
    """A new order is no longer held up by what has failed before it."""
    assert (state.phase == "stalled") == is_waiting
    assert (actions(look(due(1), target=1, state=state)) == ()) == is_waiting


@pytest.mark.parametrize(
    ("state", "is_waiting"),
    [
        pytest.param(CRASHED, True, id="newcomers-that-died-are-waited-for"),
        pytest.param(history.restart(CRASHED, 0), False, id="a-restart-tries-at-once"),
        pytest.param(history.settle_reload(CRASHED), False, id="so-does-a-reload"),
        pytest.param(
            history.settle_reload(CRASHED, failure="SyntaxError"),
            True,
            id="but-not-one-that-has-failed-itself",
        ),
        pytest.param(history.abort(CRASHED, 1), False, id="nothing-is-held-against-who-comes-after-an-abort"),
    ],
)
def test_who_orders_may_have_mended_what_crashed(state: RolloutState, is_waiting: bool) -> None:
    """New code does not wait for the crashes of the old."""
    assert (actions(look(due(1), target=1, state=state)) == ()) == is_waiting


# -- pause
# --------------------------------------------------------------------------------------------------

WHOLE_AND_PAUSED = replace(ordered(PAUSED_RESTART), whole=2)


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(look(*FOUR, target=4, state=ordered(PAUSED_RESTART)), id="no-successor-is-spawned"),
        pytest.param(
            look(*FOUR, booting(5), target=4, state=ordered(PAUSED_RESTART)),
            id="a-newcomer-under-way-may-finish",
        ),
        pytest.param(
            look(*FOUR, ready(5), target=4, state=ordered(PAUSED_RESTART)),
            id="a-newcomer-that-has-finished-stays,-and-nobody-leaves-for-it",
        ),
        pytest.param(look(due(1), target=1, state=ordered(PAUSED)), id="no-reason-opens-a-rollout"),
        pytest.param(
            replace(
                look(replace(ready(1), private_bytes=1), ready(2), target=2, state=WHOLE_AND_PAUSED),
                memory_room_bytes=0,
            ),
            id="nobody-is-replaced-in-place",
        ),
    ],
)
def test_paused_pool_stands_still(seen: PoolView) -> None:
    """In a pause nobody is replaced."""
    assert plan(seen, POLICY) == decision(state=seen.state)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(
            look(ready(1), ready(2), target=4, state=ordered(PAUSED_RESTART)),
            (spawn(2),),
            id="what-is-missing-is-spawned",
        ),
        pytest.param(
            look(ready(2), ready(3), ready(4), ready(5), target=4, state=ordered(PAUSED_RESTART)),
            (),
            id="a-newcomer-takes-the-place-of-one-that-was-lost",
        ),
        pytest.param(
            look(*FOUR, target=2, state=ordered(PAUSED_RESTART)),
            (drain(1, "scale"), drain(2, "scale")),
            id="down-takes-the-oldest,-due-or-not",
        ),
        pytest.param(
            look(*FOUR, ready(5), target=2, state=ordered(PAUSED_RESTART)),
            (drain(1, "scale"), drain(2, "scale")),
            id="down-leaves-the-newcomer",
        ),
        pytest.param(
            look(*FOUR, booting(5), target=3, state=ordered(PAUSED_RESTART)),
            (drain(5, "surplus"), drain(1, "scale")),
            id="down-needs-no-newcomer-that-boots",
        ),
        pytest.param(
            look(*FOUR, ready(5), target=4, state=ordered(PAUSED_RESTART.resume())),
            (drain(1, "command"),),
            id="afterwards-it-goes-on",
        ),
        pytest.param(
            replace(look(*FOUR, target=4, state=ordered(PAUSED_RESTART)), stop=Stop(began_at=NOW)),
            tuple(drain(age, "stop") for age in (1, 2, 3, 4)),
            id="the-end-of-the-server-does-not-wait",
        ),
    ],
)
def test_what_a_pause_does_not_stop(seen: PoolView, expected: tuple[Action, ...]) -> None:
    """A pause holds replacing, and nothing else."""
    assert actions(seen) == expected


def test_a_rollout_under_way_is_still_the_same_after_a_pause() -> None:
    """What was replaced before a pause counts after it."""
    moving = replace(PROGRESS, replaced=2)
    seen = look(*FOUR, target=4, state=replace(ordered(PAUSED_RESTART), progress=moving))
    assert plan(seen, POLICY).state.progress == moving


# -- abort
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orders", "generation"),
    [
        pytest.param(RESTART, 1, id="a-restart"),
        pytest.param(Orders().stop(1).stop(3), 1, id="single-workers"),
        pytest.param(Orders().reload().settle_reload(), 2, id="a-new-generation"),
    ],
)
def test_after_an_abort_nobody_is_due(orders: Orders, generation: int) -> None:
    """What was ordered is forgotten; those who are there stay, and a newcomer that boots goes."""
    state = history.abort(ordered(orders, is_moving=True), generation)
    seen = look(*FOUR, booting(5, generation=generation), target=4, generation=generation, state=state)
    assert plan(seen, POLICY) == decision(drain(5, "surplus"), state=state)


def test_an_abort_ends_the_wait_for_newcomers() -> None:
    """A pool whose newcomers failed is at rest after it."""
    state = replace(ordered(RESTART, is_moving=True), boot_backoff=struck(3, 4, "worker 5 exit code 3"))
    assert history.abort(state, 1).phase == "idle"


def test_an_abort_leaves_other_reasons() -> None:
    """Who is due by itself is replaced all the same."""
    state = history.abort(ordered(RESTART, is_moving=True), 1)
    assert actions(look(due(1), ready(2), target=2, state=state)) == (spawn(1),)


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        pytest.param(RESTART.abort(2), 5, id="the-newcomer-goes"),
        pytest.param(RESTART.abort(2).restart(0), 1, id="until-the-next-order"),
        pytest.param(RESTART.abort(2).pause().resume(), 5, id="a-pause-is-no-such-order"),
    ],
)
def test_whom_an_abort_has_left_too_many(orders: Orders, expected: int) -> None:
    """Of workers too many after an abort the newest goes: it came with what was given up."""
    seen = look(*FOUR, ready(5), target=4, generation=1, state=ordered(orders, completed=9))
    assert actions(seen) == (drain(expected, "scale"),)


def test_the_next_generation_replaces_who_was_spared() -> None:
    """An abort is for what was ordered before it."""
    orders = Orders().reload().abort(2).reload().settle_reload()
    seen = look(ready(1), ready(2, generation=2), target=2, generation=3, state=ordered(orders))
    assert plan(seen, POLICY).events == (started(2, "generation", 2),)


# -- the value itself
# --------------------------------------------------------------------------------------------------


def test_revisions_count_restarts_and_reloads() -> None:
    """Each of them has a number, pauses and single workers have none."""
    orders = Orders().restart(4).pause().reload().stop(3).resume().restart(9)
    assert (orders.revision, orders.awaiting, orders.aborted, orders.open) == (3, (2,), 0, (1, 2, 3))


@pytest.mark.parametrize(
    ("orders", "aborted"),
    [
        pytest.param(
            Orders().restart(1).reload().settle_reload(failure="SyntaxError"), 2, id="a-failed-reload"
        ),
        pytest.param(Orders().reload().settle_reload(), 0, id="one-that-is-in"),
        pytest.param(
            Orders().reload().restart(4).settle_reload(failure="SyntaxError"), 1, id="not-a-later-restart"
        ),
        pytest.param(Orders().reload().restart(4).abort(1), 2, id="everything"),
        pytest.param(
            Orders().restart(4).abort(1).settle_reload(failure="SyntaxError"), 1, id="it-never-falls"
        ),
    ],
)
def test_aborted(orders: Orders, aborted: int) -> None:
    """Whoever waits for a revision hears that it was given up."""
    assert (orders.aborted, orders.awaiting) == (aborted, ())


def test_a_reload_that_fails_takes_nobody_with_it() -> None:
    """Of orders that cross, each has its own end, and its own reason."""
    orders = Orders().restart(1).reload().restart(2).reload().settle_reload(failure="SyntaxError")
    assert (orders.open, orders.given_up) == ((1, 3), (GivenUp(revisions=(2, 4), because="SyntaxError"),))
    after = plan(look(ready(9), target=1, state=ordered(orders)), POLICY).state
    assert (after.completed, after.orders.open) == (3, ())
    assert after.orders.given_up == orders.given_up


def test_a_restart_does_not_wait_for_the_reload_of_somebody_else() -> None:
    """It is complete once everybody of its time is gone; the reload is open until its code is there."""
    orders = Orders().reload().restart(4)
    state = plan(look(ready(9), target=1, state=ordered(orders)), POLICY).state
    assert (state.completed, state.orders.open) == (2, (1,))
    state = history.settle_reload(state)
    old, new = ready(9), ready(10, generation=2)
    state = plan(look(old, new, target=1, generation=2, state=state), POLICY).state
    assert (state.completed, state.orders.open) == (2, (1,))
    state = plan(look(new, target=1, generation=2, state=state), POLICY).state
    assert (state.completed, state.orders.open) == (2, ())


def test_who_orders_too_much_hears_so() -> None:
    """What is remembered of orders has a bound, and the oldest ones are given up for it."""
    orders = Orders()
    for _ in range(OPEN_KEPT + 1):
        orders = orders.reload()
    assert orders.open == orders.awaiting == tuple(range(2, OPEN_KEPT + 2))
    assert orders.given_up == (GivenUp(revisions=(1,), because=TOO_MANY),)
    for age in range(GIVEN_UP_KEPT):
        orders = orders.restart(age).abort(1)
    assert len(orders.given_up) == GIVEN_UP_KEPT


def test_orders_come_over_a_reload() -> None:
    """With everything that somebody may still wait for."""
    orders = Orders().restart(1).reload().settle_reload(failure="SyntaxError").reload().stop(7)
    assert restore(Orders, json.loads(json.dumps(asdict(orders)))) == orders
