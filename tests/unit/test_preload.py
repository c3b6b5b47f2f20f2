"""What the preload leaves as it was."""

from __future__ import annotations

import gc

import pytest

from airflow_arbiter import preload


@pytest.mark.parametrize("of_the_app", [(123456, 5, 5), (0, 10, 10)])
def test_an_app_that_sets_the_collector_while_it_is_imported(of_the_app: tuple[int, int, int]) -> None:
    """Its thresholds stay."""
    old = gc.get_threshold()
    try:
        with preload._rare_collections():
            gc.set_threshold(*of_the_app)
        assert gc.get_threshold() == of_the_app
    finally:
        gc.set_threshold(*old)


def test_a_collector_that_is_off_stays_off() -> None:
    """Whoever has turned it off has a reason."""
    old = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with preload._rare_collections():
            assert gc.get_threshold()[0] == 0
        assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*old)


def test_the_time_for_a_warm_up_in_a_reload() -> None:
    """A little more than the preflight needed; none where that did not end by itself."""
    assert preload.limit_after(0.0) == 0.0
    assert preload.limit_after(2.0) == pytest.approx(7.0)
