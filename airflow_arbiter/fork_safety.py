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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from airflow_arbiter.errors import ForkSafetyError

MODES = ("warn", "strict", "off")

BEFORE = "it was there before the app was loaded"
UNKNOWN = f"unknown: {BEFORE}, or an extension module made it"

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

_PACKAGE = __package__ or "airflow_arbiter"


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
    """

    def __init__(self) -> None:
        self._threads: WeakKeyDictionary[threading.Thread, str] = WeakKeyDictionary()
        self._sockets: dict[int, str] = {}
        self._told: set[Finding] = set()
        self._ends = contextlib.ExitStack()
        self._connections: dict[int, tuple[ReferenceType[Any], str, str]] = {}
        self._ours = {inode for inode, fd in _socket_inodes().items() if _is_meant_for_children(fd)}

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
            self._threads[thread] = _maker(_caller())
            start(thread)

        def traced_create(sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            create(sock, *args, **kwargs)
            with contextlib.suppress(OSError):
                # The first: later objects for the same socket are duplicates.
                self._sockets.setdefault(os.fstat(sock.fileno()).st_ino, _maker(_caller()))

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
        found = {*self._find_threads(), *self._find_sockets(), *self._find_connections(), *self._find_loops()}
        return tuple(sorted(found))

    def maker(self, thread: threading.Thread) -> str:
        """Name who made a thread."""
        return self._threads.get(thread) or _runs(thread)

    def _on_connect(self, connection: Any, record: Any) -> None:
        try:
            alive = ref(connection)
        except TypeError:  # sqlite3's, for one; the pool's record lives as long
            alive = ref(record)
        self._connections[id(connection)] = (alive, type(connection).__module__, _maker(_caller()))

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
        for inode, fd in _socket_inodes().items():
            if inode not in self._ours and not _sends_datagrams(fd):
                maker = self._sockets.get(inode, UNKNOWN)
                yield Finding(kind=_kind("socket", maker), what=_describe(fd), made_by=maker)

    def _find_connections(self) -> Iterator[Finding]:
        if self._connections:
            gc.collect()  # those in cycles are gone then; not done for nothing, it takes half a second
        for connection, driver, maker in tuple(self._connections.values()):
            if connection() is not None:
                yield Finding(kind="database connection", what=f"of {driver}", made_by=maker)

    def _find_loops(self) -> Iterator[Finding]:
        for item in gc.get_objects():
            # Not isinstance(): it asks proxies for their class, which runs foreign code.
            if issubclass(type(item), asyncio.AbstractEventLoop) and _is_running(item):
                yield Finding(kind="event loop", what="that runs", made_by=self._runner(item))

    def _runner(self, loop: asyncio.AbstractEventLoop) -> str:
        """Name the code that started the thread in which an event loop runs."""
        makers = {thread.ident: maker for thread, maker in self._threads.items()}
        for ident, innermost in sys._current_frames().items():  # noqa: SLF001  # public in all but name
            frame: FrameType | None = innermost
            while frame is not None:
                if any(value is loop for value in frame.f_locals.values()):
                    return makers.get(ident, UNKNOWN)
                frame = frame.f_back
        return UNKNOWN


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
    return f"exporter's {kind}" if maker.startswith(_EXPORTERS) else kind


def _caller() -> FrameType:
    """The frame that called the function that asks."""
    return sys._getframe(2)  # noqa: SLF001  # public in all but name


def _maker(frame: FrameType | None) -> str:
    """
    Name who is calling: the innermost code that is not Python's own, and the module that is being imported.
    """
    caller = importer = ""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "?"))
        package = module.partition(".")[0]
        if package == _PACKAGE:
            break  # from here on outwards, it is us who load the app
        if package not in sys.stdlib_module_names:
            place = f"{module} ({frame.f_code.co_filename}:{frame.f_lineno})"
            caller = caller or place
            if frame.f_code.co_name == "<module>":
                importer = place
                break
        frame = frame.f_back
    if not caller:
        return UNKNOWN
    return caller if importer in ("", caller) else f"{caller}, imported by {importer}"


@contextlib.contextmanager
def _listening_to_sqlalchemy(
    on_connect: Callable[[Any, Any], None], on_close: Callable[[Any, Any], None]
) -> Iterator[None]:
    """Hear of the connections of all its pools; only where it is imported already, as under Airflow."""
    if "sqlalchemy" not in sys.modules:
        yield
        return
    from sqlalchemy import event
    from sqlalchemy.pool import Pool

    event.listen(Pool, "connect", on_connect)
    event.listen(Pool, "close", on_close)
    try:
        yield
    finally:
        event.remove(Pool, "connect", on_connect)
        event.remove(Pool, "close", on_close)


def _socket_inodes() -> dict[int, int]:
    """The sockets that this process has open: descriptors by inode. Source: proc(5)."""
    inodes = {}
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    inodes[int(target[len("socket:[") : -1])] = int(entry.name)
    return inodes


def _is_meant_for_children(fd: int) -> bool:
    """
    Whether a socket was there before the app was: one to listen on, or one that came over an exec.

    What Python makes itself does not go over an exec (PEP 446), unless somebody wants it to.
    """
    with contextlib.suppress(OSError), _duplicate(fd) as sock:
        return os.get_inheritable(fd) or bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return False


def _sends_datagrams(fd: int) -> bool:
    with contextlib.suppress(OSError), _duplicate(fd) as sock:
        return sock.type == socket.SOCK_DGRAM
    return False


def _duplicate(fd: int) -> socket.socket:
    """
    A socket object for a descriptor, of its own.

    :raises OSError: when there is no such descriptor any more.
    """
    return socket.socket(fileno=os.dup(fd))


def _describe(fd: int) -> str:
    """Say where a socket goes to."""
    with contextlib.suppress(OSError), _duplicate(fd) as sock:
        family = (
            sock.family.name.removeprefix("AF_") if isinstance(sock.family, socket.AddressFamily) else "?"
        )
        with contextlib.suppress(OSError):
            return f"{family} connected to {_address(sock.getpeername())}"
        return f"{family} bound to {_address(sock.getsockname())}"
    return "unknown"


def _address(address: Any) -> str:
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return repr(address) if address else "nothing"
