"""When a master takes in new code, as far as no process is needed for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_arbiter import history
from airflow_arbiter.errors import IntegrationError
from airflow_arbiter.pool import RolloutState
from airflow_arbiter.reloading import Reloader


class Master:
    """What of a master a reload touches; its app cannot be handed over."""

    def __init__(self, *, room_bytes: int | None = None) -> None:
        self.state = RolloutState(has_served=True, has_proved=True)
        self.cfg = SimpleNamespace(preload_app=True)
        self.generation = 1
        self.load_error = None
        self.execs = 0
        self.app = SimpleNamespace(served=SimpleNamespace(prepare_fork=self._prepare_fork))
        self.reloader = Reloader(self, SimpleNamespace(room_bytes=lambda: room_bytes))  # type: ignore[arg-type]

    def _prepare_fork(self) -> None:
        self.execs += 1
        raise IntegrationError("this is how far it comes")

    def pass_preflight(self) -> None:
        self.reloader._passed = "command"


@pytest.fixture
def full() -> Master:
    """A master in whose container there is no memory to try new code."""
    return Master(room_bytes=0)


def test_an_image_that_has_seen_something_does_not_leave_with_it() -> None:
    """Who has gone is counted before the next image comes, which then comes without a pause."""
    master = Master()
    master.pass_preflight()
    master.reloader.turn(may_leave=False)
    assert (master.execs, master.reloader.wake_in_s, master.reloader.is_running) == (0, 0.0, True)
    master.reloader.turn(may_leave=True)
    assert (master.execs, master.reloader.is_running) == (1, False)


def test_a_reload_that_waits_says_for_what(full: Master) -> None:
    """It is open until it goes well, and tells when it is tried again; asked anew it waits for nothing."""
    full.reloader.want("command")
    assert full.reloader.report().retry_in_s is None
    full.reloader.turn(may_leave=True)
    told = full.reloader.report()
    assert (told.state, told.awaiting) == ("waiting", (1,))
    assert told.failure.startswith("no memory to try the new code")
    assert told.retry_in_s == pytest.approx(1.0, abs=0.5)
    full.reloader.want("command")
    told = full.reloader.report()
    assert (told.state, told.awaiting, told.retry_in_s) == ("waiting", (1, 2), None)


def test_who_gives_up_a_reload_gives_up_its_failure(full: Master) -> None:
    """Nobody is told of it afterwards as of the last one."""
    full.reloader.want("command")
    full.reloader.turn(may_leave=True)
    full.reloader.give_up()
    full.state = history.abort(full.state, 1)
    full.reloader.turn(may_leave=True)
    told = full.reloader.report()
    assert (told.state, told.failure, told.awaiting) == ("idle", "", ())
    assert full.state.orders.given_up[-1].because == ""


def test_a_refusal_stays_with_its_reload() -> None:
    """Who waits for it hears why, in one line, whatever comes later."""
    master = Master()
    master.reloader.want("command")
    master.reloader._wanted = ""
    master.reloader.failure = "SyntaxError:\n  line 3"
    master.reloader.turn(may_leave=True)
    (given_up,) = master.state.orders.given_up
    assert (given_up.revisions, given_up.because) == ((1,), "SyntaxError: line 3")
