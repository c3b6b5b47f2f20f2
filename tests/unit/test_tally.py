"""What is counted over the life of a server, by looks that follow one another."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from harness.planning import NOW, POLICY, SERVED, booting, due, killed, leaving, look, ready

from airflow_arbiter.pool import Departure, DrainReason, PoolView, RolloutState, WorkerView
from airflow_arbiter.report import Counters, Durations, Replaced
from airflow_arbiter.restoring import restore
from airflow_arbiter.rollout import plan
from airflow_arbiter.tally import Tally, count, counters


def gone(worker: WorkerView, *, exit_code: int = 0) -> Departure:
    return Departure(worker=worker, cause=f"exit code {exit_code}", exit_code=exit_code)


def asked(worker: WorkerView, reason: DrainReason, *, since: float = NOW - 5) -> WorkerView:
    return replace(leaving(worker, since=since), drain_reason=reason)


def counted(*views: PoolView) -> Tally:
    """Take looks in, each with what the planner learns of it."""
    tally = Tally()
    for view in views:
        tally = count(tally, view, plan(view, POLICY).state)
    return tally


# -- workers that come
# --------------------------------------------------------------------------------------------------


def test_each_worker_is_counted_as_spawned_once() -> None:
    """Also one that came and went between two looks, and not for a number that no worker ever had."""
    first = look(ready(1), booting(2), target=2)
    second = look(ready(1), booting(5), target=2, departures=(gone(booting(4), exit_code=3),))
    assert counted(first, first, second).departed.spawned == 4


def test_a_boot_is_measured_once() -> None:
    """From the spawn until it is ready, whenever the look at it comes."""
    slow = replace(ready(2, since=600), spawned_at=590)
    before = look(ready(1), booting(2), target=2)
    after = look(ready(1), slow, target=2)
    assert counted(before, after, after).departed.boot == Durations(count=2, sum_s=11.0, max_s=10.0)


def test_a_boot_is_measured_of_a_worker_that_is_gone_already() -> None:
    """Nothing is lost between two looks."""
    view = look(target=0, departures=(gone(ready(1)),))
    assert counted(view).departed.boot == Durations(count=1, sum_s=1.0, max_s=1.0)


# -- workers that go
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("departure", "changed"),
    [
        pytest.param(gone(ready(1), exit_code=-9), {"crashes": 1}, id="a-crash"),
        pytest.param(gone(killed(ready(1)), exit_code=-9), {"crashes": 1}, id="one-that-hung-is-a-crash"),
        pytest.param(gone(booting(1), exit_code=3), {"boots_failed": 1}, id="a-boot-that-failed"),
        pytest.param(gone(killed(booting(1)), exit_code=-9), {"boots_failed": 1}, id="a-boot-that-hung"),
        pytest.param(gone(replace(ready(1), quit_at=NOW)), {}, id="a-stop-in-a-hurry-is-no-crash"),
        pytest.param(
            gone(asked(ready(1), "scale")),
            {"drain": Durations(count=1, sum_s=5.0, max_s=5.0)},
            id="one-too-many-is-not-replaced",
        ),
        pytest.param(
            gone(leaving(ready(1)), exit_code=-15),
            {"drain": Durations(count=1, sum_s=5.0, max_s=5.0)},
            id="nor-is-one-that-somebody-else-asked",
        ),
        pytest.param(
            gone(asked(ready(1), "age")),
            {
                "drain": Durations(count=1, sum_s=5.0, max_s=5.0),
                "replaced": (Replaced(reason="age", outcome="drained", count=1),),
            },
            id="replaced",
        ),
        pytest.param(
            gone(killed(asked(ready(1), "command", since=NOW - 30)), exit_code=-9),
            {
                "drain": Durations(count=1, sum_s=30.0, max_s=30.0),
                "replaced": (Replaced(reason="command", outcome="killed", count=1),),
            },
            id="replaced-by-force",
        ),
        pytest.param(
            gone(asked(ready(1), "memory"), exit_code=-11),
            {
                "drain": Durations(count=1, sum_s=5.0, max_s=5.0),
                "replaced": (Replaced(reason="memory", outcome="failed", count=1),),
            },
            id="replaced,-though-it-died-on-the-way",
        ),
    ],
)
def test_departures(departure: Departure, changed: dict[str, object]) -> None:
    """Each worker that goes is counted by what it was, why it went and how."""
    before = Tally(newest_age=1, proved=(1,))
    view = look(ready(2), target=1, departures=(departure,))
    proved = {"spawned": 1, "boot": Durations(count=1, sum_s=1.0, max_s=1.0)}
    known = asdict(count(before, view, SERVED).departed)
    assert known == asdict(replace(Counters(**proved), **changed))  # type: ignore[arg-type]  # by name


def test_replacements_add_up() -> None:
    """One entry for each reason and outcome, in the order of their names."""
    departures = (
        gone(asked(ready(1), "requests")),
        gone(asked(ready(2), "age")),
        gone(asked(ready(3), "requests")),
    )
    assert counted(look(target=0, departures=departures)).departed.replaced == (
        Replaced(reason="age", outcome="drained", count=1),
        Replaced(reason="requests", outcome="drained", count=2),
    )


# -- stalls
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "stalls"),
    [
        pytest.param(SERVED, 1, id="newcomers-that-fail-hold-up"),
        pytest.param(RolloutState(), 0, id="the-very-first-do-not"),
    ],
)
def test_stalls(state: RolloutState, stalls: int) -> None:
    """Counted as often as it is told."""
    workers = [ready(1)] if state.has_served else []
    view = look(*workers, target=2, state=state, departures=(gone(booting(2), exit_code=3),))
    told = [event for event in plan(view, POLICY).events if event.name == "rollout.stalled"]
    assert counted(view).departed.stalls == len(told) == stalls


def test_an_early_death_is_a_stall_of_a_rollout() -> None:
    """Counted as often as it is told, too."""
    crash = (gone(ready(2, since=NOW - 1), exit_code=-11),)
    assert counted(look(due(1), target=1, departures=crash)).departed.stalls == 1
    assert counted(look(ready(1), target=1, departures=crash)).departed.stalls == 0


def test_a_success_is_no_stall() -> None:
    """A backoff that is forgotten counts nothing."""
    failed = look(ready(1), target=2, departures=(gone(booting(2), exit_code=3),))
    after = plan(failed, POLICY).state
    later = look(ready(1), ready(3, since=NOW + 1), target=2, state=after, now=NOW + 2)
    assert counted(failed, later).departed.stalls == 1


# -- requests, and what is told between two turns
# --------------------------------------------------------------------------------------------------


def test_requests_never_fall() -> None:
    """Those of a worker that goes are kept; one that is gone and not yet taken notice of counts once."""
    busy, other = replace(ready(1), requests=40), replace(ready(2), requests=2)
    before = look(busy, other, target=2)
    between = look(other, target=2, departures=(gone(replace(busy, requests=41)),))
    tally = counted(before)
    assert counters(tally, before).requests == 42
    assert counters(tally, between).requests == 43
    after = count(tally, between, SERVED)
    assert counters(after, look(other, target=2)).requests == 43


def test_telling_counts_nothing() -> None:
    """A look that is only told is not taken notice of."""
    view = look(ready(1), target=1)
    tally = counted(view)
    assert counters(tally, view) == counters(tally, view) == tally.departed


def test_a_tally_survives_its_way_to_the_next_image() -> None:
    """What is handed over is the same value afterwards."""
    tally = counted(look(ready(1), target=1, departures=(gone(asked(ready(2), "age")),)))
    assert restore(Tally, asdict(tally)) == tally
