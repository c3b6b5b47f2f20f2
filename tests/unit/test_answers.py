"""What counts as an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.reports import as_json

from airflow_arbiter import answers
from airflow_arbiter.answers import NotUnderstoodError


@pytest.fixture
def report() -> Any:
    """A report as it comes over the wire."""
    return json.loads(json.dumps(as_json()))


def test_a_report_of_our_version(report: Any) -> None:
    """It is read as it is."""
    assert answers.report(report) == report


def test_a_report_of_a_later_version(report: Any) -> None:
    """What is new to us is let through, words too."""
    report["server"]["new"] = [1]
    report["new"] = {}
    report["workers"][0]["state"] = "dreaming"
    assert answers.report(report) == report


def test_a_report_of_an_earlier_version(report: Any) -> None:
    """What came later has its default."""
    for part, name in (("server", "successor_pid"), ("rollout", "open"), ("counters", "boot")):
        del report[part][name]
    read = answers.report(report)
    assert read["server"]["successor_pid"] == 0
    assert list(read["rollout"]["open"]) == []
    assert read["counters"]["boot"] == {"count": 0, "sum_s": 0.0, "max_s": 0.0}


@pytest.mark.parametrize(
    ("part", "name", "value", "because"),
    [
        ("server", "pid", None, "pid cannot be None"),
        ("server", "pid", True, "pid cannot be True"),
        ("server", "listeners", "one", "listeners cannot be 'one'"),
        ("pool", "target", "2", "target cannot be '2'"),
        ("rollout", "phase", 1, "phase cannot be 1"),
        ("rollout", "retry_in_s", "soon", "retry_in_s cannot be 'soon'"),
        ("counters", "boot", [], "boot is no object"),
    ],
)
def test_what_is_no_report(report: Any, part: str, name: str, value: Any, because: str) -> None:
    """It is said what is wrong with it."""
    report[part][name] = value
    with pytest.raises(NotUnderstoodError, match=because):
        answers.report(report)
    del report[part]
    with pytest.raises(NotUnderstoodError, match=f"there is no {part}"):
        answers.report(report)
