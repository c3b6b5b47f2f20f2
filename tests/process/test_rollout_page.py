"""The log that the pages explain is the one that a server writes."""

from __future__ import annotations

import signal

import pytest
from harness.server import SeenEvent, read_event
from harness.snippets import ROOT, blocks
from harness.starting import Start

MEASURED = {"pid", "boot_s", "uptime_s", "duration_s"}
"""What is another in each rollout."""

NOT_SHOWN = {"reload.started", "worker.draining"}
"""What README leaves out."""

ON_A_BUSY_MACHINE = {"arbiter.turn_slow"}


def _shown(page: str) -> list[SeenEvent]:
    """The events in the blocks of a page, which has them as they are logged, or without the beginning."""
    texts = [block.text for block in blocks((ROOT / page,)) if block.language == "text"]
    lines = [line for text in texts for line in text.splitlines() if "[gunicorn.error]" not in line]
    if page == "README.md":
        words = [line.split(maxsplit=1) for line in lines]
        lines = [f"now [info ] {name} [airflow_arbiter] {values}" for name, values in words]
    events = [read_event(line) for line in lines]
    return [event for event in events if event is not None]


def _fixed(events: list[SeenEvent]) -> list[SeenEvent]:
    return [
        SeenEvent(
            name=event.name,
            values={key: "..." if key in MEASURED else value for key, value in event.values.items()},
        )
        for event in events
    ]


@pytest.fixture
def logged(serve: Start) -> list[SeenEvent]:
    """What a server of two workers logs after a SIGHUP."""
    server = serve("--log-format=console", workers=2)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    read = map(read_event, server.log().splitlines())
    events = [event for event in read if event is not None and event.name not in ON_A_BUSY_MACHINE]
    names = [event.name for event in events]
    return events[names.index("reload.started") : names.index("rollout.completed") + 1]


def test_the_logs_that_are_shown(logged: list[SeenEvent]) -> None:
    """The same events in the same order, with the same keys and all values that are not measured."""
    assert _fixed(_shown("docs/rollout.md")) == _fixed(logged)
    assert _fixed(_shown("README.md")) == _fixed([it for it in logged if it.name not in NOT_SHOWN])
