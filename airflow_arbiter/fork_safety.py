"""
The audit before the first fork: what the app has left that no child process can have.

Owns what is looked for, and the finding out of who made it. A fork copies memory and descriptors, but only
the one thread that forks: a lock that another thread holds stays locked for ever in the child, an exporter's
thread is missing there, and two processes read from one connection. Datagrams are none of it: each goes out
whole, whoever sends it, as StatsD's and syslog's do. Changes nothing, and decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from airflow_arbiter import descriptors
from airflow_arbiter.errors import ForkSafetyError
from airflow_arbiter.makers import BEFORE, UNKNOWN, Awaited, name_maker
from airflow_arbiter.taint import name_holders

MODES = ("warn", "strict", "off")

_EXPORTERS = (
    "airflow._shared.observability",
    "datadog",
    "ddtrace",
    "opentelemetry",
    "prometheus_client",
    "sentry_sdk",
    "statsd",
)
"""Packages that send measurements in the background."""

_SELF_PIPE_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """
    One thing that a child would have a broken copy of.

    :param kind: e.g. ``thread``.
    :param what: its name, or whom it is connected with.
    :param made_by: the module, with its file and line, that made it.
    """

    kind: str
    what: str
    made_by: str

    def __str__(self) -> str:
        return f"{self.kind} {self.what}, made by {self.made_by}"


class Audit:
    """
    A look before and after the app is loaded, and an ear while it is.

    While it listens, new threads, sockets and database connections are traced to their makers.

    :ivar folders: where code of the operator's lies that the app loads.
    :ivar hints: why threads are there that nobody saw start, by the package whose code they run.
    """

    def __init__(self) -> None:
        self._threads: WeakKeyDictionary[threading.Thread, str] = WeakKeyDictionary()
        self._sockets: dict[int, str] = {}
        self._of_loops: set[int] = set()
        self._told: set[Finding] = set()
        self.folders: Sequence[Path] = ()
        self.hints: Mapping[str, str] = {}
        self._ends = contextlib.ExitStack()
        self._connections: dict[int, tuple[ReferenceType[Any], str, str]] = {}
        self._ours = {
            inode
            for inode, fd in descriptors.socket_inodes().items()
            if descriptors.is_meant_for_children(fd)
        }

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Trace what is made within."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """Trace what is made from now on."""
        thread_class, socket_class = threading.Thread, socket.socket
        start, create = thread_class.start, socket_class.__init__

        def traced_start(thread: threading.Thread) -> None:
            self._threads[thread] = name_maker(_caller(), self.folders)
            start(thread)

        def traced_create(sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            create(sock, *args, **kwargs)
            self._note_socket(sock, _caller())

        def put_back() -> None:
            # What the app has put around ours, as tracers of requests do, stays; ours notes in vain then.
            if thread_class.start is traced_start:
                thread_class.start = start  # type: ignore[method-assign]
            if socket_class.__init__ is traced_create:
                socket_class.__init__ = create  # type: ignore[method-assign]

        # Put back in a while; there is no hook for either that can be taken off again.
        thread_class.start = traced_start  # type: ignore[method-assign, assignment]
        socket_class.__init__ = traced_create  # type: ignore[method-assign, assignment]
        self._ends.callback(put_back)
        self._ends.enter_context(_listening_to_sqlalchemy(self._on_connect, self._on_close))

    def end(self) -> None:
        """Trace no more. Doing it again changes nothing."""
        self._ends.close()

    def pass_over(self, fds: Iterable[int]) -> None:
        """Take sockets for ours, which are meant for the workers."""
        self._ours.update(os.fstat(fd).st_ino for fd in fds)

    def news(self) -> tuple[Finding, ...]:
        """Tell what is there now, less what was told before."""
        found = tuple(finding for finding in self.findings() if finding not in self._told)
        self._told.update(found)
        return found

    def findings(self) -> tuple[Finding, ...]:
        """Tell what is there now, in a stable order."""
        looks = (self._find_threads, self._find_sockets, self._find_connections, self._find_objects)
        return tuple(sorted({finding for look in looks for finding in look()}))

    def maker(self, thread: threading.Thread) -> str:
        """Name who made a thread."""
        maker = self._threads.get(thread) or _runs(thread)
        hints = (hint for package, hint in self.hints.items() if _is_within(maker, package))
        hint = next(hints, "") if maker.endswith(f"({BEFORE})") else ""
        return f"{maker}; {hint}" if hint else maker

    def _note_socket(self, sock: socket.socket, frame: FrameType) -> None:
        with contextlib.suppress(OSError):
            inode = os.fstat(sock.fileno()).st_ino
            if inode not in self._sockets:  # later objects for the same socket are duplicates
                self._sockets[inode] = name_maker(frame, self.folders)
                if _is_of_a_loop(frame):
                    self._of_loops.add(inode)

    def _on_connect(self, connection: Any, record: Any) -> None:
        try:
            alive = ref(connection)
        except TypeError:  # sqlite3's, for one; the pool's record lives as long
            alive = ref(record)
        maker = name_maker(_caller(), self.folders)
        self._connections[id(connection)] = (alive, type(connection).__module__, maker)

    def _on_close(self, connection: Any, _record: Any) -> None:
        self._connections.pop(id(connection), None)

    def _find_threads(self) -> Iterator[Finding]:
        known = set()
        for thread in threading.enumerate():
            known.add(thread.native_id)
            if thread is not threading.main_thread():
                maker = self.maker(thread)
                yield Finding(kind=_kind("thread", maker), what=repr(thread.name), made_by=maker)
        with contextlib.suppress(OSError):
            for task in Path("/proc/self/task").iterdir():
                if int(task.name) not in known:
                    name = (task / "comm").read_text().strip()
                    yield Finding(kind="native thread", what=repr(name), made_by=UNKNOWN)

    def _find_sockets(self) -> Iterator[Finding]:
        for inode, fd in descriptors.socket_inodes().items():
            if inode not in self._ours and not descriptors.sends_datagrams(fd):
                maker = self._sockets.get(inode, UNKNOWN)
                what = "of an event loop" if inode in self._of_loops else descriptors.describe(fd)
                yield Finding(kind=_kind("socket", maker), what=what, made_by=maker)

    def _find_connections(self) -> Iterator[Finding]:
        if self._connections:
            gc.collect()  # those in cycles are gone then; not done for nothing, it takes half a second
        for connection, driver, maker in tuple(self._connections.values()):
            if connection() is not None:
                yield Finding(kind="database connection", what=f"of {driver}", made_by=maker)

    def _find_objects(self) -> Iterator[Finding]:
        """Look through all there is, for what has no list of its own."""
        sqlite: Any = sys.modules.get("sqlite3")
        kept = getattr(sqlite, "Connection", _Nothing)
        for item in gc.get_objects():
            # Not isinstance(): it asks proxies for their class, which runs foreign code.
            if issubclass(type(item), asyncio.AbstractEventLoop) and _is_running(item):
                yield Finding(kind="event loop", what="that runs", made_by=self._runner(item))
            elif issubclass(type(item), kept) and id(item) not in self._connections and _is_open(item):
                yield Finding(kind="database connection", what=f"of {kept.__module__}", made_by=_keeper(item))

    def _runner(self, loop: asyncio.AbstractEventLoop) -> str:
        """Name the code that started the thread in which an event loop runs."""
        threads = {thread.ident: thread for thread in threading.enumerate()}
        for ident, innermost in sys._current_frames().items():  # noqa: SLF001  # public in all but name
            thread = threads.get(ident)
            if thread is None or thread is threading.current_thread():
                continue
            frame: FrameType | None = innermost
            while frame is not None:
                if any(_runs_on(value, loop) for value in frame.f_locals.values()):
                    return self.maker(thread)
                frame = frame.f_back
        return UNKNOWN


class _Nothing:
    """The class of no object."""


def _runs_on(value: object, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a thread that has this value in a frame runs this event loop: uvloop's have no frames."""
    if value is loop:
        return True
    if issubclass(type(value), asyncio.Task):
        return bool(value.get_loop() is loop)  # type: ignore[attr-defined]  # as above
    target = getattr(value, "_target", None) if issubclass(type(value), threading.Thread) else None
    return getattr(target, "__self__", None) is loop


