"""Values that another version of this package has left."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import pytest
from harness.planning import SERVED, struck, under_way

from airflow_arbiter.orders import Orders
from airflow_arbiter.pool import Gap, Progress, RolloutState
from airflow_arbiter.restoring import restore


@dataclass(frozen=True, kw_only=True)
class Part:
    number: int
    ratio: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str = "none"
    kind: Literal["a", "b"] = "a"
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    is_on: bool = False
    ratio: float = 1.0
    inner: Part = field(default_factory=lambda: Part(number=7))


WHOLE = Whole(name="x", kind="b", part=Part(number=1), parts=(Part(number=2), Part(number=3)), is_on=True)


def through_json(value: object) -> dict[str, object]:
    made: dict[str, object] = json.loads(json.dumps(asdict(value)))  # type: ignore[call-overload]  # a value
    return made


@pytest.mark.parametrize(
    "state",
    [
        RolloutState(),
        under_way(replaced=3),
        replace(SERVED, boot_backoff=struck(3, 4, "worker 5 exit code 3"), completed=2),
        replace(SERVED, orders=Orders().restart(4).reload().stop(7).pause()),
        replace(SERVED, gaps=(Gap(since=1.5, until=9.0), Gap(since=10.0, until=20.0))),
    ],
)
def test_what_the_planner_remembers_comes_back(state: RolloutState) -> None:
    """Moments that never were included, which JSON has no numbers for."""
    assert restore(RolloutState, through_json(state)) == state


def test_a_whole_value_comes_back() -> None:
    """Values in values, and values in tuples."""
    assert restore(Whole, through_json(WHOLE)) == WHOLE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"of_the_future": 1}, WHOLE, id="what-is-not-known-is-left-out"),
        pytest.param({"name": None}, replace(WHOLE, name="none"), id="another-form-is-a-default"),
        pytest.param({"kind": "z"}, replace(WHOLE, kind="a"), id="another-word-is-a-default"),
        pytest.param({"is_on": 1}, replace(WHOLE, is_on=False), id="a-number-is-no-truth"),
        pytest.param({"ratio": 2}, replace(WHOLE, ratio=2.0), id="a-whole-number-is-a-number"),
        pytest.param({"part": None}, replace(WHOLE, part=None), id="nothing-where-that-may-be"),
        pytest.param(
            {"part": {"ratio": 1.0}}, replace(WHOLE, part=None), id="a-part-that-lacks-what-it-needs"
        ),
        pytest.param({"inner": {"number": 8}}, replace(WHOLE, inner=Part(number=8)), id="the-rest-of-a-part"),
        pytest.param({"inner": 8}, WHOLE, id="no-part-at-all"),
        pytest.param({"parts": [{"number": 2}, "?"]}, replace(WHOLE, parts=()), id="a-list-with-a-stranger"),
    ],
)
def test_another_version_is_understood(changes: dict[str, object], expected: Whole) -> None:
    """Each value for itself: one that is not understood costs no other."""
    assert restore(Whole, {**through_json(WHOLE), **changes}) == expected


def test_what_is_missing_has_a_default() -> None:
    """An older version did not know it."""
    values = through_json(WHOLE)
    del values["name"]
    assert restore(Whole, values) == replace(WHOLE, name="none")


@pytest.mark.parametrize("values", [None, [], "state", 3])
def test_nonsense_is_all_defaults(values: object) -> None:
    """Nothing that comes keeps a master from starting."""
    assert restore(Whole, values) == Whole()


def test_progress_without_its_beginning_is_none() -> None:
    """A part that cannot be made is left out; the rollout is then told as a new one."""
    assert restore(RolloutState, {"progress": {"replaced": 3}}).progress is None
    assert restore(RolloutState, {"progress": {"started_at": 3.0}}).progress == Progress(started_at=3.0)
