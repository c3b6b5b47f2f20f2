"""
What a whole server holds and has spent: the memory and processor time of its tree of processes.

Sizes are in MiB, from ``/proc/PID/smaps_rollup``. PSS counts a page that several processes share as a part of
each, so that a sum over the tree counts it once; private (USS) is what only one process has.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterable
from pathlib import Path

from bench.ruler import PROC, tasks

KIB_PER_MIB = 1024


def tree(pid: int) -> list[int]:
    """A process and all that come from it, itself first."""
    pids = [pid]
    for parent in pids:
        for task in tasks(parent):
            with contextlib.suppress(OSError):
                pids += map(int, (task / "children").read_text().split())
    return pids


def held(master: int, workers: Iterable[int]) -> dict[str, float]:
    """
    Tell what a server holds.

    :return: PSS of the whole tree, and of one worker in the middle its PSS and private memory.
    """
    sizes = {pid: rollup for pid in tree(master) if (rollup := _rollup(pid))}
    pss = {pid: rollup["Pss"] for pid, rollup in sizes.items()}
    private = {pid: rollup["Private_Clean"] + rollup["Private_Dirty"] for pid, rollup in sizes.items()}
    workers = [pid for pid in workers if pid in sizes]
    return {
        "tree_mib": _mib(sum(pss.values())),
        "worker_pss_mib": _mib(statistics.median(pss[pid] for pid in workers)),
        "worker_private_mib": _mib(statistics.median(private[pid] for pid in workers)),
        "worker_private_max_mib": _mib(max(private[pid] for pid in workers)),
        "master_private_mib": _mib(private[master]),
    }


def cpu_s(master: int) -> float:
    """Processor time of the whole tree, user and system, the ended and reaped ones included, in seconds."""
    ticks = 0
    for pid in tree(master):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold blanks. Then: state is field 3, utime to cstime are 14 to 17.
            fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _rollup(pid: int) -> dict[str, int]:
    """The sizes of a process by name, in KiB; nothing if it is gone, or has no memory any more."""
    sizes = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, size = line.partition(":")
            sizes[name] = int(size.split()[0])
    return sizes


def _mib(kib: float) -> float:
    return round(kib / KIB_PER_MIB, 2)
