"""
What a worker's event loop does when there is no descriptor left to accept a connection with.

uvloop waits without a word. asyncio's own loop tries again at once, as often as the backlog is long (2048
times), logs each time with a traceback, and sets a timer each time to do all that again in a second: the log
grows by megabytes, and the loop is soon so busy with it that the worker is taken for hung.
"""

from __future__ import annotations

import asyncio
from typing import Any

from airflow_arbiter import events

ACCEPTS = 16
"""How many connections the loop takes at a time, and so how often it fails at a time."""

REPEAT_S = 10.0
"""How often it is said again that nothing can be accepted."""

_OUT_OF_RESOURCE = "socket.accept() out of system resource"


def calm_accept_errors(loop: asyncio.AbstractEventLoop) -> None:
    """
    Fail a few times a second where descriptors are wanting, and say so now and then.

    :param loop: the one that serves.
    """
    told_at = -REPEAT_S

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told_at
        if context["message"] != _OUT_OF_RESOURCE:
            loop.default_exception_handler(context)
        elif loop.time() >= told_at + REPEAT_S:
            told_at = loop.time()
            events.publish("worker.accept_failed", level="error", error=str(context["exception"]))

    loop.set_exception_handler(tell)

    accept = getattr(loop, "_accept_connection", None)
    if accept is None:
        return

    def accept_some(factory: Any, sock: Any, tls: Any, server: Any, backlog: int, *rest: Any) -> None:
        accept(factory, sock, tls, server, min(backlog, ACCEPTS), *rest)

    loop._accept_connection = accept_some  # type: ignore[attr-defined]
