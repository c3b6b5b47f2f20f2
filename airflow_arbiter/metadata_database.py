"""
Airflow's connections to its metadata database, around a fork and an event loop.

Owns whose they are: a process has only those that it has made itself, and an event loop takes its own along.
Outside :mod:`airflow_arbiter.api_server` nobody needs it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from typing import Any
from weakref import WeakSet

import anyio.to_thread
from airflow import settings
from sqlalchemy import event
from sqlalchemy.orm import session as orm_session
from sqlalchemy.pool import Pool, QueuePool


def release_connections() -> None:
    """
    Close this process's idle connections to the metadata database, before it forks.

    Airflow lets a child forget its parent's pool, but the child has the sockets open all the same, and the
    main thread's session, with the connection that it has in use, is there for whoever asks for one.
    """
    if settings.Session is not None:
        settings.Session.remove()
    if settings.engine is not None:
        settings.engine.dispose()
    if settings.async_engine is not None:
        pool = settings.async_engine.sync_engine.pool
        was_used = isinstance(pool, QueuePool) and pool.checkedin() > 0
        settings.async_engine.sync_engine.dispose(close=False)
        if was_used:
            # They belong to event loops that are over, which is where they would have to be closed. What
            # closes them is their end as objects, and they are part of cycles.
            del pool
            gc.collect()


_connections: WeakSet[Any] = WeakSet()
"""Connections to databases that this process has, or had when it was forked."""


@event.listens_for(Pool, "connect")
def _note_connection(connection: Any, _record: Any) -> None:
    with contextlib.suppress(TypeError):  # sqlite3's cannot be; nobody is at their other end
        _connections.add(connection)


def forget_inherited() -> None:
    """
    Forget, in a process that was just forked, what threads of its parent have to do with databases.

    Whatever finishes a session of theirs, as Airflow does with all when a worker leaves, would say so on the
    parent's socket, in the middle of its transaction. So they are taken out of SQLAlchemy's list, and each
    socket is exchanged for one that nobody is at the other end of.
    """
    getattr(orm_session, "_sessions", {}).clear()
    here, there = socket.socketpair()
    there.close()
    with here:
        for connection in tuple(_connections):
            with contextlib.suppress(Exception):  # closed, or of a driver that does not tell
                os.dup2(here.fileno(), connection.fileno(), inheritable=False)
    _connections.clear()


async def connect() -> None:
    """
    Open the first asynchronous connection to the metadata database, which stays in its pool.

    :raises Exception: when the database is away.
    """
    if settings.async_engine is not None:
        async with settings.async_engine.connect():
            pass


async def connect_in_thread() -> None:
    """
    Open the first synchronous connection, as an endpoint does: in one of the threads that wait for such.

    Cancelled, it leaves the thread behind that waits for the database: not for a process that forks.

    :raises Exception: as :func:`connect`.
    """

    def open_one() -> None:
        with settings.engine.connect():
            pass

    if settings.engine is not None:
        # Its threads are daemons, unlike those of an event loop: they keep no worker from leaving.
        await anyio.to_thread.run_sync(open_one, abandon_on_cancel=True)


async def dispose_async_orm() -> None:
    """Close the connections to the metadata database that belong to this event loop."""
    if settings.async_engine is not None:
        await settings.async_engine.dispose()


def dispose_orm() -> None:
    """Close this process's pooled connections to the metadata database, for good."""
    settings.dispose_orm(do_log=False)
