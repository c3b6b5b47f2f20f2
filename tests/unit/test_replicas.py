"""Many replicas in virtual time: jitter keeps them from rolling in step."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from pathlib import Path

import replicas
from replicas import DAY_S, Fleet, Replica, simulate

from airflow_arbiter.pool import RolloutPolicy

ROOT = Path(__file__).parents[2]


def test_jitter_keeps_replicas_from_rolling_in_step() -> None:
    """Without jitter all replicas roll at once, with 0.1 a tenth of them at most; no worker is missed."""
    in_step = simulate(Fleet(replicas=40, workers=2, days=3, jitter=0))
    spread = simulate(Fleet(replicas=40, workers=2, days=3, jitter=0.1))
    assert in_step.most_at_once(2 * DAY_S) == 40
    assert spread.most_at_once() <= 4
    for outcome in (in_step, spread):
        assert outcome.fewest_available == 2
        assert outcome.replaced > 40 * 2 * 4


def test_turns_that_are_left_out_change_nothing() -> None:
    """A replica that takes a turn every second does what one does that leaves out those at which it rests."""

    class Restless(Replica):
        def _next(self, wake_in_s: float) -> float:
            return min(super()._next(wake_in_s), self.now + wake_in_s)

    policy = RolloutPolicy(refresh_interval_s=100, refresh_jitter=0.5)
    calm, restless = (kind(policy, 3, random.Random(5)) for kind in (Replica, Restless))
    calm.run(1000)
    restless.run(1000)
    assert len(calm.rolled) > 5
    assert calm.rolled == restless.rolled


def test_the_committed_figures_are_what_the_script_says() -> None:
    """The table of docs/scaling.md names the fleet that is the script's default."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    fleet = Fleet()
    assert "python scripts/replicas.py --svg docs/images/replicas.svg" in page
    header = replicas.table([simulate(Fleet(replicas=1, days=1))]).splitlines()[0]
    assert header in page
    assert f"{fleet.replicas} replicas of {fleet.workers} workers" in page
    drawing = ET.fromstring((ROOT / "docs" / "images" / "replicas.svg").read_text())
    assert drawing.tag.endswith("svg")
