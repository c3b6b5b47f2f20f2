"""
The way a worker stops serving without losing a request.

Owns the second half of a worker's life: from the signal to leave until the last connection is closed. A
subclass of uvicorn's server; which worker it is, and what the master thinks of it, is none of its business.

Two steps. First it stops accepting, answers what still comes on open connections with ``Connection: close``,
and leaves idle keep-alive connections open for a grace, because a request may be on its way on any of them.
Then it closes those, and waits for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import select
import signal
import socket
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import Any

from uvicorn.config import Config
from uvicorn.server import Server

from airflow_arbiter.stacks import HeldRequest
from airflow_arbiter.tracking import held_requests, holds_request

TICK_S = 1.0
"""How often an idle server refreshes its Date header."""

LOOK_S = 0.02
"""How often a draining server looks at its connections."""

IDLE_GRACE_S = 2.0
"""How long a connection must have been idle, drain included, before it is closed on the client."""

HANDSHAKE_S = 5.0
"""How long a drain waits for TLS handshakes that began before it."""

CLOSE_S = 1.0
"""What a TLS client gets to answer our goodbye; pooled clients, who do not read, never do."""

QUICK_LIFESPAN_S = 1.0
"""What the app's lifespan gets to shut down in a quick stop."""

EXIT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

_CLOSE = (b"connection", b"close")

_logger = logging.getLogger("uvicorn.error")


