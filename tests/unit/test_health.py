"""The probe, against small ASGI apps."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

import pytest

from airflow_arbiter.health import (
    UNENDED_MAX,
    ASGIApp,
    Message,
    Outcome,
    Prober,
    ProbeResult,
    describe,
    probe,
)

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class TroubleError(Exception):
    """What the apps here raise."""


def answering(status: int, *chunks: bytes) -> ASGIApp:
    """An app that answers in as many pieces as given."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send({"type": "http.response.start", "status": status, "headers": []})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    return app


def ask(app: ASGIApp, path: str = "/health", *, timeout_s: float = 10.0) -> ProbeResult:
    return asyncio.run(probe(app, path, state={}, timeout_s=timeout_s))


def as_json(answer: object) -> bytes:
    return json.dumps(answer).encode()


AIRFLOW_HEALTHY = {
    "metadatabase": {"status": "healthy"},
    "scheduler": {"status": "unhealthy", "latest_scheduler_heartbeat": None},
    "triggerer": {"status": None},
}


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        pytest.param(answering(200, b"OK"), ProbeResult(outcome=Outcome.PASSED, status=200), id="200"),
        pytest.param(answering(204), ProbeResult(outcome=Outcome.PASSED, status=204), id="204-no-body"),
        pytest.param(
            answering(299), ProbeResult(outcome=Outcome.PASSED, status=299), id="299-last-of-its-class"
        ),
        pytest.param(
            answering(503, b"no"), ProbeResult(outcome=Outcome.BAD_STATUS, status=503), id="503-unavailable"
        ),
        pytest.param(
            answering(404), ProbeResult(outcome=Outcome.BAD_STATUS, status=404), id="404-wrong-path"
        ),
        pytest.param(
            answering(302), ProbeResult(outcome=Outcome.BAD_STATUS, status=302), id="302-nobody-follows"
        ),
        pytest.param(
            answering(199), ProbeResult(outcome=Outcome.BAD_STATUS, status=199), id="199-before-its-class"
        ),
        pytest.param(
            answering(200, *(b"x" * 1000 for _ in range(300))),
            ProbeResult(outcome=Outcome.PASSED, status=200),
            id="a-long-stream",
        ),
        pytest.param(
            answering(200, as_json(AIRFLOW_HEALTHY)),
            ProbeResult(outcome=Outcome.PASSED, status=200),
            id="airflow-is-healthy-whatever-its-other-components-are",
        ),
        pytest.param(
            answering(200, as_json({**AIRFLOW_HEALTHY, "metadatabase": {"status": "unhealthy"}})),
            ProbeResult(outcome=Outcome.UNHEALTHY, status=200),
            id="airflow-without-its-database-is-not,-though-it-answers-200",
        ),
        pytest.param(
            answering(200, b'{"metadatabase": {"sta', b'tus": "unhealthy"}}'),
            ProbeResult(outcome=Outcome.UNHEALTHY, status=200),
            id="the-pieces-of-a-stream-are-read-as-one",
        ),
        pytest.param(
            answering(503, as_json({"metadatabase": {"status": "unhealthy"}})),
            ProbeResult(outcome=Outcome.BAD_STATUS, status=503),
            id="the-status-comes-first",
        ),
        *(
            pytest.param(
                answering(200, body),
                ProbeResult(outcome=Outcome.PASSED, status=200),
                id=f"body-{body[:30]!r}",
            )
            for body in (
                b"{}",
                b"[]",
                b"3",
                b"null",
                b'"metadatabase"',
                b"{",
                b"\xff\xfe\x00",
                b'{"metadatabase": null}',
                b'{"metadatabase": "unhealthy"}',
                b'{"metadatabase": []}',
                b'{"metadatabase": {}}',
                b'{"status": "unhealthy"}',
            )
        ),
    ],
)
def test_answer(app: ASGIApp, expected: ProbeResult) -> None:
    """2xx passes, unless it is Airflow and its database is away; nobody else's body is read for a meaning."""
    assert ask(app) == expected


