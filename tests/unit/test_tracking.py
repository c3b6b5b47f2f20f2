"""Which requests are held, and which are health checks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_arbiter.stacks import HeldRequest
from airflow_arbiter.tracking import Tracker, held_requests


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send(scope["path"] if scope["type"] != "lifespan" else "lifespan")


def call(tracker: Tracker, scope: dict[str, Any]) -> list[str]:
    sent: list[str] = []

    async def send(message: str) -> None:
        sent.append(message)

    asyncio.run(_await(tracker(scope, None, send)))
    return sent


async def _await(answer: Any) -> None:
    await answer


@pytest.mark.parametrize(
    ("scope", "checks"),
    [
        pytest.param({"type": "http", "path": "/health"}, 1, id="the-path"),
        pytest.param({"type": "http", "path": "/health/"}, 0, id="another-path"),
        pytest.param({"type": "websocket", "path": "/health"}, 0, id="a-websocket"),
        pytest.param({"type": "lifespan"}, 0, id="the-lifespan"),
    ],
)
def test_health_checks_are_counted(scope: dict[str, Any], checks: int) -> None:
    """Only HTTP requests to the health path are health checks, and all reach the app."""
    tracker = Tracker(app, health_path="/health")
    assert call(tracker, scope) == [scope.get("path", "lifespan")]
    assert tracker.health_checks == checks


def test_without_a_health_path_nothing_is_one() -> None:
    """A lifespan scope, which has no path, is no health check of an app that has none."""
    tracker = Tracker(app, health_path=None)
    call(tracker, {"type": "http", "path": "/"})
    call(tracker, {"type": "lifespan"})
    assert tracker.health_checks == 0


def test_held_requests() -> None:
    """Requests that are being answered are told with their path as it was sent, and so are WebSockets."""
    tracker = Tracker(app, health_path=None)
    busy: dict[str, Any] = {"type": "http", "method": "POST", "path": "/a b", "raw_path": b"/a%20b"}
    call(tracker, busy)
    began_at = busy["airflow_arbiter.began_at"]
    connections = [
        SimpleNamespace(cycle=None),
        SimpleNamespace(cycle=SimpleNamespace(response_complete=True, scope=busy)),
        SimpleNamespace(cycle=SimpleNamespace(response_complete=False, scope=busy)),
        SimpleNamespace(scope={"type": "websocket", "path": "/ws"}),
    ]
    assert held_requests(connections, began_at + 2) == [
        HeldRequest(method="POST", path="/a%20b", age_s=2.0),
        HeldRequest(method="WEBSOCKET", path="/ws", age_s=0.0),
    ]
