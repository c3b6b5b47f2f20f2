"""
An ASGI app that makes, while it is imported, what a fork cannot copy.

``LEAVES`` names it: ``thread``, ``native``, ``socket``, ``loop``, ``sqlite``, ``sqlalchemy``, several with
commas between, or nothing.
Paths leave more: ``/stuck`` two threads that never end, ``/stuck-later`` the same, but only in the new image
of a reload, ``/lock`` a thread with a lock that ``/locked`` needs, ``/queue`` a queue that is bound to the
event loop, ``/task`` a task; ``/exit`` leaves the process, and ``/private`` is not for everybody.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import os
import socket
import sqlite3
import sys
import threading
import time
from typing import Any

LEAVES = os.environ.get("LEAVES", "").split(",")

if "thread" in LEAVES:
    threading.Thread(target=threading.Event().wait, name="a-poller", daemon=True).start()
if "native" in LEAVES:
    _thread.start_new_thread(time.sleep, (3600,))
if "socket" in LEAVES:
    listening = socket.create_server(("127.0.0.1", 0))
    kept = socket.create_connection(listening.getsockname())
if "loop" in LEAVES:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="a-loop", daemon=True).start()
if "sqlite" in LEAVES:
    opened = sqlite3.connect(":memory:")
if "sqlalchemy" in LEAVES:
    import sqlalchemy

    connected = sqlalchemy.create_engine("sqlite://").connect()

tasks: list[Any] = []
lock = threading.Lock()
queues: list[asyncio.Queue[int]] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["path"] == "/exit":
        sys.exit(7)
    run = asyncio.get_running_loop().run_in_executor
    if scope["path"] == "/stuck" or (scope["path"] == "/stuck-later" and _is_new_image()):
        await asyncio.gather(*[run(None, time.sleep, 3600) for _ in range(2)])
    if scope["path"] == "/lock":
        await run(None, _keep_lock)
    if scope["path"] == "/locked":
        await run(None, lock.acquire)
        lock.release()
    if scope["path"] == "/queue":
        await _use_queue()
    if scope["path"] == "/task":
        tasks.append(asyncio.ensure_future(asyncio.sleep(3600)))
    pid = await asyncio.to_thread(os.getpid)
    status = 401 if scope["path"] == "/private" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": str(pid).encode()})


def _is_new_image() -> bool:
    return "preflight" not in sys.orig_argv and any(word.endswith("resume.py") for word in sys.orig_argv)


def _keep_lock() -> None:
    with lock:
        time.sleep(3600)


async def _use_queue() -> None:
    """Wait for what does not come, which binds the queue to this event loop."""
    if not queues:
        queues.append(asyncio.Queue())
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(queues[0].get(), 0.01)
