"""
The smallest ASGI app that has a lifespan, so that what is measured is the server and not the app.

``/hold/SECONDS`` sends most of its answer at once, with the pid of who answers, and the rest after a while.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]

BODY = b"ok"
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"2")]

HOLD = "/hold/"
PID_WIDTH = 10
"""Bytes of the first part of a held answer; one more follows at its end."""


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    if scope["path"].startswith(HOLD):
        await _hold(float(scope["path"].removeprefix(HOLD)), send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def _hold(seconds: float, send: Callable[[Message], Awaitable[None]]) -> None:
    length = str(PID_WIDTH + 1).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    pid = f"{os.getpid():>{PID_WIDTH}}".encode()
    await send({"type": "http.response.body", "body": pid, "more_body": True})
    await asyncio.sleep(seconds)
    await send({"type": "http.response.body", "body": b"."})


async def _live(
    receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
