"""
An ASGI app whose faults are switched on and off while it is served.

A fault is a file in the folder named by ``FAULTS``: its name says where, its text says what.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import parse_qs

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def fault(where: str) -> str:
    """The fault that is switched on at a place, or an empty string."""
    folder = Path(os.environ["FAULTS"])
    try:
        what = (folder / where).read_text()
    except FileNotFoundError:
        return ""
    _note(where)
    return what


def _note(where: str) -> None:
    """Let the test know that we have come there."""
    (Path(os.environ["FAULTS"]) / f"reached-{where}").touch()


if fault("import") == "raise":
    raise RuntimeError("import is broken")
if fault("import") == "sleep":
    time.sleep(3600)
if fault("import") == "swallow":
    with contextlib.suppress(BaseException):
        time.sleep(3600)
if fault("import") == "interrupt":
    raise KeyboardInterrupt
if fault("import") == "exit":
    raise SystemExit(1)


AT_REQUESTS = fault("requests")
"""What this process does at its requests, from the first one on; older ones know nothing of it."""


def __getattr__(name: str) -> Any:
    """Give uvicorn the protocol ``faulty:Protocol``, which it loads in each worker after the app."""
    if name != "Protocol":
        raise AttributeError(name)
    if fault("load") == "swallow":
        with contextlib.suppress(BaseException):
            time.sleep(3600)
    return HttpToolsProtocol


def _after_fork() -> None:
    """Send this new process a signal, before any code of the server's runs in it. Needs a preloaded app."""
    if name := fault("fork"):
        os.kill(os.getpid(), signal.Signals[name])


os.register_at_fork(after_in_child=_after_fork)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await receive()
        if fault("websocket") == "slow":
            await asyncio.sleep(1.0)
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
    else:
        query = parse_qs(scope["query_string"].decode())
        await _answer(scope["path"], query, receive, send)


async def _lifespan(receive: Any, send: Any) -> None:
    await receive()
    match fault("startup"):
        case "fail":
            await send({"type": "lifespan.startup.failed", "message": "startup is broken"})
            return
        case "exit":
            os._exit(1)
        case "sleep":
            await asyncio.sleep(3600)
        case "busy":
            while True:
                pass
        case "swallow":
            with contextlib.suppress(BaseException):
                time.sleep(3600)  # noqa: ASYNC251  # that is the fault
        case "slow":
            await asyncio.sleep(1.0)
        case "own-signals":
            signal.signal(signal.SIGTERM, lambda *_: None)
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await _shut_down()
    (Path(os.environ["FAULTS"]) / f"shut-down-{os.getpid()}").touch()
    await send({"type": "lifespan.shutdown.complete"})


async def _shut_down() -> None:
    match fault("shutdown"):
        case "sleep":
            await asyncio.sleep(3600)
        case "busy":
            while True:
                pass
        case "raise":
            raise RuntimeError("shutdown is broken")


async def _answer(path: str, query: dict[str, list[str]], receive: Any, send: Any) -> None:
    if path == "/stream":
        size = int(query.get("size", ["100"])[0])
        await _stream(int(query["chunks"][0]), size, float(query["pause"][0]), send)
        return
    status = await _health() if path == "/health" else 200
    if path == "/body":
        while (await receive()).get("more_body"):
            pass
    elif "s" in query:
        await _take_time(path, float(query["s"][0]))
    elif path == "/grow":
        _ballast.append(os.urandom(int(query["mib"][0]) * 2**20))
    else:
        _make_trouble(path)
    body = str(os.getpid()).encode()
    if path == "/environment":
        body = ",".join(str(os.environ.get(name)) for name in query["name"]).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _take_time(path: str, seconds: float) -> None:
    match path:
        case "/hold":
            _note("hold")
            await asyncio.sleep(seconds)
        case "/stubborn":
            await _ignore_cancellation(seconds)
        case "/block":
            time.sleep(seconds)  # noqa: ASYNC251  # that is the fault
        case "/block-in-c":
            _note("block-in-c")
            # Keeps the interpreter's lock, and goes on after a signal, as `sleep` would not.
            ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
        case "/deaf":
            _note("deaf")
            await _be_deaf(seconds)


_ballast: list[bytes] = []
"""Memory that the app never gives back."""


async def _ignore_cancellation(seconds: float) -> None:
    fault("stubborn")
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(seconds)


async def _health() -> int:
    match fault("health"):
        case "503":
            return 503
        case "sleep":
            await asyncio.sleep(3600)
        case "raise":
            raise RuntimeError("health is broken")
        case "cancel":
            raise asyncio.CancelledError
    return 200


def _make_trouble(path: str) -> None:
    """Do what ends up in the log."""
    if path == "/" and AT_REQUESTS:
        _go_wrong()
    elif path == "/raise":
        raise RuntimeError("the app is broken")
    if path == "/warn":
        warnings.warn("something is old\nand has two lines", UserWarning, stacklevel=1)
    elif path == "/log":
        logging.getLogger("some.app").info("the app says\ntwo lines", extra={"dag": "d"})
    elif path == "/task":
        _lose(asyncio.get_running_loop())
    elif path == "/thread":
        threading.Thread(target=_fail, name="a-thread").start()
    elif path == "/die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif path == "/orphans":
        # The shell leaves at once, and what it has started falls to process 1.
        subprocess.run(["sh", "-c", "true & sleep 0.2 &"], check=True)
    elif path == "/count-sigterms":
        _count_sigterms()


def _go_wrong() -> None:
    """Have passed the health check, and be no good at anything else."""
    match AT_REQUESTS:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "crash-later":
            asyncio.get_running_loop().call_later(0.7, os.kill, os.getpid(), signal.SIGSEGV)
        case "block":
            time.sleep(3600)


def _count_sigterms() -> None:
    """Write down each SIGTERM from now on, and leave it to whoever handled it before."""
    handle = signal.getsignal(signal.SIGTERM)
    assert callable(handle)
    notes = Path(os.environ["FAULTS"]) / f"sigterms-{os.getpid()}"
    notes.touch()

    def note(sig: int, frame: FrameType | None) -> None:
        with notes.open("a") as file:
            file.write(".")
        handle(sig, frame)

    signal.signal(signal.SIGTERM, note)


def _fail() -> None:
    raise RuntimeError("a thread is broken")


def _lose(loop: asyncio.AbstractEventLoop) -> None:
    """Leave an exception behind that nobody retrieves."""
    loop.create_future().set_exception(RuntimeError("a task is broken"))


async def _be_deaf(seconds: float) -> None:
    """Go on working, whoever cancels it."""
    ends_at = time.monotonic() + seconds
    while (left_s := ends_at - time.monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left_s)


async def _stream(chunks: int, size: int, pause_s: float, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(chunks):
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
        await asyncio.sleep(pause_s)
    await send({"type": "http.response.body", "body": b""})
