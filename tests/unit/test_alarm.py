"""A limit in time for foreign code, and what it leaves as it was."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from airflow_arbiter.alarm import LateError, alarm


@pytest.fixture(autouse=True)
def no_timer() -> Iterator[None]:
    """Without the timer that limits each test."""
    others = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, *others)


def test_the_alarm_gives_back_the_timer_of_others() -> None:
    """A process has one such timer; an errand, which warms up too, ends itself by it."""
    signal.setitimer(signal.ITIMER_REAL, 3600.0, 60.0)
    with alarm(10.0):
        pass
    left_s, pause_s = signal.getitimer(signal.ITIMER_REAL)
    assert 3500.0 < left_s <= 3600.0
    assert pause_s == 60.0


def test_the_alarm_leaves_no_timer() -> None:
    """What nobody had set does not ring later."""
    with alarm(10.0):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_swallows_the_alarm_is_broken_off_again() -> None:
    """Code that catches whatever comes, and goes on, hears it once more."""
    swallowed: list[BaseException] = []

    def swallow() -> None:
        with alarm(0.01):
            while True:
                try:
                    time.sleep(60)
                except LateError as error:
                    if swallowed:
                        raise
                    swallowed.append(error)

    with pytest.raises(LateError, match=r"not done within 0\.01 s"):
        swallow()
    assert len(swallowed) == 1


def test_an_alarm_within_another_leaves_it_on() -> None:
    """The warm-up has a limit of its own within that of the whole."""

    def nest() -> None:
        with alarm(0.02):
            with alarm(10.0):
                pass
            time.sleep(60)

    with pytest.raises(LateError, match=r"not done within 0\.02 s"):
        nest()
