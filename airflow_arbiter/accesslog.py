"""
The access log: one event a request, the same for any ASGI app.

Owns the event and the line it becomes. Every request pays for it, so the way to our own handler is short: the
line is written by hand, in the look of all others, and lines go out together, a tenth of a second later at
most. An operator's own log configuration gets an ordinary log record instead.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from airflow_arbiter.logconfig import ACCESS_LOGGER, LogFormat, bound_request_id
from airflow_arbiter.logfiles import LogFile

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

EVENT = "request.finished"

FLUSH_S = 0.1
"""Longest time that a line waits for others; what a worker that is killed loses of its access log."""

_logger = logging.getLogger(ACCESS_LOGGER)


class Request(NamedTuple):
    """
    What the event tells of one request.

    :param ended_at: seconds since the epoch.
    :param raw_path: as it was sent, percent-encoded: decoded, it could hold line breaks.
    :param duration_s: seconds.
    :param client: address and port, if there is one.
    """

    ended_at: float
    method: str
    raw_path: bytes
    status: int
    duration_s: float
    client: tuple[str, int] | None
    request_id: str


class AccessLog:
    """
    ASGI middleware that logs ``request.finished`` when an answer ends, however it ends.

    While the app works, its own lines carry the request's id: the client's ``X-Request-ID``, or one of ours.

    :param app: an ASGI 3 application.
    :param pid: of the worker.
    :param generation: of the worker.
    :param silent_path: path that is left out.
    """

    def __init__(self, app: ASGIApp, *, pid: int, generation: int, silent_path: str | None = None) -> None:
        self.app = app
        self._silent_path = silent_path
        self._bound = {"pid": pid, "generation": generation}
        self._write: Callable[[Request], None] = self._log
        for handler in _logger.handlers:
            if isinstance(handler, AccessHandler):
                handler.bound = self._bound
                self._write = handler.write

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == self._silent_path:
            await self.app(scope, receive, send)
            return
        began_at = time.perf_counter()
        status = 0

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        request_id = _request_id(scope)
        bound_request_id.set(request_id)  # ends with the request's own task
        try:
            await self.app(scope, receive, note_status)
        except Exception:
            status = status or 500  # what uvicorn answers for it
            raise
        finally:
            raw_path = scope.get("raw_path") or scope["path"].encode("unicode_escape")
            duration_s = time.perf_counter() - began_at
            client = scope.get("client")
            self._write(
                Request(time.time(), scope["method"], raw_path, status, duration_s, client, request_id)
            )

    def _log(self, request: Request) -> None:
        """Log the event for a configuration that is not ours."""
        _logger.info(EVENT, extra={**_values(request), **self._bound})


class AccessHandler(logging.Handler):
    """
    Writes access events, many at a time.

    :param log_format: ``console`` or ``json``.
    :param filename: file to write to, ``-`` for standard output. It is opened anew when it was moved away.
    """

    def __init__(self, *, log_format: LogFormat, filename: str = "-") -> None:
        super().__init__()
        self.bound = {"pid": 0, "generation": 0}
        self._line = _json_line if log_format == "json" else _console_line
        self._requests: list[Request] = []
        self._out: logging.StreamHandler[Any] = (
            logging.StreamHandler(sys.stdout) if filename == "-" else LogFile(filename)
        )

    def write(self, request: Request) -> None:
        """Write one event, a little later. Only on the event loop."""
        if not self._requests:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        # Becomes a line when all do: the same instructions in a row are faster than one by one.
        self._requests.append(request)

    def emit(self, record: logging.LogRecord) -> None:
        """Write what others log here."""
        self._out.handle(logging.makeLogRecord({"msg": self.format(record)}))

    def flush(self) -> None:
        if self._requests:
            requests, self._requests = self._requests, []
            lines = [self._line(_timestamp(request.ended_at), request, self.bound) for request in requests]
            self._out.handle(logging.makeLogRecord({"msg": "\n".join(lines)}))

    def close(self) -> None:
        self.flush()
        self._out.close()
        super().close()


def _timestamp(at: float) -> str:
    second = int(at)
    return f"{_second_text(second)}.{int((at - second) * 1e6):06d}Z"


@lru_cache(maxsize=2)
def _second_text(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _values(request: Request) -> dict[str, str | int | float]:
    """The request's part of the event, by key."""
    return {
        "request_id": request.request_id,
        "method": request.method,
        "path": request.raw_path.decode("latin-1"),
        "status": request.status,
        "duration_ms": round(request.duration_s * 1000, 3),
        "client": _address(request.client),
    }


def _json_line(timestamp: str, request: Request, bound: dict[str, int]) -> str:
    return (
        f'{{"timestamp": "{timestamp}", "level": "info", "event": "{EVENT}", "logger": "{ACCESS_LOGGER}", '
        f'"pid": {bound["pid"]}, "generation": {bound["generation"]}, '
        f'"request_id": {quoted(request.request_id)}, "method": {quoted(request.method)}, '
        f'"path": {quoted(request.raw_path.decode("latin-1"))}, "status": {request.status}, '
        f'"duration_ms": {request.duration_s * 1000:.3f}, "client": {quoted(_address(request.client))}}}'
    )


def _console_line(timestamp: str, request: Request, bound: dict[str, int]) -> str:
    return (
        f"{timestamp} [info     ] {EVENT:<30} [{ACCESS_LOGGER}] client={_address(request.client)} "
        f"duration_ms={request.duration_s * 1000:.3f} generation={bound['generation']} "
        f"method={_plain(request.method)} path={_plain(request.raw_path.decode('latin-1'))} "
        f"pid={bound['pid']} request_id={_plain(request.request_id)} status={request.status}"
    )


def _address(client: tuple[str, int] | None) -> str:
    return f"{client[0]}:{client[1]}" if client else ""


def _plain(text: str) -> str:
    """Text as it is where it is one word, else quoted, so that no client can write a line of its own."""
    return text if text.isascii() and text.isprintable() and " " not in text else repr(text)


def _request_id(scope: Message) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            return given
    return f"{random.getrandbits(64):016x}"