def _is_open(connection: Any) -> bool:
    with contextlib.suppress(Exception):  # closed
        return bool(connection.total_changes >= 0)
    return False


def _keeper(item: object) -> str:
    """Name the module that keeps an object, where nobody saw who made it."""
    for holder in gc.get_referrers(item):
        if type(holder) is dict and isinstance(holder.get("__name__"), str) and "__spec__" in holder:
            return f"{holder['__name__']} (which keeps it)"
    return f"unknown (kept by {name_holders(item)})"


def check(findings: tuple[Finding, ...]) -> None:
    """
    Refuse to fork with any of these.

    :raises ForkSafetyError: that names them all.
    """
    if findings:
        raise ForkSafetyError(
            f"not safe to fork (fork_safety = strict): {'; '.join(map(str, findings))}. Make these when a "
            "worker starts, in the app's lifespan or the hook post_fork, or turn preload_app off"
        )


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    with contextlib.suppress(Exception):  # a class of somebody's, which may not be whole
        return loop.is_running()
    return False


def _runs(thread: threading.Thread) -> str:
    """Name what a thread runs, where nobody saw who made it."""
    target = getattr(thread, "_target", None) or type(thread)
    module = getattr(target, "__module__", None) or "?"
    return UNKNOWN if module.partition(".")[0] in sys.stdlib_module_names else f"{module} ({BEFORE})"


def _kind(kind: str, maker: str) -> str:
    return f"exporter's {kind}" if any(_is_within(maker, package) for package in _EXPORTERS) else kind


def _is_within(maker: str, package: str) -> bool:
    """Whether a maker's module is a package's, by whole words."""
    return f"{maker.partition(' ')[0]}.".startswith(f"{package}.")


def _caller() -> FrameType:
    """The frame that called the function that asks."""
    return sys._getframe(2)  # noqa: SLF001  # public in all but name


def _is_of_a_loop(frame: FrameType | None) -> bool:
    """Whether a socket is made for an event loop of asyncio's, which wakes itself by it."""
    for _ in range(_SELF_PIPE_DEPTH):
        if frame is None:
            return False
        if frame.f_code.co_name == "_make_self_pipe":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _listening_to_sqlalchemy(
    on_connect: Callable[[Any, Any], None], on_close: Callable[[Any, Any], None]
) -> Iterator[None]:
    """Hear of the connections of all its pools, from the moment when there is such a thing as a pool."""
    pools: list[Any] = []

    def listen() -> None:
        from sqlalchemy import event
        from sqlalchemy.pool import Pool

        event.listen(Pool, "connect", on_connect)
        event.listen(Pool, "close", on_close)
        pools.append(Pool)

    awaited = Awaited("sqlalchemy", listen)
    if "sqlalchemy" in sys.modules:
        listen()
    else:
        awaited.begin()
    try:
        yield
    finally:
        awaited.end()
        for pool in pools:
            from sqlalchemy import event

            event.remove(pool, "connect", on_connect)
            event.remove(pool, "close", on_close)
