"""The parts of the documentation that are made from the code are what the code says now."""

from __future__ import annotations

from typing import get_args

import pages
import pytest
import settings_page
import states

from airflow_arbiter import settings
from airflow_arbiter.pool import Phase
from airflow_arbiter.report import WorkerState


@pytest.fixture(scope="module")
def seen() -> states.Seen:
    """What the planner was seen to do."""
    return states.explore()


def test_the_settings_are_current() -> None:
    """docs/settings.md is what scripts/settings_page.py makes, with every setting of ours in it."""
    page = settings_page.PAGE.read_text()
    made = pages.exchanged(page, settings_page.parts(), "settings_page.py")
    assert page == made, "run python scripts/settings_page.py"
    assert all(f"\n### {setting.name}\n" in page for setting in settings.OURS)


def test_the_states_are_current(seen: states.Seen) -> None:
    """docs/design.md is what scripts/states.py makes of the planner as it is."""
    page = states.PAGE.read_text()
    assert page == pages.exchanged(page, states.drawings(seen), "states.py"), "run python scripts/states.py"


def test_every_state_is_reached(seen: states.Seen) -> None:
    """Whatever can be reported of a worker or of the rollout is in the diagrams."""
    assert {after for _, after in seen.workers} == {*get_args(WorkerState), states.OUTSIDE}
    assert {after for _, after in seen.phases} == set(get_args(Phase))


def test_what_is_dead_stays_dead(seen: states.Seen) -> None:
    """The planner lets nobody who was asked to leave, or killed, come back."""
    assert {after for before, after in seen.workers if before == "draining"} == {"killed", states.OUTSIDE}
    assert {after for before, after in seen.workers if before == "killed"} == {states.OUTSIDE}
