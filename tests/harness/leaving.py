"""
An ASGI app that makes, while it is imported, what a fork cannot copy.

``LEAVES`` names it: ``thread``, ``native``, ``socket``, ``loop``, several with commas between, or nothing.
Paths leave more: ``/stuck`` two threads that never end, ``/task`` a task, and ``/exit`` the process.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import socket
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

tasks: list[Any] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["path"] == "/exit":
        sys.exit(7)
    if scope["path"] == "/stuck":
        run = asyncio.get_running_loop().run_in_executor
        await asyncio.gather(*[run(None, time.sleep, 3600) for _ in range(2)])
    if scope["path"] == "/task":
        tasks.append(asyncio.ensure_future(asyncio.sleep(3600)))
    pid = await asyncio.to_thread(os.getpid)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(pid).encode()})
