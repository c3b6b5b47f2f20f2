"""
How the master sees its workers: facts from its own books, from the status page, and from the kernel.
"""

from __future__ import annotations

import os
import signal

from airflow_arbiter.books import Kept
from airflow_arbiter.health import describe
from airflow_arbiter.pool import WorkerView


def view_of(worker: Kept) -> WorkerView:
    """Put together what the master knows of a worker and what the worker tells of itself."""
    status = worker.status.read()
    draining = [at for at in (worker.book.draining_at, status.draining_at) if at is not None]
    return WorkerView(
        pid=worker.pid,
        age=worker.age,
        generation=worker.book.generation,
        spawned_at=worker.book.spawned_at,
        jitter=worker.book.jitter,
        listening_at=status.listening_at,
        ready_at=status.ready_at,
        beat_at=status.beat_at,
        retire_reason=status.retire_reason,
        draining_at=min(draining, default=None),
        drain_reason=worker.book.drain_reason,
        quit_at=worker.book.quit_at,
        dumped_at=worker.book.dumped_at,
        killed_at=worker.book.killed_at,
        probed_at=status.probe_at,
        trouble=describe(status.probe_code) if status.probe_at is not None else "",
        requests=status.requests,
        in_flight=status.in_flight,
        private_bytes=worker.book.memory.private_bytes,
        samples_over=worker.book.memory.over,
        over_since=worker.book.memory.over_since,
    )


def exit_cause(status: int, worker: Kept) -> str:
    """Say in words how a process ended, and why if it was our doing."""
    code = os.waitstatus_to_exitcode(status)
    if worker.book.kill_cause:
        return worker.book.kill_cause
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"signal {name}" + (", perhaps out of memory" if -code == signal.SIGKILL else "")
