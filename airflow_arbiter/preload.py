"""
The preload: what the master does with the app before its first fork, so that no worker has to do it again.

Owns the order: import, warm-up, undoing what must not cross a fork, audit, freezing what is left. What a
worker would do at its first requests (late imports, schemas, compiled statements) is done once here, in
memory that all workers share. A warm-up that fails is told of, and never fails a start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import Any

from uvicorn.config import Config

from airflow_arbiter import events, fork_safety
from airflow_arbiter.errors import StartupError
from airflow_arbiter.health import ASGIApp, Message, Outcome, ProbeResult, describe, probe

LIMIT_S = 20.0
"""Time for the whole warm-up: during a reload nobody supervises the workers meanwhile."""

PATH_LIMIT_S = 10.0
"""Time for one path; more than a health check has, which is not the first request of its process."""

SHUTDOWN_S = 5.0
"""What the app gets to shut down; how it leaves says nothing of how it serves."""

ALARM_PAUSE_S = 0.5
"""After its limit, what goes on all the same is broken off again and again."""

_ASKED_WHO = (401, 403)
"""Statuses of a path that wants to know who asks: all but the user has been warmed up."""

_GC_THRESHOLD = 50_000
"""Of new objects, while the app is imported: they are there to stay, and looking for garbage takes time."""


class _LateError(BaseException):
    """
    The warm-up takes too long; raised in whatever the main thread does.

    No Exception, so that apps let it through, and no SystemExit, so that the event loop survives it.
    """


def load(app: Any) -> None:
    """
    Load the app, warm it up, and tell what it has left that is not safe to fork. Once only.

    :param app: the gunicorn application.
    :raises ForkSafetyError: for findings of the audit, where it is strict.
    :raises Exception: whatever the import of the app raises.
    """
    if app.callable is not None:
        return
    audit = fork_safety.Audit()
    with contextlib.nullcontext() if app.cfg.fork_safety == "off" else audit.listening():
        with _rare_collections():
            asgi_app = app.wsgi()
        if app.cfg.warmup_path:
            _warm_up(app, asgi_app)
        try:
            app.prepare_fork()
        except Exception:
            # What cannot be given back must not keep us from serving; it is tried again before each fork.
            events.publish_exception("preload.release_failed", level="warning")
    if app.cfg.fork_safety != "off":
        findings = audit.findings()
        if app.cfg.fork_safety == "strict":
            fork_safety.check(findings)
        for finding in findings:
            events.publish(
                "fork_safety.found",
                level="warning",
                kind=finding.kind,
                what=finding.what,
                made_by=finding.made_by,
            )


def settle() -> None:
    """
    Make what is there now the part of memory that all workers share.

    Frozen objects are no longer visited by a worker's garbage collector, which would write to each of them,
    and so copy their pages. The allocator's free pages are given back, before they are copied.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError, OSError):  # glibc's only
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.asynccontextmanager
async def living(asgi_app: Any) -> AsyncIterator[tuple[ASGIApp, Message]]:
    """
    Run the app's lifespan.

    :return: the app to put requests to, and the lifespan's state.
    :raises StartupError: when its startup fails.
    """
    config = Config(asgi_app, log_config=None, lifespan="auto")
    config.load()
    lifespan = config.lifespan_class(config)
    await lifespan.startup()
    if lifespan.should_exit:
        raise StartupError("the app's startup failed")
    try:
        yield config.loaded_app, lifespan.state
    finally:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(lifespan.shutdown(), SHUTDOWN_S)


# -- the warm-up
# -------------------------------------------------------------------------------------------------------


def _warm_up(app: Any, asgi_app: Any) -> None:
    """Put the requests, on an event loop that is gone afterwards, with all its threads."""
    began_at = time.monotonic()
    before = set(threading.enumerate())
    failures: dict[str, str] = {}
    try:
        with _alarm(LIMIT_S):
            asyncio.run(_ask(app, asgi_app, failures, ends_at=began_at + LIMIT_S))
            for thread in set(threading.enumerate()) - before:
                if not thread.daemon:
                    thread.join()  # a pool's, which ends with its loop
    except _LateError:
        failures[""] = f"not done within {LIMIT_S:g} s"
    except Exception as error:
        failures[""] = f"{type(error).__name__}: {error}"
    for path, because in failures.items():
        events.publish("preload.warmup_failed", level="warning", path=path, because=because)
    events.publish(
        "preload.warmed",
        seconds=round(time.monotonic() - began_at, 3),
        paths=" ".join(path for path in app.cfg.warmup_path if path not in failures),
    )


async def _ask(app: Any, asgi_app: Any, failures: dict[str, str], *, ends_at: float) -> None:
    """Live the beginning of a worker's life."""
    async with living(asgi_app) as (living_app, state):
        try:
            # First, because it can be cancelled: a request that waits for a database in a thread cannot, and
            # the thread would be there at the fork. Without a database nothing is asked.
            await asyncio.wait_for(app.enter_loop(), PATH_LIMIT_S)
            for path in app.cfg.warmup_path:
                left_s = min(PATH_LIMIT_S, ends_at - time.monotonic())
                result = await probe(living_app, path, state=state, timeout_s=max(0.0, left_s))
                if not _is_warm(result):
                    failures[path] = describe(result.code).replace("health check", "it")
        finally:
            await app.leave_loop()


def _is_warm(result: ProbeResult) -> bool:
    return result.passed or (result.outcome is Outcome.BAD_STATUS and result.status in _ASKED_WHO)


@contextlib.contextmanager
def _alarm(limit_s: float) -> Iterator[None]:
    """
    Raise :class:`_LateError` when the time is over.

    A signal, because the app may block the event loop, and no timeout of asyncio's would come then.
    """

    def ring(_sig: int, _frame: FrameType | None) -> None:
        raise _LateError

    old_handler = signal.signal(signal.SIGALRM, ring)
    old_mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})  # a new image blocks all
    signal.setitimer(signal.ITIMER_REAL, limit_s, ALARM_PAUSE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        signal.signal(signal.SIGALRM, old_handler)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for garbage less often than usual."""
    old = gc.get_threshold()
    gc.set_threshold(_GC_THRESHOLD, *old[1:])
    try:
        yield
    finally:
        gc.set_threshold(*old)
