"""The sums that say what to set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from airflow_arbiter import doctor
from airflow_arbiter.doctor import Findings, advise

MIB = 1024**2
FOUND = Findings(
    boot_s=4.2,
    master_bytes=300 * MIB,
    private_bytes=100 * MIB,
    shared_bytes=200 * MIB,
    room_bytes=1200 * MIB,
    cpus=8,
    boot_timeout_s=120.0,
    drain_s=30.0,
    grace_s=40.0,
)


def test_all_is_well() -> None:
    """The example of the docstring."""
    assert advise(FOUND) == [
        ("measured", "boot 4.2 s; master 300 MiB; worker 100 MiB private, 200 MiB shared, idle"),
        ("workers", "3 (8 processors; memory for 3 and one while replacing)"),
        ("memory", "1200 MiB for 3 workers, one more while replacing, and a reload"),
        ("worker_boot_timeout", "120 s is enough"),
        (
            "termination_grace_period",
            "40 s is enough: graceful_timeout is 30 s, and the server takes 2 s itself",
        ),
    ]


@pytest.mark.parametrize(
    ("found", "name", "text"),
    [
        (replace(FOUND, cpus=2), "workers", "2 (2 processors; memory for 3 and one while replacing)"),
        (
            replace(FOUND, room_bytes=500 * MIB),
            "workers",
            "1 (8 processors; memory for 0 and one while replacing): a reload needs more than there is",
        ),
        (
            replace(FOUND, boot_s=31.0),
            "worker_boot_timeout",
            "160 s, instead of 120 s: 5 times what it took",
        ),
        (
            replace(FOUND, grace_s=30.0),
            "termination_grace_period",
            "32 s, instead of 30 s: graceful_timeout is 30 s, and the server takes 2 s itself",
        ),
    ],
)
def test_what_does_not_fit(found: Findings, name: str, text: str) -> None:
    """It is said what to set instead, and why."""
    assert dict(advise(found))[name] == text


def test_a_grace_period_that_is_not_known() -> None:
    """It is said what it should be."""
    assert dict(advise(replace(FOUND, grace_s=0.0)))["termination_grace_period"].startswith(
        "not known; Kubernetes' terminationGracePeriodSeconds or systemd's TimeoutStopSec should be at least"
    )


@pytest.mark.parametrize(("limit", "cpus"), [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1)])
def test_a_container_has_fewer_processors(tmp_path: Path, limit: str, cpus: int | None) -> None:
    """As its quota says, rounded up."""
    free = doctor._cpus(tmp_path)
    (tmp_path / "cpu.max").write_text(limit)
    assert doctor._cpus(tmp_path) == (free if cpus is None else min(free, cpus))
