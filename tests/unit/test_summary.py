"""What is told of a pool, by tables over what was seen of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from harness.planning import (
    NOW,
    POLICY,
    SERVED,
    booting,
    due,
    killed,
    leaving,
    listening,
    look,
    ready,
    struck,
)
from harness.reports import QUIET, SERVER

from airflow_arbiter.conditions import OFF
from airflow_arbiter.orders import GivenUp, Orders
from airflow_arbiter.pool import PoolView, Progress, Reason, RolloutPolicy, RolloutState, WorkerView
from airflow_arbiter.report import (
    Counters,
    PoolReport,
    ReloadReport,
    Report,
    RolloutReport,
    WorkerReport,
)
from airflow_arbiter.summary import NO_MEMORY, summarize


def told(view: PoolView, policy: RolloutPolicy = POLICY) -> Report:
    reload = ReloadReport(state="idle", failure="")
    return summarize(view, policy, server=SERVER, reload=reload, counters=Counters())


def with_state(*workers: WorkerView, **changes: object) -> PoolView:
    return look(*workers, target=len(workers), state=replace(SERVED, **changes))  # type: ignore[arg-type]


def growing(worker: WorkerView, **changes: object) -> PoolView:
    """A pool of one that should be of three, and has no memory for it."""
    seen = with_state(replace(worker, private_bytes=9), whole=1, **changes)
    return replace(seen, target=3, memory_room_bytes=8)


def test_a_report_is_plain_data() -> None:
    """It becomes JSON without further ado, and nothing is left out."""
    report = told(look(replace(ready(1), private_bytes=5), booting(2), target=2))
    data = json.loads(json.dumps(asdict(report)))
    assert data["workers"][0]["private_bytes"] == 5
    assert data["server"]["listeners"] == ["http://127.0.0.1:8080"]
    assert set(data) == {"server", "pool", "rollout", "reload", "workers", "counters"}


# -- workers
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "state"),
    [
        pytest.param(booting(1), "booting", id="booting"),
        pytest.param(listening(1), "listening", id="listens-without-having-proved-itself"),
        pytest.param(ready(1, since=NOW - 4), "ready", id="ready-for-less-than-it-must-be"),
        pytest.param(ready(1, beat_at=NOW - 30), "ready", id="ready-and-silent"),
        pytest.param(ready(1), "available", id="available"),
        pytest.param(leaving(ready(1)), "draining", id="draining"),
        pytest.param(replace(booting(1), quit_at=NOW), "draining", id="leaving-in-a-hurry"),
        pytest.param(killed(leaving(ready(1))), "killed", id="killed"),
    ],
)
def test_state_of_a_worker(worker: WorkerView, state: str) -> None:
    """One word says where a worker is in its life."""
    (report,) = told(look(worker, target=1), replace(POLICY, min_ready_s=5.0)).workers
    assert report.state == state


def test_a_worker_with_everything() -> None:
    """Each fact is told in seconds before now."""
    worker = replace(
        due(3),
        beat_at=NOW - 0.25,
        probed_at=NOW - 400,
        trouble="health check answered 200",
        private_bytes=7,
        requests=12,
        in_flight=2,
    )
    assert told(look(worker, target=1)).workers == (
        WorkerReport(
            pid=103,
            age=3,
            generation=1,
            state="available",
            booted=True,
            uptime_s=501.0,
            requests=12,
            in_flight=2,
            private_bytes=7,
            beat_ago_s=0.25,
            probe="health check answered 200",
            probe_ago_s=400.0,
            due="requests",
        ),
    )


def test_who_leaves_before_it_has_booted_has_not() -> None:
    """Its state tells no more by then."""
    workers = told(look(leaving(booting(1)), killed(leaving(ready(2))), listening(3), target=1)).workers
    assert [(worker.state, worker.booted) for worker in workers] == [
        ("draining", False),
        ("killed", True),
        ("listening", True),
    ]


def test_workers_are_told_oldest_first() -> None:
    """Whatever order they were seen in."""
    assert [w.age for w in told(look(ready(3), ready(1), ready(2), target=3)).workers] == [1, 2, 3]


def test_a_beat_after_the_look_began_is_now() -> None:
    """Workers go on while they are looked at."""
    assert told(look(ready(1, beat_at=NOW + 0.01), target=1)).workers[0].beat_ago_s == 0


@pytest.mark.parametrize(("reason", "expected"), [("age", "requests"), ("scale", None), ("stop", None)])
def test_who_leaves_for_something_else_is_not_due(reason: Reason, expected: Reason | None) -> None:
    """A worker that is too many has no successor to wait for."""
    worker = replace(leaving(due(1)), drain_reason=reason)
    assert told(look(worker, target=1)).workers[0].due == expected


# -- the pool, and the rollout
# --------------------------------------------------------------------------------------------------


def test_pool() -> None:
    """Each worker counts where it is, and the surge is what there is room for."""
    seen = look(ready(1), leaving(ready(2)), booting(3), killed(ready(4)), listening(5), target=2)
    seen = replace(seen, memory_room_bytes=9)
    assert told(seen, replace(POLICY, surge=4)).pool == PoolReport(
        target=2, available=1, live=5, surge=2, booting=1, draining=1, memory_room_bytes=9
    )


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(look(ready(1), target=1), QUIET, id="nothing"),
        pytest.param(
            with_state(
                leaving(ready(1)),
                due(5),
                ready(6),
                progress=Progress(started_at=NOW - 12.5, replaced=2),
                orders=Orders().restart(4),
            ),
            replace(
                QUIET,
                phase="progressing",
                reasons=("command", "requests"),
                replaced=2,
                due=2,
                running_s=12.5,
                revision=1,
                open=(1,),
            ),
            id="moving",
        ),
        pytest.param(
            with_state(ready(1), boot_backoff=struck(2, 3.5, "worker 2 exit code 3")),
            replace(QUIET, phase="stalled", stalled=True, retry_in_s=3.5, because="worker 2 exit code 3"),
            id="stalled,-and-why",
        ),
        pytest.param(
            with_state(
                ready(1), boot_backoff=struck(2, 3.5, "worker 2 exit code 3"), orders=Orders().pause()
            ),
            replace(QUIET, phase="paused", stalled=True, retry_in_s=3.5, because="worker 2 exit code 3"),
            id="stalled-in-a-pause",
        ),
        pytest.param(
            with_state(
                due(1),
                crash_backoff=struck(1, 0, "worker 2 signal SIGSEGV"),
                progress=Progress(started_at=NOW - 1),
            ),
            replace(
                QUIET,
                phase="stalled",
                stalled=True,
                reasons=("requests",),
                due=1,
                running_s=1.0,
                because="worker 2 signal SIGSEGV",
            ),
            id="stalled-by-newcomers-that-die-though-somebody-serves",
        ),
        pytest.param(
            look(
                target=1,
                state=replace(SERVED, crash_backoff=struck(2, 1, "worker 2 signal SIGSEGV"), held_back=1),
            ),
            replace(QUIET, phase="stalled", stalled=True, retry_in_s=1.0, because="worker 2 signal SIGSEGV"),
            id="nobody-is-left-after-crashes",
        ),
        pytest.param(
            replace(look(replace(due(1), private_bytes=9), target=1), memory_room_bytes=8),
            replace(QUIET, phase="stalled", reasons=("requests",), due=1, stalled=True, because=NO_MEMORY),
            id="the-only-worker-has-no-room-for-a-successor",
        ),
        pytest.param(
            growing(ready(1)),
            replace(
                QUIET,
                phase="stalled",
                stalled=True,
                because="the container has no memory for more workers than 1",
            ),
            id="there-is-no-room-to-grow",
        ),
        pytest.param(
            growing(ready(1), progress=Progress(started_at=NOW)),
            replace(
                QUIET,
                phase="progressing",
                running_s=0.0,
                because="the container has no memory for more workers than 1",
            ),
            id="which-holds-no-rollout-up",
        ),
        pytest.param(growing(leaving(ready(1))), QUIET, id="nor-is-it-known-while-somebody-leaves"),
        pytest.param(
            replace(look(replace(due(1), private_bytes=9), ready(2), target=2), memory_room_bytes=8),
            replace(QUIET, reasons=("requests",), due=1),
            id="who-is-replaced-in-place-waits-for-nothing",
        ),
        pytest.param(
            with_state(ready(1), crash_backoff=struck(2, 1, "worker 2 signal SIGSEGV"), held_back=1),
            replace(QUIET, retry_in_s=1.0, because="worker 2 signal SIGSEGV"),
            id="waiting-after-crashes",
        ),
        pytest.param(
            with_state(ready(1), crash_backoff=struck(3, 4, "worker 2 signal SIGSEGV")),
            QUIET,
            id="a-crash-that-nobody-waits-for",
        ),
        pytest.param(
            with_state(ready(1), orders=Orders().restart(1).pause()),
            replace(QUIET, phase="paused", reasons=("command",), due=1, revision=1, open=(1,)),
            id="paused",
        ),
        pytest.param(
            with_state(ready(9), orders=Orders().restart(1).restart(4).abort(1).restart(8)),
            replace(QUIET, revision=3, aborted=2, open=(3,), given_up=(GivenUp(revisions=(1, 2)),)),
            id="revisions",
        ),
    ],
)
def test_rollout(seen: PoolView, expected: RolloutReport) -> None:
    """Where the replacing is, how far, and what holds it up."""
    assert told(seen).rollout == expected


@pytest.mark.parametrize(
    "state", [SERVED, replace(SERVED, boot_backoff=struck(2, 3, "worker 2 exit code 3"))]
)
def test_a_pool_that_replaces_nobody_says_why(state: RolloutState) -> None:
    """With surge 0 nobody is due, and that comes before all other reasons."""
    rollout = told(look(due(1), target=1, state=state), replace(POLICY, surge=0)).rollout
    assert (rollout.due, rollout.because) == (0, OFF)
