"""The sums that say what to set."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_arbiter import examination
from airflow_arbiter.doctor import Findings, Running, advise
from airflow_arbiter.errors import ArbiterError
from airflow_arbiter.memory import Container

MIB = 1024**2
FOUND = Findings(
    start_s=10.2,
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

TIMES = "start 10.2 s, of which the worker's boot 4.2 s"
PROBE = "Kubernetes' startup probe (failureThreshold times periodSeconds) or systemd's TimeoutStartSec"
BEFORE = "before the worker's boot, and worker_boot_timeout"
DRAIN = "graceful_timeout is 30 s, and the server takes 2 s itself"


def test_all_is_well() -> None:
    """The example of the docstring."""
    assert advise(FOUND) == [
        ("measured", f"{TIMES}; master 300 MiB; worker 100 MiB private, 200 MiB shared, idle"),
        ("workers", "3 (8 processors; memory for 3 and one while replacing)"),
        ("memory", "1200 MiB for 3 workers, one more while replacing, and a reload"),
        ("worker_boot_timeout", "120 s is enough"),
        ("startup", f"150 s for {PROBE}: 5 times the 6.0 s {BEFORE}"),
        ("termination_grace_period", f"40 s is enough: {DRAIN}"),
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
            f"32 s, instead of 30 s: {DRAIN}; as it is, the drain is cut to 28 s",
        ),
    ],
)
def test_what_does_not_fit(found: Findings, name: str, text: str) -> None:
    """It is said what to set instead, and why."""
    assert dict(advise(found))[name] == text


def test_a_start_with_preload() -> None:
    """The worker has next to nothing left to do; what has taken long is told all the same."""
    told = dict(advise(replace(FOUND, start_s=5.9, boot_s=0.04)))
    assert told["measured"].startswith("start 5.9 s, of which the worker's boot 0.04 s; ")
    assert told["startup"].startswith("150 s for ")
    assert "5 times the 5.9 s before" in told["startup"]


def test_a_grace_period_that_is_not_known() -> None:
    """It is said what it should be."""
    assert dict(advise(replace(FOUND, grace_s=0.0)))["termination_grace_period"].startswith(
        "not known; Kubernetes' terminationGracePeriodSeconds or systemd's TimeoutStopSec should be at least"
    )


@pytest.mark.parametrize(("limit", "cpus"), [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1)])
def test_a_container_has_fewer_processors(tmp_path: Path, limit: str, cpus: int | None) -> None:
    """As its quota says, rounded up."""
    free = examination._cpus(tmp_path)
    (tmp_path / "cpu.max").write_text(limit)
    assert examination._cpus(tmp_path) == (free if cpus is None else min(free, cpus))


RUNNING = Running(pid=17, held_bytes=900 * MIB, one_worker_bytes=400 * MIB)


def test_what_ran_meanwhile_is_told() -> None:
    """The advice is for a server in the place of those, whose memory is counted as room."""
    told = dict(advise(replace(FOUND, running=(RUNNING, replace(RUNNING, pid=18)))))
    assert told["measured"].endswith(", idle; beside pid 17, 18, whose 1800 MiB count as free")


def test_what_is_not_enough_is_not_tried() -> None:
    """By a server that runs, or by the rule of thumb; and it is said what to do instead."""
    examination._make_sure_of_room(512 * MIB, ())
    examination._make_sure_of_room(400 * MIB, (RUNNING,))
    with pytest.raises(
        ArbiterError, match=r"may take 512 MiB \(where none runs .* and 511 MiB are left here"
    ):
        examination._make_sure_of_room(511 * MIB, ())
    with pytest.raises(ArbiterError, match=r"may take 400 MiB \(as the one that runs\), and 399 MiB"):
        examination._make_sure_of_room(399 * MIB, (RUNNING,))


def test_the_room_of_a_container(tmp_path: Path) -> None:
    """The smaller of its own and the machine's."""
    everything = examination._room_bytes(Container(tmp_path, "/"))
    assert everything > 10
    (tmp_path / "memory.max").write_text("100")
    (tmp_path / "memory.current").write_text("90")
    assert examination._room_bytes(Container(tmp_path, "/")) == 10


def test_what_the_system_refuses_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As an error of ours, for one line."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ArbiterError, match=r"could not be measured: .*No such file"):
        examination.examine(["hello:app"])


@pytest.mark.parametrize("is_asked_again", [False, True])
def test_a_server_that_does_not_leave_is_killed(
    monkeypatch: pytest.MonkeyPatch, is_asked_again: bool
) -> None:
    """Once the time is over, or at once with a second Ctrl-C."""
    code = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True, bufsize=0
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.read(1)
    if is_asked_again:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            examination._end(process)
        signal.signal(signal.SIGALRM, before)
    else:
        monkeypatch.setattr(examination, "_LEAVE_S", 0.2)
        examination._end(process)
    assert process.poll() == -signal.SIGKILL
