"""
The probe: one request that a worker puts to its own ASGI app, in memory.

Owns what counts as healthy. Knows no socket, no port and no TLS, so that a worker can ask before it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

Message = MutableMapping[str, Any]
ASGIApp = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_BODY_LIMIT_BYTES = 64 * 1024
"""What is read of a health answer; the rest is drained unseen."""

UNENDED_MAX = 8
"""Requests that were given up and run on, at most; a fifth of the threads that Airflow answers with."""


class Outcome(enum.IntEnum):
    """How a probe ended; the number times 1,000, plus the HTTP status, is its code on the status page."""

    UNKNOWN = 0
    PASSED = 1
    BAD_STATUS = 2
    UNHEALTHY = 3
    TIMED_OUT = 4
    RAISED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """
    The end of one probe.

    :param status: HTTP status of the answer, 0 if there was none.
    :param error: the exception that the app raised, if it did.
    """

    outcome: Outcome
    status: int = 0
    error: BaseException | None = None

    @property
    def passed(self) -> bool:
        """Whether the app is healthy."""
        return self.outcome is Outcome.PASSED

    @property
    def code(self) -> int:
        """The result as one number."""
        return self.outcome * 1000 + self.status


def describe(code: int) -> str:
    """
    Say in words what a code from the status page means.

    :param code: :attr:`ProbeResult.code`, or 0 for a worker that was not probed yet.
    """
    outcome, status = divmod(code, 1000)
    if outcome not in set(Outcome):
        return f"health check ended with code {code}"  # of a worker of another version of us
    return {
        Outcome.UNKNOWN: "not probed yet",
        Outcome.PASSED: f"health check answered {status}",
        Outcome.BAD_STATUS: f"health check answered {status}",
        Outcome.UNHEALTHY: f"health check answered {status}, but its database is unhealthy",
        Outcome.TIMED_OUT: "health check timed out",
        Outcome.RAISED: "health check raised an exception",
    }[Outcome(outcome)]


async def probe(app: ASGIApp, path: str, *, state: Message, timeout_s: float) -> ProbeResult:
    """
    Ask the app for its health.

    :param app: an ASGI 3 application whose lifespan has started.
    :param path: path and query, as a client would send them.
    :param state: the lifespan's state; the request gets a copy, as every request does.
    :param timeout_s: seconds to wait for the whole answer.
    """
    answer = _Answer()
    request = asyncio.ensure_future(_call(app, _scope(path, state), answer))
    # asyncio.wait, not wait_for: an app that swallows its cancellation must not hold us up.
    await asyncio.wait({request}, timeout=timeout_s)
    if not request.done():
        request.cancel()
        return ProbeResult(outcome=Outcome.TIMED_OUT, status=answer.status)
    if not answer.is_complete:
        # Apps let their own cancellations out, e.g. of a group of tasks; nobody has cancelled the request.
        error = asyncio.CancelledError() if request.cancelled() else request.exception()
        return ProbeResult(outcome=Outcome.RAISED, status=answer.status, error=error)
    if answer.status // 100 != 2:  # noqa: PLR2004  # HTTP's class of success
        return ProbeResult(outcome=Outcome.BAD_STATUS, status=answer.status)
    if _says_unhealthy(answer.body):
        return ProbeResult(outcome=Outcome.UNHEALTHY, status=answer.status)
    return ProbeResult(outcome=Outcome.PASSED, status=answer.status)


class Prober:
    """
    Asks the app for its health again and again, and never for more than it can bear.

    What waits in a thread for a database that hangs cannot be cancelled: each such request holds a thread and
    a connection, which the app's clients need. So only a few may be left behind before one has to end.

    :param app: as for :func:`probe`, as are the others.
    """

    def __init__(self, app: ASGIApp, path: str, *, state: Message, timeout_s: float) -> None:
        self._app, self._path, self._state, self._timeout_s = app, path, state, timeout_s
        self._unended: set[asyncio.Task[Any]] = set()

    async def ask(self) -> ProbeResult:
        """Ask once, as soon as few enough of the earlier requests still run."""
        if len(self._unended) >= UNENDED_MAX:
            await asyncio.wait(self._unended, return_when=asyncio.FIRST_COMPLETED)
        return await probe(self._counted, self._path, state=self._state, timeout_s=self._timeout_s)

    async def _counted(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # this is a coroutine
        self._unended.add(task)
        task.add_done_callback(self._unended.discard)
        await self._app(scope, receive, send)


class _Answer:
    """What the app sends back."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.completed = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        return self.completed.is_set()

    async def receive(self) -> Message:
        if not self.is_complete and not hasattr(self, "_asked"):
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        # A second receive() is the app watching for the client to leave: it leaves once it has its answer.
        await self.completed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            if len(self.body) < _BODY_LIMIT_BYTES:
                self.body += message.get("body", b"")
            if not message.get("more_body", False):
                self.completed.set()


async def _call(app: ASGIApp, scope: Message, answer: _Answer) -> None:
    """
    Run the app until its answer is complete.

    The app itself may go on after that (background tasks), which is not the probe's business to wait for.
    """
    task = asyncio.ensure_future(app(scope, answer.receive, answer.send))
    answered = asyncio.ensure_future(answer.completed.wait())
    try:
        await asyncio.wait({task, answered}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        task.cancel()
        raise
    finally:
        answered.cancel()
    if task.done():
        with contextlib.suppress(Exception) if answer.is_complete else contextlib.nullcontext():
            task.result()


def _scope(path: str, state: Message) -> Message:
    url = urlsplit(path)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(url.path),
        "raw_path": url.path.encode("ascii"),
        "query_string": url.query.encode("ascii"),
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"user-agent", b"airflow-arbiter-probe")],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": dict(state),
    }


def _says_unhealthy(body: bytes) -> bool:
    """
    Read Airflow's health answer, which is 200 even when its database is away.

    Its other components (scheduler, triggerer, ...) are other processes: a worker of the API server is no
    worse for their absence.

    Source: ``airflow.api.common.airflow_health.get_airflow_health``.
    """
    try:
        answer = json.loads(body)
        return bool(answer["metadatabase"]["status"] == "unhealthy")
    except (ValueError, TypeError, KeyError):
        return False
