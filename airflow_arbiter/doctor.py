"""
What to set here: boots a server of one worker for a moment, looks at it, and does the sums.

Owns the throw-away server, which shares nothing with one that runs but its configuration, and the rules of
thumb. It is idle: what requests cost is not in it.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from airflow_arbiter import client, limits, memory
from airflow_arbiter.client import LostError, NoServerError
from airflow_arbiter.errors import ArbiterError

WARMED_UP = 1.5
"""A worker that has served holds so many times what an idle one does. A rule of thumb: measure your own."""

SLOW_BOOTS = 5
"""A boot on a busy machine takes so many times as long. As above."""

LONGEST_BOOT_S = 600.0
_LEAVE_S = 60.0
_MIB = 1024**2

_OTHERS = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "GUNICORN_FD", "GUNICORN_PID")
"""What would make a second server speak for the first, or take its sockets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """
    What was measured, and what is configured.

    :param boot_s: from the fork of a worker until it was ready.
    :param master_bytes: what the master holds.
    :param private_bytes: what a worker holds alone.
    :param shared_bytes: what it shares with its master.
    :param room_bytes: what this container, or machine, may still take.
    :param cpus: processors that may be used.
    :param boot_timeout_s: ``worker_boot_timeout``.
    :param drain_s: ``graceful_timeout``.
    :param grace_s: ``termination_grace_period``; 0 where it is not known.
    """

    boot_s: float
    master_bytes: int
    private_bytes: int
    shared_bytes: int
    room_bytes: int
    cpus: int
    boot_timeout_s: float
    drain_s: float
    grace_s: float


def advise(found: Findings) -> list[tuple[str, str]]:
    """
    Say what to set.

    Example: a master of 300 MiB, a worker of 100 MiB, 1,200 MiB of room. A reload needs a second master for a
    moment; of the 600 MiB that are left, workers that are warmed up take 150 MiB each: 4, of which one is the
    surge. So at most 3 workers, or as many as there are processors.

    :return: names, and what is to be said of each.
    """
    worker_bytes = max(1, round(found.private_bytes * WARMED_UP))
    fit = (found.room_bytes - 2 * found.master_bytes) // worker_bytes - 1
    workers = max(1, min(found.cpus, fit))
    needed = 2 * found.master_bytes + (workers + 1) * worker_bytes
    processes = f"boot {found.boot_s:.1f} s; master {_mib(found.master_bytes)}"
    worker = f"worker {_mib(found.private_bytes)} private, {_mib(found.shared_bytes)} shared, idle"
    bounds = f"{found.cpus} processors; memory for {max(0, fit)} and one while replacing"
    return [
        ("measured", f"{processes}; {worker}"),
        ("workers", f"{workers} ({bounds})" + ("" if fit >= 1 else ": a reload needs more than there is")),
        ("memory", f"{_mib(needed)} for {workers} workers, one more while replacing, and a reload"),
        ("worker_boot_timeout", _boot_timeout(found)),
        ("termination_grace_period", _grace(found)),
    ]


def _boot_timeout(found: Findings) -> str:
    needed_s = math.ceil(found.boot_s * SLOW_BOOTS / 10) * 10
    if found.boot_timeout_s >= needed_s:
        return f"{found.boot_timeout_s:g} s is enough"
    return f"{needed_s} s, instead of {found.boot_timeout_s:g} s: {SLOW_BOOTS} times what it took"


def _grace(found: Findings) -> str:
    needed_s = math.ceil(found.drain_s + limits.STOP_MARGIN_S)
    drain = f"graceful_timeout is {found.drain_s:g} s, and the server takes {limits.STOP_MARGIN_S} s itself"
    if not found.grace_s:
        return (
            f"not known; Kubernetes' terminationGracePeriodSeconds or systemd's TimeoutStopSec should be at "
            f"least {needed_s} s, and be told here: {drain}"
        )
    if found.grace_s < needed_s:
        return f"{needed_s} s, instead of {found.grace_s:g} s: {drain}"
    return f"{found.grace_s:g} s is enough: {drain}"


def _mib(number: int) -> str:
    return f"{number / _MIB:.0f} MiB"


# -- the throw-away server
# -------------------------------------------------------------------------------------------------------


def examine(arguments: Sequence[str]) -> Findings:
    """
    Boot a server of one worker, look at it, and end it.

    :param arguments: of ``python -m airflow_arbiter``: an app, options.
    :raises ArbiterError: when it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="arbiter") as made:
        folder = Path(made)
        with _serving(arguments, folder) as process:
            return _look(process, folder)


@contextlib.contextmanager
def _serving(arguments: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = (
        f"--bind=unix:{folder / 'http'}",
        f"--control-socket={folder / 'control'}",
        f"--pid={folder / 'pid'}",
        "--workers=1",
    )
    environment = {name: value for name, value in os.environ.items() if name not in _OTHERS}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # ourselves
            [sys.executable, "-m", "airflow_arbiter", *arguments, *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _look(process: subprocess.Popen[bytes], folder: Path) -> Findings:
    seen = _wait(process, folder)
    config = client.ask(folder / "control", "show config")
    worker = psutil.Process(seen["workers"][0]["pid"]).memory_full_info()
    room_bytes = memory.Container().room_bytes()
    master_bytes: int = psutil.Process(process.pid).memory_info().rss
    available: int = psutil.virtual_memory().available + master_bytes + worker.uss
    return Findings(
        boot_s=seen["counters"]["boot"]["max_s"],
        master_bytes=master_bytes,
        private_bytes=worker.uss,
        shared_bytes=max(0, worker.rss - worker.uss),
        room_bytes=min(
            available, available if room_bytes is None else room_bytes + master_bytes + worker.uss
        ),
        cpus=_cpus(),
        boot_timeout_s=config["worker_boot_timeout"],
        drain_s=config["graceful_timeout"],
        grace_s=config["termination_grace_period"],
    )


def _wait(process: subprocess.Popen[bytes], folder: Path) -> client.AsJson:
    """
    Wait until its worker is available.

    :raises ArbiterError: when that does not come about.
    """
    ends_at = time.monotonic() + LONGEST_BOOT_S
    while process.poll() is None and time.monotonic() < ends_at:
        with contextlib.suppress(NoServerError, LostError):
            seen = client.report(folder / "control")
            if seen["pool"]["available"]:
                return seen
        time.sleep(0.1)
    sys.stderr.write((folder / "log").read_text(errors="replace"))
    raise ArbiterError("the server did not come up; what it has said is above")


def _cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Tell how many processors may be used: by affinity, and by the container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, (root / "cpu.max").read_text().split())
        cpus = min(cpus, math.ceil(quota / period))
    return max(1, cpus)
