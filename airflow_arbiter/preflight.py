"""
The preflight: tries, in a process of its own, whether the code and the configuration on disk would serve.

Owns what must hold before a master gives up the code that it has: the configuration can be read, the app can
be imported, has no new troubles, starts, and is healthy. Runs in an errand of the master.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import traceback
from dataclasses import replace
from typing import Any, NoReturn

from uvicorn.config import Config

from airflow_arbiter import capture, events, handover, logfiles, preload
from airflow_arbiter.errors import ArbiterError
from airflow_arbiter.handover import Handover
from airflow_arbiter.health import ProbeResult, describe, probe
from airflow_arbiter.proctitle import set_title
from airflow_arbiter.taint import TaintedError
from airflow_arbiter.troubles import UnfitError, refuse_new

PROBE_PAUSE_S = 0.5
"""Pause between two probes of an app that is not healthy yet."""

SHUTDOWN_S = 5.0
"""What the app gets to shut down; how it leaves says nothing of how it serves."""


def run(message: Handover, fd: int) -> None:
    """
    Try it, and tell how it went: an object with ``error`` and ``stack``, or with ``warmup_s``, which is what
    the warm-up took, 0 where it did not end by itself.

    :param message: as for the new image.
    :param fd: where to tell.
    """
    verdict: dict[str, str | float]
    try:
        events.bind(pid=os.getpid(), process="preflight")
        app = message.make_app()
        set_title(f"preflight [{app.cfg.proc_name}]")
        logfiles.set_up(app.cfg)
        capture.install()
        try:
            verdict = {"warmup_s": _rehearse(app, set(message.known_troubles), is_cold=message.is_cold)}
        except TaintedError:
            _begin_anew(message, fd, app.environ)
    except (ArbiterError, UnfitError) as error:
        verdict = {"error": str(error)}
        if error.__cause__ is not None:
            verdict["stack"] = "".join(traceback.format_exception(error.__cause__))
    except BaseException as error:
        # Foreign code runs here, which may raise anything, SystemExit included.
        verdict = {"error": f"{type(error).__name__}: {error}", "stack": traceback.format_exc()}
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or full
            stream.flush()
    with os.fdopen(fd, "w") as pipe:
        pipe.write(json.dumps(verdict) + "\n")
    os._exit(0)  # threads of the app, and what it does at exit, are nobody's business here


def _begin_anew(message: Handover, pipe: int, environment: dict[str, str]) -> NoReturn:
    """Try once more, in a fresh image, and without the warm-up that cannot be undone otherwise."""
    fd = replace(message, is_cold=True).write()
    handover.keep_over_exec(fd, pipe)
    with contextlib.suppress(OSError):
        os.chdir(message.cwd)
    line = handover.command(fd, "preflight", str(pipe))
    os.execve(line[0], line, environment)  # noqa: S606  # there is no shell to want


def _rehearse(app: Any, known_troubles: set[str], *, is_cold: bool) -> float:
    """
    Load the app and live the beginning of a worker's life with it.

    :param is_cold: whether there is no warm-up.
    :return: what the warm-up took, as :func:`airflow_arbiter.preload.load` has it.
    :raises TaintedError: when that cannot be undone.
    :raises UnfitError: when it would not serve.
    """
    for name, value in app.cfg.env.items():
        os.environ[name] = value
    warmup_s = preload.load(app, limit_s=0.0 if is_cold else preload.LIMIT_S)
    refuse_new(app.served.troubles(), known=known_troubles)
    # Not asyncio.run(), which waits for tasks and threads that the app leaves behind.
    asyncio.new_event_loop().run_until_complete(_start(app, app.callable))
    return warmup_s


async def _start(app: Any, asgi_app: Any) -> None:
    config = Config(asgi_app, log_config=None, lifespan="auto")
    config.load()
    lifespan = config.lifespan_class(config)
    await lifespan.startup()
    if lifespan.should_exit:
        raise UnfitError("the app's startup failed")
    path = app.cfg.health_check_path
    if path is not None:
        await _prove(config.loaded_app, path, state=lifespan.state, timeout_s=app.cfg.health_check_timeout)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(lifespan.shutdown(), SHUTDOWN_S)


async def _prove(asgi_app: Any, path: str, *, state: dict[str, Any], timeout_s: float) -> None:
    """
    Probe until it passes; who has the patience for it is the master.

    What the app raises is shown, because it would raise again.

    :raises UnfitError: when the probe raised.
    """
    told = ""
    while not (result := await probe(asgi_app, path, state=state, timeout_s=timeout_s)).passed:
        if result.error is not None:
            error = result.error
            raise UnfitError(f"{_words(result)}: {type(error).__name__}: {error}") from error
        if _words(result) != told:
            told = _words(result)
            events.publish("preflight.unhealthy", level="warning", because=told)
        await asyncio.sleep(PROBE_PAUSE_S)


def _words(result: ProbeResult) -> str:
    return describe(result.code)
