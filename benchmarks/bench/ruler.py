"""
The ruler: what a master's children are doing, read from ``/proc`` and the same for every server.

Asks no server anything and believes no log line. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
POLL_S = 0.005
"""How often a roll is looked at, and so the grain of its duration."""

_LISTEN = "0A"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """
    One roll, as seen from outside.

    :param seconds: from the command (or the first new pid, where age begins the roll) to the end; None if
        the end was not seen.
    :param first_new_s: from the command, or the begin of the wait, to the first new process.
    :param began_at: when the clock of ``seconds`` started, on the monotonic clock; None if it did not.
    :param note: why the end was not seen, in words.
    """

    seconds: float | None
    first_new_s: float | None = None
    began_at: float | None = None
    note: str = ""


class Pool:
    """
    The children of one master, and which of them take connections.

    :param master_pid: whose children.
    :param port: of 127.0.0.1, where they listen.
    :param alone: the master itself is the only worker, as uvicorn has it with one.
    """

    def __init__(self, master_pid: int, port: int, *, alone: bool = False) -> None:
        self._master_pid = master_pid
        self._port = port
        self._alone = alone
        self._known: set[int] = set()

    def children(self) -> frozenset[int]:
        """
        The pids of all children, zombies too.

        From the kernel's list and not from psutil, which reads every process of the machine: that would take
        a fifth of a core at our rate, from the server that is being measured.
        """
        pids = {self._master_pid} if self._alone else set()
        for task in tasks(self._master_pid):
            with contextlib.suppress(OSError):
                pids.update(map(int, (task / "children").read_text().split()))
        return frozenset(pids)

    def serving(self, pids: frozenset[int]) -> frozenset[int]:
        """
        Those of the pids whose event loop waits for connections.

        A worker has inherited the listening socket at birth, or opens one of its own for the same port; it
        serves once the socket is in its epoll set. What has been seen serving is not looked at again.
        """
        self._known.update(self.listening(pids - self._known))
        return pids & self._known

    def listening(self, pids: frozenset[int]) -> frozenset[int]:
        """Those of the pids that take connections right now: one that drains does not any more."""
        listeners = _listening_inodes(self._port) if pids else frozenset()
        return frozenset(pid for pid in pids if listeners and _polls(pid, listeners))


def wait_for_full_set(pool: Pool, workers: int, limit_s: float) -> frozenset[int]:
    """
    Wait until the wanted number of workers serves.

    :param limit_s: seconds to wait.
    :return: their pids.
    :raises TimeoutError: when they do not.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        serving = pool.serving(pool.children())
        if len(serving) >= workers:
            return serving
        time.sleep(POLL_S)
    raise TimeoutError(f"no full set of {workers} workers within {limit_s:g} s")


def watch_roll(
    pool: Pool,
    old: frozenset[int],
    before: frozenset[int],
    *,
    begins_by_age: bool,
    begin_limit_s: float,
    limit_s: float,
    look: Callable[[], object] = lambda: None,
) -> Roll:
    """
    Follow a roll to its end: every old worker is gone and reaped, and as many new ones serve.

    :param old: pids of the workers to be replaced.
    :param before: pids of all children there were with them. What is not a worker (the resource tracker of
        multiprocessing) is a child too, and no newcomer.
    :param begins_by_age: whether the clock starts at the first new process instead of now.
    :param begin_limit_s: seconds to wait for the first new process.
    :param limit_s: seconds that the roll may take.
    :param look: called at each look, from now on: some stop old workers before a new one is there.
    """
    if begins_by_age and pool.children() - before:
        return Roll(seconds=None, note="began before it was looked for")
    asked_at = time.monotonic()
    first_new_at: float | None = None
    while True:
        look()
        now = time.monotonic()
        new = pool.children() - before
        if first_new_at is None:
            if new:
                first_new_at = now
            elif now - asked_at > begin_limit_s:
                return Roll(seconds=None, note=f"no new worker within {begin_limit_s:g} s")
        else:
            began_at = first_new_at if begins_by_age else asked_at
            first_new_s = first_new_at - asked_at
            left = sum((PROC / str(pid)).exists() for pid in old)
            serving = pool.serving(new)
            if not left and len(serving) >= len(old):
                return Roll(seconds=now - began_at, first_new_s=first_new_s, began_at=began_at)
            if now - began_at > limit_s:
                note = f"not ended within {limit_s:g} s: {left} of {len(old)} old workers left, "
                note += f"{len(serving)} new ones serve"
                return Roll(seconds=None, first_new_s=first_new_s, began_at=began_at, note=note)
        time.sleep(POLL_S)


def cpu_ns(pid: int) -> int:
    """
    Processor time of all threads of a process, user and system, in nanoseconds.

    Finer than ``cpu_times``, whose tick of 10 ms is more than an idle master uses in many seconds.

    Source: Documentation/scheduler/sched-stats.rst of Linux, ``/proc/<pid>/schedstat``.
    """
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks(pid))


def machine_busy_s() -> float:
    """Processor time of the whole machine since its boot, in seconds, all processors together."""
    first = (PROC / "stat").read_text().partition("\n")[0]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def tasks(pid: int) -> list[Path]:
    """The threads of a process, none if it is gone."""
    with contextlib.suppress(OSError):
        return list((PROC / str(pid) / "task").iterdir())
    return []


def _listening_inodes(port: int) -> frozenset[str]:
    """
    The inodes of the sockets that listen on a port, in hexadecimal as epoll shows them.

    The kernel lists what listens first; the rest, which is long under load, is not read.
    """
    inodes = set()
    with (PROC / "net" / "tcp").open() as lines:
        next(lines)
        for line in lines:
            fields = line.split()
            if fields[3] != _LISTEN:
                break
            if fields[1] == f"0100007F:{port:04X}":
                inodes.add(format(int(fields[9]), "x"))
    return frozenset(inodes)


def _polls(pid: int, inodes: frozenset[str]) -> bool:
    """Whether a process has one of the sockets in an epoll set."""
    descriptors = PROC / str(pid) / "fd"
    # A process may vanish, and descriptors close, while they are read: then it does not serve.
    with contextlib.suppress(OSError):
        for descriptor in descriptors.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(descriptor.readlink()) == "anon_inode:[eventpoll]":
                    watched = (PROC / str(pid) / "fdinfo" / descriptor.name).read_text()
                    if any(f" ino:{inode} " in watched for inode in inodes):
                        return True
    return False