class DrainingServer(Server):
    """
    A uvicorn server that leaves in two steps.

    :param config: uvicorn's configuration, loaded.
    :param drain_limit_s: seconds after which requests that are still running are cancelled.
    :param on_listening: called once the sockets take connections.
    :param on_draining: called when the drain begins.
    """

    def __init__(
        self,
        config: Config,
        *,
        drain_limit_s: float,
        on_listening: Callable[[], None],
        on_draining: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.servers: list[asyncio.base_events.Server] = []
        self._drain_limit_s = drain_limit_s
        self._on_listening = on_listening
        self._on_draining = on_draining
        self._has_booted = False
        self._must_leave = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving = asyncio.Event()
        self._idle_since: dict[Any, float] = {}
        self._closing_since: dict[Any, float] = {}
        self._broken: set[Any] = set()
        self._accepted: weakref.WeakSet[Any] = weakref.WeakSet()
        if config.ssl is not None:
            config.http_protocol_class = _noting(config.http_protocol_class, self._accepted)

    @property
    def requests(self) -> int:
        """Requests answered since birth."""
        return self.server_state.total_requests

    @property
    def in_flight(self) -> int:
        """Requests, and WebSockets, that are being served now."""
        return len(self.server_state.tasks)

    def held_requests(self) -> list[HeldRequest]:
        """The requests that are not answered yet, and the WebSockets that are open."""
        return held_requests(self.server_state.connections, time.monotonic())

    # -- until the drain -------------------------------------------------------------------------------------

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self.started:
            self._on_listening()

    def end_boot(self) -> None:
        """
        Mark the moment from which being asked to leave means to drain: just before the sockets are attached.

        :raises SystemExit: when it was asked before, and the app's startup has swallowed that.
        """
        self._has_booted = True
        for sig in EXIT_SIGNALS:
            # Once more: the app's startup may have set handlers of its own, which would leave us undrained.
            if self._loop is not None:
                self._loop.remove_signal_handler(sig)
            signal.signal(sig, self.handle_exit)
        if self._must_leave:
            raise SystemExit(0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # Not super(): uvicorn keeps the signal and raises it again at the end, as if we had died by it. Nor
        # should_exit: older versions that find it set after the startup skip the shutdown.
        self._must_leave = True
        self.force_exit = self.force_exit or sig == signal.SIGQUIT
        if not self._has_booted:
            # Nobody has been served yet, so there is nothing to drain. Raised in whatever runs now, a
            # lifespan startup that hangs included; end_boot() answers for code that swallows it.
            raise SystemExit(0)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._leaving.set)

    async def main_loop(self) -> None:
        # uvicorn looks ten times a second; a server that is woken need not, leaves sooner and idles cheaper.
        while not self._must_leave:
            await self._refresh_headers()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), TICK_S)

    # -- the drain -------------------------------------------------------------------------------------------

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        self._on_draining()
        await self._stop_accepting()
        if not self.force_exit:
            self.config.encoded_headers = [*self.config.encoded_headers, _CLOSE]
            drain = asyncio.ensure_future(self._drain())
            await asyncio.wait({drain}, timeout=self._drain_limit_s)
            if not drain.done():
                drain.cancel()
                await self._cut()
        # In a quick stop too, but briefly: an app that is never told to shut down ends with a traceback.
        limit_s = QUICK_LIFESPAN_S if self.force_exit else None
        await asyncio.wait({asyncio.ensure_future(self.lifespan.shutdown())}, timeout=limit_s)

    async def _stop_accepting(self) -> None:
        """Take no new connection, and lose none that was taken already."""
        if isinstance(self._loop, asyncio.SelectorEventLoop):
            # asyncio hands an accepted connection to its server in callbacks that follow, and a server that
            # was closed meanwhile drops it. uvloop does so at once, and its sockets have no reader.
            for server in self.servers:
                for sock in server.sockets:
                    self._loop.remove_reader(sock.fileno())
            for _ in range(3):
                await asyncio.sleep(0)
        for server in self.servers:
            # Closes the socket too; closing it again could hit a descriptor that is another's by then.
            server.close()

    async def _refresh_headers(self) -> None:
        """Let uvicorn renew the headers of every answer."""
        await self.on_tick(0)  # it renews them at every tenth count, 0 included

    async def _drain(self) -> None:
        """Return when the last connection and the last task are gone."""
        began_at = time.monotonic()
        refreshed_at = -TICK_S
        looks = 0
        while not self.force_exit:
            now = time.monotonic()
            if now - refreshed_at >= TICK_S:
                await self._refresh_headers()
                refreshed_at = now
                if self._accepted:
                    # Handshakes that have failed are garbage in circles, and not to be waited for.
                    gc.collect(1)
            for connection in list(self.server_state.connections):
                try:
                    self._ease_out(connection, now)
                except Exception:
                    # One connection, or a protocol that we do not know, must not cut the others.
                    if connection not in self._broken:
                        self._broken.add(connection)
                        _logger.exception("Exception while draining a connection")
            is_shaking_hands = self._accepted and now - began_at < HANDSHAKE_S
            is_quiet = not (self.server_state.connections or self.server_state.tasks or is_shaking_hands)
            # Twice: a callback that registers a connection may be due between two looks.
            looks = looks + 1 if is_quiet else 0
            if looks > 1:
                return
            await asyncio.sleep(LOOK_S)

    def _ease_out(self, connection: Any, now: float) -> None:
        """
        Bring one connection nearer to its end without losing what is on it.

        :param connection: one of uvicorn's protocols. HTTP ones have a ``cycle``, the request being answered
            or answered last; WebSocket ones have not. Their ``shutdown()`` closes an idle connection, and a
            WebSocket with 1012.
        """
        if connection.transport.is_closing():
            self._see_closed(connection, now)
        elif not hasattr(connection, "cycle"):
            if _has_shaken_hands(connection) and connection not in self._closing_since:
                self._closing_since[connection] = now
                connection.shutdown()
        elif holds_request(connection):
            self._idle_since.pop(connection, None)
            cycle = connection.cycle
            if not cycle.response_started and _CLOSE not in cycle.default_headers:
                # Not connection.shutdown(): older versions of uvicorn then close without telling the client.
                cycle.default_headers = [*cycle.default_headers, _CLOSE]
            # An answer that has begun has promised keep-alive: after it, it gets an idle connection's grace.
        else:
            idle_since = self._idle_since.setdefault(connection, now)
            grace_s = min(IDLE_GRACE_S, self._drain_limit_s / 2)
            if now - idle_since >= grace_s and not _has_input(connection.transport):
                connection.shutdown()

    def _see_closed(self, connection: Any, now: float) -> None:
        """End a TLS connection whose client does not say goodbye, once all that we had to say is sent."""
        closing_since = self._closing_since.setdefault(connection, now)
        transport = connection.transport
        is_tls = transport.get_extra_info("ssl_object") is not None
        if is_tls and now - closing_since >= CLOSE_S and not transport.get_write_buffer_size():
            transport.abort()

    async def _cut(self) -> None:
        """
        Cancel what is left, and close its connections.

        One whose request ignores that stays open: the master will ask what it is, and end the process.
        """
        tasks = list(self.server_state.tasks)
        _logger.error(
            "Cut %d request(s) and %d connection(s) that were left %.1f s after the drain began",
            len(tasks),
            len(self.server_state.connections),
            self._drain_limit_s,
            extra={"requests": [asdict(request) for request in self.held_requests()]},
        )
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LOOK_S)
        for connection in list(self.server_state.connections):
            if not holds_request(connection):
                connection.transport.close()


def _noting(protocol_class: Any, accepted: weakref.WeakSet[Any]) -> Any:
    """
    Note the connections that are accepted and not registered yet, as during a TLS handshake.

    :param protocol_class: uvicorn's HTTP protocol; it registers a connection in ``connection_made``.
    """

    class NotingProtocol(protocol_class):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            accepted.add(self)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.discard(self)
            super().connection_made(transport)

    return NotingProtocol


def _has_shaken_hands(connection: Any) -> bool:
    """Whether a WebSocket is open; uvicorn answers 500 when it closes one that is not."""
    event = getattr(connection, "handshake_completed_event", None)
    if event is not None:
        return bool(event.is_set())
    return bool(getattr(connection, "handshake_complete", True))


def _has_input(transport: asyncio.Transport) -> bool:
    """Whether bytes have arrived that the loop has not read: closing now would answer them with a reset."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return bool(poller.poll(0))
