"""
The access log: one event a request, the same for any ASGI app.

Owns the event and the line it becomes. Every request pays for it, so the way to our own handler is short: the
line is written by hand, in the look of all others, and lines go out together, a tenth of a second later at
most. An operator's own log configuration gets an ordinary log record instead.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import random
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from structlog.contextvars import bind_contextvars

from airflow_arbiter.logconfig import ACCESS_LOGGER, LogFormat

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

EVENT = "request.finished"

FLUSH_S = 0.1
"""Longest time that a line waits for others; what a worker that is killed loses of its access log."""

_logger = logging.getLogger(ACCESS_LOGGER)


@dataclass(slots=True)  # not frozen, which would make it three times slower to build
class Request:
    """
    What the event tells of one request.

    :param path: as it was sent, percent-encoded: decoded, it could hold line breaks.
    """

    method: str
    path: str
    status: int
    duration_ms: float
    client: str
    request_id: str
    pid: int
    generation: int


class AccessLog:
    """
    ASGI middleware that logs ``request.finished`` when an answer ends, however it ends.

    While the app works, its own lines carry the request's id: the client's ``X-Request-ID``, or one of ours.

    :param app: an ASGI 3 application.
    :param pid: of the worker.
    :param generation: of the worker.
    :param silent_paths: paths that are left out.
    """

    def __init__(
        self, app: ASGIApp, *, pid: int, generation: int, silent_paths: frozenset[str] = frozenset()
    ) -> None:
        self.app = app
        self._pid = pid
        self._generation = generation
        self._silent_paths = silent_paths
        handlers = [handler for handler in _logger.handlers if isinstance(handler, AccessHandler)]
        self._write: Callable[[Request], None] = handlers[0].write if handlers else _log

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._silent_paths:
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
        bind_contextvars(request_id=request_id)  # ends with the request's own task
        try:
            await self.app(scope, receive, note_status)
        except Exception:
            status = status or 500  # what uvicorn answers for it
            raise
        finally:
            client = scope.get("client")
            raw_path = scope.get("raw_path") or scope["path"].encode("unicode_escape")
            self._write(
                Request(
                    scope["method"],
                    raw_path.decode("latin-1"),
                    status,
                    round((time.perf_counter() - began_at) * 1000, 3),
                    f"{client[0]}:{client[1]}" if client else "",
                    request_id,
                    self._pid,
                    self._generation,
                )
            )


def _log(request: Request) -> None:
    """Log the event for a configuration that is not ours."""
    values = {name: getattr(request, name) for name in Request.__slots__}
    _logger.info(EVENT, extra=values)


class AccessHandler(logging.Handler):
    """
    Writes access events, many at a time.

    :param log_format: ``console`` or ``json``.
    :param filename: file to write to, ``-`` for standard output. It is opened anew when it was moved away.
    """

    def __init__(self, *, log_format: LogFormat, filename: str = "-") -> None:
        super().__init__()
        self._line = _json_line if log_format == "json" else _console_line
        self._lines: list[str] = []
        self._second = 0
        self._second_text = ""
        self._out: logging.StreamHandler[Any] = (
            logging.StreamHandler(sys.stdout)
            if filename == "-"
            else logging.handlers.WatchedFileHandler(filename)
        )

    def write(self, request: Request) -> None:
        """Write one event, a little later. Only on the event loop."""
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        self._lines.append(self._line(self._now(), request))

    def emit(self, record: logging.LogRecord) -> None:
        """Write what others log here."""
        self._out.handle(logging.makeLogRecord({"msg": self.format(record)}))

    def flush(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, []
            self._out.handle(logging.makeLogRecord({"msg": "\n".join(lines)}))

    def close(self) -> None:
        self.flush()
        self._out.close()
        super().close()

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int((now - second) * 1e6):06d}Z"


def _json_line(timestamp: str, request: Request) -> str:
    return (
        f'{{"timestamp": "{timestamp}", "level": "info", "event": "{EVENT}", "logger": "{ACCESS_LOGGER}", '
        f'"pid": {request.pid}, "generation": {request.generation}, '
        f'"request_id": {quoted(request.request_id)}, "method": {quoted(request.method)}, '
        f'"path": {quoted(request.path)}, "status": {request.status}, '
        f'"duration_ms": {request.duration_ms}, "client": {quoted(request.client)}}}'
    )


def _console_line(timestamp: str, request: Request) -> str:
    return (
        f"{timestamp} [info     ] {EVENT:<30} [{ACCESS_LOGGER}] client={request.client} "
        f"duration_ms={request.duration_ms} generation={request.generation} "
        f"method={_plain(request.method)} path={_plain(request.path)} pid={request.pid} "
        f"request_id={_plain(request.request_id)} status={request.status}"
    )


def _plain(text: str) -> str:
    """Text as it is where it is one word, else quoted, so that no client can write a line of its own."""
    return text if text.isascii() and text.isprintable() and " " not in text else repr(text)


def _request_id(scope: Message) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            return given
    return f"{random.getrandbits(64):016x}"