def test_slow_app_times_out_and_is_cancelled() -> None:
    """After the timeout the app is told to stop, and the answer is: timed out."""
    ended: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    assert ask(app, timeout_s=0.01) == ProbeResult(outcome=Outcome.TIMED_OUT)
    assert ended == ["cancelled"]


def test_app_that_stops_halfway_times_out_with_its_status() -> None:
    """An answer that does not end is none, but its status is told."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await asyncio.get_running_loop().create_future()

    assert ask(app, timeout_s=0.01) == ProbeResult(outcome=Outcome.TIMED_OUT, status=200)


def test_app_that_swallows_its_cancellation_does_not_hold_us_up() -> None:
    """The probe ends at its timeout, whether the app obeys or not."""

    async def scene() -> tuple[ProbeResult, bool]:
        release = asyncio.Event()
        done = asyncio.Event()

        async def app(scope: Message, receive: Receive, send: Send) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                await release.wait()
            done.set()

        result = await probe(app, "/", state={}, timeout_s=0.01)
        was_done = done.is_set()
        release.set()
        await done.wait()
        return result, was_done

    assert asyncio.run(scene()) == (ProbeResult(outcome=Outcome.TIMED_OUT), False)


def test_requests_that_cannot_be_cancelled_do_not_pile_up() -> None:
    """No more is asked than the app can bear; when one request ends, the next one is asked."""

    async def scene() -> tuple[list[int], ProbeResult]:
        endings: list[asyncio.Event] = []
        healthy = answering(204)

        async def app(scope: Message, receive: Receive, send: Send) -> None:
            if len(endings) == UNENDED_MAX:
                return await healthy(scope, receive, send)
            endings.append(ending := asyncio.Event())
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
            await ending.wait()
            return None

        prober = Prober(app, "/", state={}, timeout_s=0.01)
        asked = []
        for _ in range(UNENDED_MAX):
            assert (await prober.ask()).outcome is Outcome.TIMED_OUT
            asked.append(len(endings))
        last = asyncio.ensure_future(prober.ask())
        waited, _ = await asyncio.wait({last}, timeout=0.1)
        assert not waited, "asked although too many requests run"
        endings[0].set()
        result = await last
        for ending in endings:
            ending.set()
        return asked, result

    asked, result = asyncio.run(scene())
    assert asked == list(range(1, UNENDED_MAX + 1))
    assert result == ProbeResult(outcome=Outcome.PASSED, status=204)


def test_app_that_raises() -> None:
    """An exception instead of an answer is told with the exception."""
    trouble = TroubleError("no database")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        raise trouble

    assert ask(app) == ProbeResult(outcome=Outcome.RAISED, error=trouble)


def test_app_that_lets_a_cancellation_out() -> None:
    """It is an exception of the app's like any other, not the end of whoever asks."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    result = ask(app)
    assert result.outcome is Outcome.RAISED
    assert isinstance(result.error, asyncio.CancelledError)


def test_app_that_raises_halfway() -> None:
    """An exception after the start of an answer is told with the status too."""
    trouble = TroubleError("connection lost")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise trouble

    assert ask(app) == ProbeResult(outcome=Outcome.RAISED, status=200, error=trouble)


def test_app_that_returns_without_an_answer() -> None:
    """Silence is no health, and there is no exception to show."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        return

    assert ask(app) == ProbeResult(outcome=Outcome.RAISED)


def test_app_that_raises_after_its_answer() -> None:
    """A whole answer counts, whatever comes after it."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answering(200)(scope, receive, send)
        raise TroubleError("too late")

    assert ask(app) == ProbeResult(outcome=Outcome.PASSED, status=200)


