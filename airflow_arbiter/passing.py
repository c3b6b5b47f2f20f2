"""
An event loop that is there for a moment, and leaves nothing behind.

Owns the end of all that ran on it: tasks, threads, and this process, where a thread keeps it from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from airflow_arbiter import events
from airflow_arbiter.alarm import LateError, alarm

JOIN_LIMIT_S = 1.0
"""Time for tasks and for threads of the warm-up to end."""

CLEANUP_LIMIT_S = 2 * JOIN_LIMIT_S
"""Time for all that the event loop has to end, should a task not let it turn."""

_JOIN_PAUSE_S = 0.01

_stuck: list[threading.Thread] = []
"""Threads of the warm-up that have not ended with it."""


@contextlib.contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """
    An event loop, with all that runs on it ended afterwards as far as it can be.

    Not ``asyncio.run``, which waits for threads without a limit, and leaves the main thread without a loop.
    """
    before = set(threading.enumerate())
    loop = asyncio.new_event_loop()
    executor = ThreadPoolExecutor(thread_name_prefix="preload")
    loop.set_default_executor(executor)
    try:
        yield loop
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        # An alarm of its own: that of the requests would ring in here, and leave the rest undone.
        with contextlib.suppress(LateError), alarm(CLEANUP_LIMIT_S):
            _end_tasks(loop)
        loop.close()
        _end_threads(set(threading.enumerate()) - before)


def _end_threads(threads: set[threading.Thread]) -> None:
    """
    Wait for threads to end, and know those that do not.

    They are known first, because a signal may break this off. Not by join(): broken off, it lets Python 3.11
    take a thread that lives for one that has ended.
    """
    _stuck.extend(threads)
    deadline = time.monotonic() + JOIN_LIMIT_S
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        time.sleep(_JOIN_PAUSE_S)
    _stuck[:] = [thread for thread in _stuck if thread.is_alive()]


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs, and say what that was: no worker will have it."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=JOIN_LIMIT_S))
        names = " ".join(sorted(str(task.get_coro()) for task in tasks))
        events.publish("preload.tasks_ended", level="warning", tasks=names)
    loop.run_until_complete(loop.shutdown_asyncgens())


def leave(code: object) -> None:
    """
    End this process at once, where a thread of the warm-up would keep the interpreter from ending.

    :param code: the exit code, as SystemExit has it.
    """
    if not any(thread.is_alive() for thread in _stuck):
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or full
            stream.flush()
    os._exit(code if isinstance(code, int) else bool(code))
