"""
The control socket: where the master answers questions and takes commands.

Owns the socket's life, who may connect, and how much is done in a turn. Served by the master's own loop,
because no thread may live in a process that forks: nothing here waits, and what one turn does is bounded.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_arbiter import events
from airflow_arbiter.connection import Answer, Connection
from airflow_arbiter.meeting import Peer, SocketFile
from airflow_arbiter.place import Place, UnavailableError
from airflow_arbiter.wakeup import Wakeup

MOST_CONNECTIONS = 16
"""Whoever comes beyond that takes the place of who has been silent for longest."""

TURN_BUDGET_S = 0.02
"""Time in a turn after which no further request is answered; the next turn goes on at once."""

PATIENCE_S = 0.2
"""Silence before which nobody has to make room; who comes then waits in the kernel's queue."""

_ACCEPTS_PER_TURN = 8
_REST_S = 1.0
"""Pause after a connection that could not be taken, as where no descriptor is left."""

_REFUSALS_APART_S = 60.0
"""Refusals that come faster than that are not all told."""

_LOOK_S = 60.0
"""Pause between two looks whether clients can find us."""

_BACKLOG = 64


class Control:
    """
    The control socket of one master.

    :param answer: who answers.
    :ivar file: where clients find us; None where they do not.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._listener: socket.socket | None = None
        self._wakeup: Wakeup | None = None
        self._connections: list[Connection] = []
        self._rests_until = 0.0
        self._refused_at = -math.inf
        self._wanted: Place | None = None
        self._looks_at = 0.0
        self._told = ""
        self.file: SocketFile | None = None

    # -- its life
    # ---------------------------------------------------------------------------------------------------

    def open(self, path: str, *, is_airflow: bool, is_second: bool) -> None:
        """
        Listen, unless an earlier image of this process did already; where it cannot be, only tell.

        :param path: as the others, see :class:`airflow_arbiter.place.Place`.
        """
        self._wanted = Place(path=path, is_airflow=is_airflow, is_second=is_second)
        self._looks_at = time.monotonic() + _LOOK_S
        if self._listener is None:
            self._open(self._wanted)

    def _open(self, wanted: Place) -> None:
        because = ""
        try:
            listener, file = wanted.listen(backlog=_BACKLOG)
            self._close_listener()
            self._listener, self.file = listener, file
            if self._wakeup is not None:
                self.attach(self._wakeup)
            events.publish("control.listening", path=file.path)
        except UnavailableError as error:
            because = str(error)
        except Exception as error:
            # Whatever is wrong with the place, or with how it is named: the server serves without.
            because = f"{type(error).__name__}: {error}"
            self._close()
        if because and because != self._told:
            events.publish("control.unavailable", level="warning", because=because)
        self._told = because

    def _look(self) -> None:
        """
        See whether clients can find us, and listen anew where they cannot.

        Whoever cleans up a temporary folder takes sockets along, and a place may come to be had later.
        """
        if self._wanted is None or time.monotonic() < self._looks_at:
            return
        self._looks_at = time.monotonic() + _LOOK_S
        try:
            if self.file is not None:
                self.file = self.file.refresh()
                return
        except FileNotFoundError:
            pass
        except OSError:
            return  # it is there, or cannot be told
        self._open(self._wanted)

    def adopt(self, fd: int, told: Mapping[str, Any]) -> None:
        """
        Go on with the socket of an earlier image; what has connected meanwhile is waiting there.

        Where that cannot be, it is told, and a new one is opened like the first: workers depend on whoever
        calls this.

        :param fd: the descriptor.
        :param told: the file, as that image has written it down, perhaps in another version of this package.
        """
        try:
            self._listener = socket.socket(fileno=fd)
            self._listener.settimeout(0)
            self.file = SocketFile.read(told)
        except Exception:
            events.publish_exception("control.failed")
            self._close()

    @property
    def fd(self) -> int:
        """The descriptor of the listening socket; -1 where there is none."""
        return -1 if self._listener is None else self._listener.fileno()

    def attach(self, wakeup: Wakeup) -> None:
        """Wake the loop whenever there is something to do."""
        self._wakeup = wakeup
        if self._listener is not None:
            wakeup.watch(self.fd)

    def take_name(self, path: str) -> None:
        """Have the path that the operator wants, now that the predecessor is gone that had it."""
        if self._wanted is not None:
            self._wanted = replace(self._wanted, is_second=False)
        if path and self.file is not None:
            try:
                self.file = self.file.rename(Path(path).absolute())
            except OSError as error:
                events.publish("control.unavailable", level="warning", because=f"{path}: {error}")

    def close(self) -> None:
        """End it for good, and remove the file, if it is still ours."""
        self._wanted = None
        self._close()

    def _close(self) -> None:
        for connection in tuple(self._connections):
            self._drop(connection)
        self._close_listener()
        if self.file is not None:
            self.file.remove()
            self.file = None

    def _close_listener(self) -> None:
        self._rests_until = 0.0
        if self._listener is not None:
            self._forget(self._listener)
            self._listener.close()
            self._listener = None

    def abandon(self) -> None:
        """
        Close, in a child, what is the master's alone: a client would not see the master close it.

        The loop's selector is shared with the master, and must not hear of it.
        """
        for connection in self._connections:
            connection.sock.close()
        self._connections = []
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._wanted = self.file = None

    # -- a turn
    # ---------------------------------------------------------------------------------------------------

    @property
    def wake_in_s(self) -> float:
        """Seconds until there is something to do, if nothing comes before."""
        moments = [connection.ends_at for connection in self._connections]
        if self._rests_until:
            moments.append(self._rests_until)
        return max(0.0, min(moments, default=math.inf) - time.monotonic())

    def turn(self) -> None:
        """Go one step on with everybody, as far as time allows. Never waits, and raises nothing."""
        try:
            self._turn()
        except Exception:
            # Nobody outside catches it: the server goes on without.
            events.publish_exception("control.failed")
            self._close()  # the next look opens it anew

    def _turn(self) -> None:
        self._look()
        if self._listener is None or self._wakeup is None:
            return
        began_at = time.monotonic()
        self._accept(self._listener, self._wakeup)
        for connection in sorted(self._connections, key=lambda known: known.served_at):
            now = time.monotonic()
            if now > connection.ends_at:
                self._drop(connection)
            elif now < began_at + TURN_BUDGET_S:
                self._go_on(connection, self._wakeup)

    def _go_on(self, connection: Connection, wakeup: Wakeup) -> None:
        try:
            connection.go_on(self._answer)
            if not connection.is_over:
                wakeup.watch(connection.sock.fileno(), to_write=bool(connection.unsent))
                return
        except OSError:
            pass  # it is gone
        except Exception:
            # An answer that we cannot give must not end the loop, nor be asked for again and again.
            events.publish_exception("control.failed")
        self._drop(connection)

    def _accept(self, listener: socket.socket, wakeup: Wakeup) -> None:
        if self._rests_until:
            if time.monotonic() < self._rests_until:
                return
            self._rests_until = 0.0
            wakeup.watch(listener.fileno())
        for _ in range(_ACCEPTS_PER_TURN):
            if len(self._connections) >= MOST_CONNECTIONS and not (
                _is_readable(listener) and self._make_room()
            ):
                return
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError:
                self._rest(_REST_S)  # no descriptor or memory is left
                return
            try:
                sock.settimeout(0)
                self._welcome(sock, wakeup)
            except OSError:
                sock.close()
            except BaseException:
                sock.close()
                raise

    def _make_room(self) -> bool:
        """Drop who has been silent for longest, unless that is not long yet."""
        silent = min(self._connections, key=lambda known: known.heard_at)
        left_s = silent.heard_at + PATIENCE_S - time.monotonic()
        if left_s > 0:
            self._rest(left_s)
            return False
        self._drop(silent)
        return True

    def _rest(self, pause_s: float) -> None:
        """Take no connection for a while: those that wait would wake us again and again."""
        self._rests_until = time.monotonic() + pause_s
        if self._listener is not None:
            self._forget(self._listener)

    def _welcome(self, sock: socket.socket, wakeup: Wakeup) -> None:
        """
        Take a connection, if it is of somebody who may ask.

        :raises OSError: when it is gone, or there is no memory for it.
        """
        peer = Peer.of(sock)
        if peer.may_ask:
            wakeup.watch(sock.fileno())
            self._connections.append(Connection(sock, peer))
            return
        sock.close()
        now = time.monotonic()
        if now > self._refused_at + _REFUSALS_APART_S:
            self._refused_at = now
            events.publish("control.refused", level="warning", peer_uid=peer.uid, peer_pid=peer.pid)

    def _drop(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._forget(connection.sock)
        connection.sock.close()

    def _forget(self, sock: socket.socket) -> None:
        if self._wakeup is not None:
            self._wakeup.forget(sock.fileno())


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
