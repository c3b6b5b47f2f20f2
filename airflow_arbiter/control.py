"""
The control socket: where the master answers questions and takes commands.

Owns the socket's life, who may connect, and how much is done in a turn. Served by the master's own loop,
because no thread may live in a process that forks: nothing here waits, and what one turn does is bounded.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_arbiter import events, meeting
from airflow_arbiter.connection import Answer, Connection
from airflow_arbiter.meeting import Peer, SocketFile
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
        self.file: SocketFile | None = None

    # -- its life
    # ---------------------------------------------------------------------------------------------------

    def open(self, path: str, *, is_airflow: bool, is_second: bool) -> None:
        """
        Listen, unless an earlier image of this process did already; where it cannot be, only tell.

        :param path: where the operator wants it; empty for a private folder.
        :param is_airflow: whether it is Airflow that is served.
        :param is_second: whether this master stands beside its predecessor, which has the path.
        """
        if self._listener is not None:
            return
        try:
            self._open(path, is_airflow=is_airflow, is_second=is_second)
        except Exception as error:
            # Whatever is wrong with the place, or with how it is named: the server serves without.
            self._give_up(f"{type(error).__name__}: {error}")

    def _open(self, path: str, *, is_airflow: bool, is_second: bool) -> None:
        if not hasattr(socket, "SO_PEERCRED"):
            self._give_up("this system does not tell who connects")
            return
        failures = []
        for place in _places(path, is_airflow=is_airflow, is_second=is_second):
            try:
                if path:
                    place.parent.mkdir(mode=0o700, exist_ok=True)
                else:
                    meeting.make_private(place.parent)
                    meeting.sweep(place.parent)
                self._listener, self.file = meeting.listen(place, backlog=_BACKLOG)
            except OSError as error:
                failures.append(f"{place}: {error.strerror or error}")
            else:
                if self._wakeup is not None:
                    self.attach(self._wakeup)
                events.publish("control.listening", path=str(place))
                return
        self._give_up("; ".join(failures))

    def _give_up(self, because: str) -> None:
        self.close()
        events.publish("control.unavailable", level="warning", because=because)

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
            self.close()

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
        if path and self.file is not None:
            try:
                if meeting.is_living(Path(path).absolute()):
                    raise FileExistsError(errno.EEXIST, "another server answers there", path)
                self.file = self.file.rename(Path(path).absolute())
            except OSError as error:
                events.publish("control.unavailable", level="warning", because=f"{path}: {error}")

    def close(self) -> None:
        """End it, and remove the file, if it is still ours."""
        for connection in tuple(self._connections):
            self._drop(connection)
        self._rests_until = 0.0
        if self._listener is not None:
            self._forget(self._listener)
            self._listener.close()
            self._listener = None
        if self.file is not None:
            self.file.remove()
            self.file = None

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
        self.file = None

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
            self.close()

    def _turn(self) -> None:
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


def _places(path: str, *, is_airflow: bool, is_second: bool) -> tuple[Path, ...]:
    """Tell where the socket may be, the best place first."""
    if path:
        return (Path(f"{path}.2" if is_second else path).absolute(),)
    own = meeting.name(os.getpid())
    return tuple(folder / own for folder in meeting.folders(is_airflow=is_airflow))


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
