"""
Which requests a worker holds, and which of them do not count.

Every request pays for it, so it is one plain call around the app, with no coroutine of its own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from airflow_arbiter.stacks import HeldRequest

Message = MutableMapping[str, Any]
ASGIApp = Callable[[Message, Any, Any], Awaitable[None]]

_BEGAN_AT = "airflow_arbiter.began_at"


class Tracker:
    """
    The app, with a note of when each request reached it.

    :param app: an ASGI 3 application.
    :param health_path: requests to this path are health checks.
    :ivar app: the app without the note, for who is no client.
    :ivar health_checks: how many of these came.
    """

    def __init__(self, app: ASGIApp, *, health_path: str | None) -> None:
        self.app = app
        self._health_path = health_path
        self.health_checks = 0

    def __call__(self, scope: Message, receive: Any, send: Any) -> Awaitable[None]:
        scope[_BEGAN_AT] = time.monotonic()
        if scope.get("path") == self._health_path and scope["type"] == "http":
            self.health_checks += 1
        return self.app(scope, receive, send)


def held_requests(connections: Iterable[Any], now: float) -> list[HeldRequest]:
    """
    List the requests that are not answered yet, and the WebSockets that are open.

    :param connections: uvicorn's protocols. An HTTP one has a ``cycle``, the request being answered or
        answered last.
    """
    scopes = []
    for connection in connections:
        if not hasattr(connection, "cycle"):
            scopes.append(getattr(connection, "scope", None))
        elif holds_request(connection):
            scopes.append(connection.cycle.scope)
    return [_held(scope, now) for scope in scopes if scope is not None]


def holds_request(connection: Any) -> bool:
    """Whether an HTTP connection has a request that is not answered yet."""
    cycle = getattr(connection, "cycle", None)
    return cycle is not None and not cycle.response_complete


def _held(scope: Message, now: float) -> HeldRequest:
    raw_path: bytes = scope.get("raw_path") or str(scope.get("path", "")).encode()
    return HeldRequest(
        method=str(scope.get("method") or "WEBSOCKET"),
        path=raw_path.decode("latin-1"),
        age_s=round(now - float(scope.get(_BEGAN_AT, now)), 3),
    )