def test_background_work_goes_on_after_the_answer() -> None:
    """The probe does not wait for what an app does after its answer, and does not cancel it."""

    async def scene() -> tuple[ProbeResult, list[str]]:
        told: list[str] = []
        release = asyncio.Event()
        done = asyncio.Event()

        async def app(scope: Message, receive: Receive, send: Send) -> None:
            await answering(200)(scope, receive, send)
            told.append((await receive())["type"])
            await release.wait()
            told.append("background")
            done.set()

        result = await probe(app, "/", state={}, timeout_s=10)
        told.append("probed")
        release.set()
        await done.wait()
        return result, told

    result, told = asyncio.run(scene())
    assert result == ProbeResult(outcome=Outcome.PASSED, status=200)
    assert sorted(told) == ["background", "http.disconnect", "probed"]
    assert told[-1] == "background"


def test_app_that_watches_for_the_client_to_leave_can_answer() -> None:
    """A second receive() waits for the end of the answer, as a patient client would."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        watcher = asyncio.ensure_future(receive())
        await asyncio.wait({watcher}, timeout=0)
        assert not watcher.done()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"OK"})
        assert await watcher == {"type": "http.disconnect"}

    assert ask(app) == ProbeResult(outcome=Outcome.PASSED, status=200)


@pytest.mark.parametrize(
    ("asked", "path", "raw_path", "query"),
    [
        pytest.param(
            "/api/v2/monitor/health", "/api/v2/monitor/health", b"/api/v2/monitor/health", b"", id="plain"
        ),
        pytest.param(
            "/health?deep=1&x=%20", "/health", b"/health", b"deep=1&x=%20", id="query-stays-as-it-is"
        ),
        pytest.param(
            "/a%20b/%C3%A9", "/a b/é", b"/a%20b/%C3%A9", b"", id="escapes-are-decoded-in-the-path-only"
        ),
        pytest.param("/a%2Fb%3Fc", "/a/b?c", b"/a%2Fb%3Fc", b"", id="an-escaped-mark-begins-no-query"),
        pytest.param("/", "/", b"/", b"", id="root"),
    ],
)
def test_request(asked: str, path: str, raw_path: bytes, query: bytes) -> None:
    """The app sees a GET of a local client, with everything that ASGI asks for."""
    scopes: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answering(200)(scope, receive, send)

    ask(app, asked)
    assert scopes == [
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"user-agent", b"airflow-arbiter-probe")],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
            "state": {},
        }
    ]


def test_state_is_a_copy() -> None:
    """The app sees the lifespan's state, and what a request adds to it is gone with the request."""
    seen: list[object] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["state"]))
        scope["state"]["mine"] = True
        await answering(200)(scope, receive, send)

    state: Message = {"pool": "shared"}
    asyncio.run(probe(app, "/", state=state, timeout_s=10))
    assert (seen, state) == ([{"pool": "shared"}], {"pool": "shared"})


@pytest.mark.parametrize(
    ("result", "code", "words", "passed"),
    [
        pytest.param(ProbeResult(outcome=Outcome.UNKNOWN), 0, "not probed yet", False, id="none"),
        pytest.param(
            ProbeResult(outcome=Outcome.PASSED, status=204),
            1204,
            "health check answered 204",
            True,
            id="passed",
        ),
        pytest.param(
            ProbeResult(outcome=Outcome.BAD_STATUS, status=503),
            2503,
            "health check answered 503",
            False,
            id="bad-status",
        ),
        pytest.param(
            ProbeResult(outcome=Outcome.UNHEALTHY, status=200),
            3200,
            "health check answered 200, but its database is unhealthy",
            False,
            id="unhealthy",
        ),
        pytest.param(
            ProbeResult(outcome=Outcome.TIMED_OUT), 4000, "health check timed out", False, id="timed-out"
        ),
        pytest.param(
            ProbeResult(outcome=Outcome.RAISED), 5000, "health check raised an exception", False, id="raised"
        ),
    ],
)
def test_code(result: ProbeResult, code: int, words: str, passed: bool) -> None:
    """A result goes through the status page as one number, and comes out in words."""
    assert (result.code, describe(code), result.passed) == (code, words, passed)
