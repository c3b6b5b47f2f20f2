"""
What to set here: the sums, from what was seen of a server of one worker, see
:mod:`airflow_arbiter.examination`.

Owns the rules of thumb. That server is idle: what requests cost is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_arbiter import limits

WARMED_UP = 1.5
"""A worker that has served holds so many times what an idle one does. A rule of thumb: measure your own."""

SLOW_BOOTS = 5
"""A boot on a busy machine takes so many times as long. As above."""

_MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """
    A server that runs here already.

    :param pid: of its master.
    :param held_bytes: memory that would be free without it.
    :param one_worker_bytes: what it would take with one worker, at most.
    """

    pid: int
    held_bytes: int
    one_worker_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """
    What was measured, and what is configured.

    :param start_s: from the start of the server until a worker was available. With preload, the app is
        imported before the worker is made.
    :param boot_s: from the fork of a worker until it was ready.
    :param master_bytes: what the master holds.
    :param private_bytes: what a worker holds alone.
    :param shared_bytes: what it shares with its master.
    :param room_bytes: what this container, or machine, may take, without this server and those that run.
    :param cpus: processors that may be used.
    :param boot_timeout_s: ``worker_boot_timeout``.
    :param drain_s: ``graceful_timeout``.
    :param grace_s: ``termination_grace_period``; 0 where it is not known.
    :param running: servers that ran meanwhile.
    """

    start_s: float
    boot_s: float
    master_bytes: int
    private_bytes: int
    shared_bytes: int
    room_bytes: int
    cpus: int
    boot_timeout_s: float
    drain_s: float
    grace_s: float
    running: tuple[Running, ...] = ()


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
    times = f"start {_seconds(found.start_s)}, of which the worker's boot {_seconds(found.boot_s)}"
    processes = f"{times}; master {mib(found.master_bytes)}"
    worker = f"worker {mib(found.private_bytes)} private, {mib(found.shared_bytes)} shared, idle"
    bounds = f"{found.cpus} processors; memory for {max(0, fit)} and one while replacing"
    return [
        ("measured", f"{processes}; {worker}{_beside(found.running)}"),
        ("workers", f"{workers} ({bounds})" + ("" if fit >= 1 else ": a reload needs more than there is")),
        ("memory", f"{mib(needed)} for {workers} workers, one more while replacing, and a reload"),
        ("worker_boot_timeout", _boot_timeout(found)),
        ("startup", _startup(found)),
        ("termination_grace_period", _grace(found)),
    ]


def _seconds(duration_s: float) -> str:
    """Write a duration, with what matters of a short one."""
    return f"{duration_s:.1f} s" if duration_s >= 1 else f"{duration_s:.2f} s"


def _startup(found: Findings) -> str:
    """The import is done first, and each worker has its own time after that."""
    before_s = max(0.0, found.start_s - found.boot_s)
    needed_s = math.ceil((before_s * SLOW_BOOTS + found.boot_timeout_s) / 10) * 10
    return (
        f"{needed_s} s for Kubernetes' startup probe (failureThreshold times periodSeconds) or systemd's "
        f"TimeoutStartSec: {SLOW_BOOTS} times the {_seconds(before_s)} before the worker's boot, and "
        "worker_boot_timeout"
    )


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
        lowered_s = math.floor(found.grace_s - limits.STOP_MARGIN_S)
        cut = f"as it is, the drain is cut to {lowered_s} s"
        return f"{needed_s} s, instead of {found.grace_s:g} s: {drain}; {cut}"
    return f"{found.grace_s:g} s is enough: {drain}"


def _beside(running: Sequence[Running]) -> str:
    """Say what ran meanwhile, and what that means for the sums: what is advised is in its place."""
    if not running:
        return ""
    pids = ", ".join(str(server.pid) for server in running)
    return f"; beside pid {pids}, whose {mib(sum(server.held_bytes for server in running))} count as free"


def mib(number: int) -> str:
    """Write a number of bytes for people."""
    return f"{number / _MIB:.0f} MiB"
