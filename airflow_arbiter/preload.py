"""
The preload: what the master does with the app before its first fork, so that no worker has to do it again.

Owns the order: import, warm-up, undoing what must not cross a fork, audit, freezing what is left. What a
worker would do at its first requests (late imports, schemas, compiled statements) is done once here, in
memory that all workers share. The app's lifespan is not run: it is the workers' to live, and may bind what
it makes to its event loop, or refuse to run twice. A warm-up that fails is told of, and never fails a start.
One that leaves what no fork may copy is undone: by whoever loads the app, in a fresh image without any.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from uvicorn.config import Config

from airflow_arbiter import events, fork_safety, immortal, passing
from airflow_arbiter.alarm import LateError, alarm
from airflow_arbiter.errors import IntegrationError
from airflow_arbiter.health import ASGIApp, Outcome, describe, probe
from airflow_arbiter.taint import TaintedError, Traces

LIMIT_S = 20.0
"""Time for the whole warm-up of a first start."""

PATH_LIMIT_S = 10.0
"""Time for one path; more than a health check has, which is not the first request of its process."""

RESERVE_S = 1.0
"""Part of the whole that no path gets, so that the last one is given up, and not broken off where it is."""

AGAIN_FACTOR, AGAIN_FLOOR_S = 3.0, 1.0
"""What a warm-up gets that has gone well a moment ago, as a multiple of what it took, and in seconds more."""

_ASKED_WHO = (401, 403)
"""Statuses of a path that wants to know who asks: what lies before that has been warmed up, and no more."""

_GC_THRESHOLD = 50_000
"""Of new objects, while the app is made: they are there to stay, and looking for garbage takes time."""


@dataclass(slots=True)
class _Course:
    """How a warm-up goes: paths that are warm, or want to know who asks, and why others are neither."""

    warm: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def load(app: Any, audit: fork_safety.Audit | None = None, *, limit_s: float = LIMIT_S) -> float:
    """
    Load the app, warm it up, and tell what it has left that is not safe to fork. Once only.

    :param app: the gunicorn application.
    :param audit: listens from now on, until :func:`look_again`, or until somebody ends it.
    :param limit_s: time for the warm-up; with 0 there is none.
    :return: seconds that the warm-up took; 0 where there was none, or none that ended by itself.
    :raises TaintedError: when the warm-up has left what cannot be undone in this process.
    :raises ForkSafetyError: for findings of the audit, where it is strict.
    :raises Exception: whatever the import of the app raises.
    """
    if app.callable is not None:
        return 0.0
    audit = audit or fork_safety.Audit()
    audit.folders, audit.hints = app.served.plugin_folders(), app.served.exporters()
    if app.cfg.fork_safety != "off":
        audit.begin()
    took_s = 0.0
    with _rare_collections():
        asgi_app = app.wsgi()
        traces = Traces(audit.maker)
        if app.cfg.warmup_path:
            limit_s = min(limit_s, app.cfg.worker_boot_timeout / 4)
            took_s = _warm_up(app, asgi_app, limit_s, follow=traces.follow)
    _release(app)
    if app.cfg.warmup_path:
        _refuse_taint(traces)
    _tell(app, audit, is_strict=app.cfg.fork_safety == "strict")
    return took_s


def look_again(app: Any, audit: fork_safety.Audit, *, ours: Iterable[int], may_refuse: bool) -> None:
    """
    Tell, at the last moment before the first fork, what hooks have left since the app was loaded.

    :param ours: descriptors of sockets that were made meanwhile, and that workers are to have.
    :param may_refuse: whether a strict audit still is; not where there are workers already.
    :raises ForkSafetyError: as :func:`load`.
    """
    audit.end()
    audit.pass_over(ours)
    _tell(app, audit, is_strict=may_refuse and app.cfg.fork_safety == "strict")


def _refuse_taint(traces: Traces) -> None:
    """
    Say what the warm-up has left.

    Before the audit is asked, which would blame the app for it.

    :raises TaintedError: if it is anything.
    """
    if left := traces.left():
        events.publish("preload.tainted", level="warning", left=left)
        raise TaintedError(left)


def limit_after(took_s: float) -> float:
    """
    Tell how long a warm-up may take during a reload, when nobody supervises the workers.

    :param took_s: what it took in the preflight; 0 where it did not end by itself, and is not tried again.
    """
    return AGAIN_FLOOR_S + AGAIN_FACTOR * took_s if took_s else 0.0


def settle(app: Any) -> None:
    """
    Make what is there now the part of memory that all workers share.

    Immortal objects are not written to when they are looked at. Frozen ones are no longer visited by a
    worker's garbage collector, which would write to each of them, and so copy their pages. The allocator's
    free pages are given back, before they are copied.

    :param app: the gunicorn application.
    """
    began_at = time.monotonic()
    if not _was_just_collected():
        gc.collect()
    is_immortal = app.cfg.immortal_preload and not immortal.reason_against()
    if is_immortal:
        immortal.immortalize_heap()
    gc.freeze()
    with contextlib.suppress(AttributeError, OSError):  # glibc's only
        ctypes.CDLL(None).malloc_trim(0)
    # Once more, for new pools: a frozen one is never collected, and so keeps what connections it may get.
    _release(app)
    seconds = round(time.monotonic() - began_at, 3)
    events.publish("preload.settled", immortal=is_immortal, seconds=seconds)


def _release(app: Any) -> None:
    try:
        app.served.prepare_fork()
    except Exception:
        # What cannot be given back must not keep us from serving; it is tried again before each fork.
        events.publish_exception("preload.release_failed", level="warning")


def _tell(app: Any, audit: fork_safety.Audit, *, is_strict: bool) -> None:
    """
    Say what the audit has found, and has not said before.

    :raises ForkSafetyError: for any finding, where it is strict.
    """
    if not app.cfg.preload_app or app.cfg.fork_safety == "off":
        return
    try:
        findings = audit.news()
    except Exception:
        # It looks at whatever objects there are, of anybody's classes.
        events.publish_exception("fork_safety.audit_failed", level="warning")
        return
    if is_strict:
        fork_safety.check(findings)
    for finding in findings:
        events.publish(
            "fork_safety.found",
            level="warning",
            kind=finding.kind,
            what=finding.what,
            made_by=finding.made_by,
        )


# -- the warm-up
# -------------------------------------------------------------------------------------------------------


def _warm_up(
    app: Any, asgi_app: Any, limit_s: float, *, follow: Callable[[asyncio.AbstractEventLoop], None]
) -> float:
    """Put the requests, on an event loop that is gone afterwards, with its tasks and threads."""
    if because := _reason_to_skip(app, limit_s):
        events.publish("preload.warmup_skipped", level="warning", because=because)
        return 0.0
    began_at = time.monotonic()
    course = _Course()
    has_ended = False
    try:
        with passing.event_loop() as loop:
            follow(loop)
            with alarm(limit_s):
                reserve_s = min(RESERVE_S, limit_s / 4)
                loop.run_until_complete(_ask(app, asgi_app, course, ends_at=began_at + limit_s - reserve_s))
            has_ended = True
    except LateError:
        course.failures[""] = f"not done within {limit_s:g} s, and broken off where it was"
    except (Exception, SystemExit, asyncio.CancelledError) as error:
        # SystemExit of the app's; or of a signal to end, which whoever loads the app has noted.
        course.failures[""] = f"{type(error).__name__}: {error}"
    took_s = time.monotonic() - began_at
    for path, because in course.failures.items():
        events.publish("preload.warmup_failed", level="warning", path=path, because=because)
    refused: dict[str, Any] = {"refused": " ".join(course.refused)} if course.refused else {}
    events.publish("preload.warmed", seconds=round(took_s, 3), paths=" ".join(course.warm), **refused)
    return took_s if has_ended else 0.0


def _reason_to_skip(app: Any, limit_s: float) -> str:
    if not limit_s:
        return "an earlier one did not end by itself, or could not be undone"
    if os.geteuid() != app.cfg.uid or os.getegid() != app.cfg.gid:
        return "workers run as another user, and what the app makes must be theirs"
    try:
        app.origin()
    except IntegrationError as error:
        return f"it could not be undone: {error}"
    return ""


async def _ask(app: Any, asgi_app: Any, course: _Course, *, ends_at: float) -> None:
    """Ask for each path, as a worker's first client would."""
    config = Config(asgi_app, log_config=None, lifespan="off")
    config.load()
    loaded_app: ASGIApp = config.loaded_app
    try:
        # First, because it can be cancelled: a request that waits for a database in a thread cannot, and
        # the thread would be there at the fork. Without a database nothing is asked.
        await asyncio.wait_for(app.served.enter_loop(), PATH_LIMIT_S)
        for path in app.cfg.warmup_path:
            left_s = min(PATH_LIMIT_S, ends_at - time.monotonic())
            if left_s <= 0:
                course.failures[path] = "no time was left for it"
                continue
            result = await probe(loaded_app, path, state={}, timeout_s=left_s)
            if isinstance(result.error, LateError):
                raise result.error
            if result.passed:
                course.warm.append(path)
            elif result.outcome is Outcome.BAD_STATUS and result.status in _ASKED_WHO:
                course.refused.append(path)
            else:
                course.failures[path] = describe(result.code).replace("health check", "it")
    finally:
        await app.served.leave_loop()


def _was_just_collected() -> bool:
    """Whether all garbage has been looked for, and hardly anything has been made since."""
    return gc.get_stats()[-1]["collections"] > 0 and gc.get_count()[-1] == 0


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for garbage less often than usual while a whole app is made, unless it says itself how often."""
    old = gc.get_threshold()
    if old[0]:
        gc.set_threshold(_GC_THRESHOLD, *old[1:])
    try:
        yield
    finally:
        if gc.get_threshold()[0] == _GC_THRESHOLD:
            gc.set_threshold(*old)
