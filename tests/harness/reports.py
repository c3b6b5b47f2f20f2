"""A report to look at, of a server that is in the middle of a rollout."""

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
)

WORKER = WorkerReport(
    pid=101,
    age=3,
    generation=1,
    state="available",
    booted=True,
    uptime_s=3725.0,
    requests=12345,
    in_flight=2,
    private_bytes=150 * 1024 * 1024,
    beat_ago_s=0.4,
    probe="passed",
    probe_ago_s=61.0,
    due="command",
)

REPORT = Report(
    server=ServerReport(
        pid=100,
        title="faulty:app",
        app="faulty:app",
        version="0.1.0",
        gunicorn_version="27.0.1",
        listeners=("http://127.0.0.1:8080",),
        uptime_s=90_000.0,
        generation=2,
        preload=False,
        stopping=False,
        longest_turn_ms=3.5,
        slow_turns=0,
        control_socket="/run/arbiter/a.sock",
    ),
    pool=PoolReport(target=2, available=2, live=3, surge=1, booting=1, draining=0, memory_room_bytes=None),
    rollout=RolloutReport(
        phase="progressing",
        reasons=("command",),
        replaced=1,
        due=1,
        running_s=12.0,
        retry_in_s=None,
        because="",
        revision=5,
        completed=4,
        aborted=3,
        open=(5,),
    ),
    reload=ReloadReport(state="idle", failure=""),
    workers=(
        WORKER,
        replace(
            WORKER,
            pid=102,
            age=4,
            generation=2,
            state="booting",
            booted=False,
            uptime_s=1.5,
            requests=0,
            in_flight=0,
            private_bytes=None,
            beat_ago_s=None,
            probe="",
            probe_ago_s=None,
            due=None,
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
