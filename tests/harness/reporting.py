"""Reports of servers that do not exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from airflow_arbiter.report import (
    Counters,
    PoolReport,
    ReloadReport,
    Report,
    RolloutReport,
    ServerReport,
    WorkerReport,
    WorkerState,
)

_WORKER = WorkerReport(
    pid=101,
    age=1,
    generation=1,
    state="available",
    booted=True,
    uptime_s=60.0,
    requests=10,
    in_flight=0,
    private_bytes=None,
    beat_ago_s=0.1,
    probe="passed",
    probe_ago_s=60.0,
    due=None,
)

_SERVER = ServerReport(
    pid=100,
    title="master [app]",
    app="app:app",
    version="1",
    gunicorn_version="27",
    listeners=("http://127.0.0.1:8080",),
    uptime_s=60.0,
    generation=1,
    preload=False,
    stopping=False,
    longest_turn_ms=2.0,
    slow_turns=0,
    control_socket="",
)

_ROLLOUT = RolloutReport(
    phase="idle",
    reasons=(),
    replaced=0,
    due=0,
    running_s=None,
    retry_in_s=None,
    because="",
    revision=0,
    completed=0,
    aborted=0,
)


def a_worker(state: WorkerState = "available", **facts: Any) -> WorkerReport:
    """A worker of which only some facts matter."""
    return replace(_WORKER, state=state, **facts)


def a_report(
    *workers: WorkerReport,
    target: int = 2,
    server: dict[str, Any] | None = None,
    rollout: dict[str, Any] | None = None,
    reload: ReloadReport | None = None,
    counters: Counters | None = None,
) -> Report:
    """A report that fits these workers, with some facts of its other parts."""
    states = [worker.state for worker in workers]
    return Report(
        server=replace(_SERVER, **(server or {})),
        pool=PoolReport(
            target=target,
            available=states.count("available"),
            live=len(workers),
            surge=1,
            booting=states.count("booting"),
            draining=states.count("draining"),
            memory_room_bytes=None,
        ),
        rollout=replace(_ROLLOUT, **(rollout or {})),
        reload=reload or ReloadReport(state="idle", failure=""),
        workers=workers,
        counters=counters or Counters(),
    )
