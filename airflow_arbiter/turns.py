"""
How long the master's loop takes for its turns.

While it is in a turn it sees no signal and no deadline, so that a long one is a delay for everybody.
"""

from __future__ import annotations

import time

from airflow_arbiter import events

SLOW_TURN_S = 0.1
"""A longer turn is told, if it is the longest so far."""

SPAWN_BUDGET_S = 0.05
"""Time in a turn after which no further worker is forked: the next turn goes on at once."""


class Turns:
    """
    A stopwatch for turns: from the end of one sleep to the beginning of the next.

    :ivar longest_s: the longest so far, in seconds.
    :ivar slow: how many were longer than :data:`SLOW_TURN_S`.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.slow = 0
        self._began_at: float | None = None

    def begin(self) -> None:
        """Start the watch: the loop has woken."""
        self._began_at = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the turn began."""
        return 0.0 if self._began_at is None else time.monotonic() - self._began_at

    def end(self) -> None:
        """Stop the watch: the loop is about to sleep."""
        turn_s = self.elapsed_s
        self._began_at = None
        self.slow += turn_s > SLOW_TURN_S
        if turn_s > self.longest_s:
            self.longest_s = turn_s
            if turn_s > SLOW_TURN_S:
                events.publish("arbiter.turn_slow", level="warning", turn_ms=round(turn_s * 1000, 1))
