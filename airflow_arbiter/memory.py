"""
How much memory workers hold, and how much the container has left: read from outside, by the master.

Owns the reading, not what follows from it. Sizes are in bytes. "Private" is what the kernel would get back if
the process ended (USS): pages that a worker shares with its master and siblings by fork are nobody's.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

TURN_S = 0.02
"""What one turn of the loop may spend on samples; the rest is for the next turns."""

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(slots=True, kw_only=True)
class Samples:
    """
    What is known of one worker's private memory.

    :param private_bytes: the last sample.
    :param over: samples in a row, up to the last, that were above the limit.
    :param over_since: when the first of these was taken.
    :param taken_at: when the last one was taken.
    """

    private_bytes: int | None = None
    over: int = 0
    over_since: float = math.inf
    taken_at: float = -math.inf

    def add(self, private_bytes: int, *, limit_bytes: int, now: float) -> None:
        """Take one more in."""
        is_over = 0 < limit_bytes < private_bytes
        self.over = self.over + 1 if is_over else 0
        self.over_since = min(self.over_since, now) if is_over else math.inf
        self.private_bytes = private_bytes
        self.taken_at = now


def sample(processes: Iterable[tuple[int, Samples]], *, interval_s: float, limit_bytes: int) -> None:
    """
    Take a sample of each process that has none of this interval, the longest unsampled first.

    Reading one costs the kernel a walk through its page tables, some milliseconds for a large one; what does
    not fit into :data:`TURN_S` is left for the next turn.

    :param processes: pids, and what is known of each.
    """
    began_at = time.monotonic()
    for pid, samples in sorted(processes, key=lambda process: process[1].taken_at):
        now = time.monotonic()
        if now - samples.taken_at < interval_s or now - began_at > TURN_S:
            return
        with contextlib.suppress(psutil.Error, OSError):  # gone, or not ours to look at
            samples.add(private_bytes(pid), limit_bytes=limit_bytes, now=now)


def private_bytes(pid: int) -> int:
    """
    Read a process's private memory.

    :raises psutil.Error: when it is gone, or may not be looked at.
    """
    held: int = psutil.Process(pid).memory_full_info().uss
    return held


class Container:
    """
    The control groups that this process is in, which may limit its memory.

    :param root: where cgroup v2 is mounted.
    :param path: the process's group, as in ``/proc/self/cgroup``; None reads it there.
    """

    def __init__(self, root: Path = _CGROUPS, path: str | None = None) -> None:
        group = _own_group() if path is None else path
        folders = [root / group.strip("/"), *(root / group.strip("/")).parents]
        self._limited = [
            f for f in folders if f.is_relative_to(root) and _number(f / "memory.max") is not None
        ]

    @property
    def is_limited(self) -> bool:
        """Whether any of them has a limit."""
        return bool(self._limited)

    def room_bytes(self) -> int | None:
        """
        Tell how much more may be taken before the kernel kills; None without a limit.

        Pages of files that nobody has used lately count as free: the kernel takes them back first, and
        Kubernetes counts in the same way.

        Source: the kernel's ``Documentation/admin-guide/cgroup-v2.rst``.
        """
        rooms = [room for folder in self._limited if (room := _room(folder)) is not None]
        return min(rooms, default=None)


def _room(folder: Path) -> int | None:
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    return max(0, limit - used + _inactive_file(folder))


def _inactive_file(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return int(value)
    return 0


def _own_group() -> str:
    """This process's group; the root where there is no cgroup v2."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[len("0::") :]
    return "/"


def _number(file: Path) -> int | None:
    """A number in a file; None for ``max``, and where there is no such file."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
