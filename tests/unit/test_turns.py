"""The stopwatch of the master's loop."""

from __future__ import annotations

import time

import pytest

from airflow_arbiter.turns import SLOW_TURN_S, Turns


def take(turns: Turns, seconds: float) -> None:
    """Take a turn of so many seconds."""
    turns.begin()
    turns._began_at = time.monotonic() - seconds
    turns.end()


def test_slow_turns_are_counted_and_the_longest_is_kept() -> None:
    """Each that is too long counts, also one that is not the longest."""
    turns = Turns()
    for seconds in (0.0, 3 * SLOW_TURN_S, 2 * SLOW_TURN_S, 0.01):
        take(turns, seconds)
    assert turns.slow == 2
    assert turns.longest_s == pytest.approx(3 * SLOW_TURN_S, abs=0.05)


def test_a_sleep_is_no_turn() -> None:
    """Whoever ends what has not begun has taken no time."""
    turns = Turns()
    turns.end()
    assert (turns.slow, turns.longest_s, turns.elapsed_s) == (0, 0.0, 0.0)
