"""Reports of servers that do not exist: one in the middle of a rollout, and some of which little matters."""

from __future__ import annotations

from dataclasses import asdict, replace
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

WORKER = WorkerReport(
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

SERVER = ServerReport(
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

QUIET = RolloutReport(
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
    return replace(WORKER, state=state, **facts)


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
        server=replace(SERVER, **(server or {})),
        pool=PoolReport(
            target=target,
            available=states.count("available"),
            live=len(workers),
            surge=1,
            booting=states.count("booting"),
            draining=states.count("draining"),
            memory_room_bytes=None,
        ),
        rollout=replace(QUIET, **(rollout or {})),
        reload=reload or ReloadReport(state="idle", failure=""),
        workers=workers,
        counters=counters or Counters(),
    )


_DUE = replace(
    WORKER,
    age=3,
    uptime_s=3725.0,
    requests=12345,
    in_flight=2,
    private_bytes=150 * 1024 * 1024,
    beat_ago_s=0.4,
    probe_ago_s=61.0,
    due="command",
)

REPORT = Report(
    server=replace(
        SERVER,
        title="faulty:app",
        app="faulty:app",
        version="0.1.0",
        gunicorn_version="27.0.1",
        uptime_s=90_000.0,
        generation=2,
        longest_turn_ms=3.5,
        control_socket="/run/arbiter/a.sock",
    ),
    pool=PoolReport(target=2, available=2, live=3, surge=1, booting=1, draining=0, memory_room_bytes=None),
    rollout=replace(
        QUIET,
        phase="progressing",
        reasons=("command",),
        replaced=1,
        due=1,
        running_s=12.0,
        revision=5,
        completed=4,
        aborted=3,
        open=(5,),
    ),
    reload=ReloadReport(state="idle", failure=""),
    workers=(
        _DUE,
        replace(
            WORKER,
            pid=102,
            age=4,
            generation=2,
            state="booting",
            booted=False,
            uptime_s=1.5,
            requests=0,
            beat_ago_s=None,
            probe="",
            probe_ago_s=None,
        ),
    ),
    counters=Counters(spawned=7),
)


def as_json(report: Report = REPORT, **changes: dict[str, Any]) -> dict[str, Any]:
    """A report as a client gets it, with some values changed: ``rollout={"phase": "idle"}``."""
    told = asdict(report)
    for part, values in changes.items():
        told[part] |= values
    return told
