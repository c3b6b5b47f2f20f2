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
import logging
import select
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from uvicorn.config import Config
from uvicorn.server import Server

TICK_S = 1.0
"""How often an idle server refreshes its Date header."""

LOOK_S = 0.02
"""How often a draining server looks at its connections."""

IDLE_GRACE_S = 2.0
"""How long a connection must have been idle, drain included, before it is closed on the client."""

QUICK_LIFESPAN_S = 1.0
"""What the app's lifespan gets to shut down in a quick stop."""

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

    @property
    def requests(self) -> int:
        """Requests answered since birth."""
        return self.server_state.total_requests

    @property
    def in_flight(self) -> int:
        """Requests, and WebSockets, that are being served now."""
        return len(self.server_state.tasks)

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
        if self._must_leave:
            raise SystemExit(0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # Not super(): uvicorn keeps the signal and raises it again at the end, so that a clean exit looks
        # like a death by SIGTERM and gunicorn's worker_exit never runs.
        # Nor should_exit: older versions of uvicorn that find it set after the startup skip the shutdown.
        self._must_leave = True
        self.force_exit = self.force_exit or sig == signal.SIGQUIT
        if not self._has_booted:
            # Nobody has been served yet, so there is nothing to drain. Raised in whatever runs now, a
            # lifespan startup that hangs included; end_boot() answers for code that swallows it.
            raise SystemExit(0)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._leaving.set)

    async def main_loop(self) -> None:
        # uvicorn looks ten times a second; a server that is woken need not, leaves sooner and idles cheaper.
        while not self._must_leave:
            await self._refresh_headers()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        self._on_draining()
        for server in self.servers:
            # Closes the socket too; closing it again could hit a descriptor that is another's by then.
            server.close()
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

    async def _refresh_headers(self) -> None:
        """Let uvicorn renew the headers of every answer."""
        await self.on_tick(0)  # it renews them at every tenth count, 0 included

    async def _drain(self) -> None:
        """Return when the last connection and the last task are gone."""
        closing = {asyncio.ensure_future(server.wait_closed()) for server in self.servers}
        refreshed_at = -TICK_S
        looks = 0
        while not self.force_exit:
            now = time.monotonic()
            if now - refreshed_at >= TICK_S:
                await self._refresh_headers()
                refreshed_at = now
            for connection in list(self.server_state.connections):
                self._ease_out(connection, now)
            # A connection can be accepted and not yet registered: a TLS handshake, or a callback that has not
            # run. wait_closed() knows of those where asyncio's server counts them, and the second look of the
            # rest.
            is_quiet = not self.server_state.connections and not self.server_state.tasks
            looks = looks + 1 if is_quiet else 0
            if looks > 1 and all(closed.done() for closed in closing):
                return
            await asyncio.sleep(LOOK_S)

    def _ease_out(self, connection: Any, now: float) -> None:
        """
        Bring one connection nearer to its end without losing what is on it.

        :param connection: one of uvicorn's protocols. HTTP ones have a ``cycle``, the request being answered
            or answered last; WebSocket ones have not. Their ``shutdown()`` closes an idle connection, makes
            the answer of a busy one end with ``Connection: close``, and closes a WebSocket with 1012.
        """
        if not hasattr(connection, "cycle"):
            if connection not in self._idle_since:
                self._idle_since[connection] = now
                connection.shutdown()
            return
        cycle = connection.cycle
        if cycle is not None and not cycle.response_complete:
            self._idle_since.pop(connection, None)
            if not cycle.response_started and _CLOSE not in cycle.default_headers:
                # Not connection.shutdown(): older versions of uvicorn then close without telling the client.
                cycle.default_headers = [*cycle.default_headers, _CLOSE]
            # An answer that has begun has promised keep-alive: it gets the grace of an idle connection after
            # it.
            return
        idle_since = self._idle_since.setdefault(connection, now)
        if now - idle_since >= min(IDLE_GRACE_S, self._drain_limit_s / 2) and not _has_input(
            connection.transport
        ):
            connection.shutdown()

    async def _cut(self) -> None:
        """Cancel what is left, and close its connections."""
        tasks = list(self.server_state.tasks)
        _logger.error(
            "Cut %d request(s) that were still running %.1f s after the drain began",
            len(tasks),
            self._drain_limit_s,
        )
        for task in tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.close()
        if tasks:
            await asyncio.wait(tasks, timeout=LOOK_S)


def _has_input(transport: asyncio.Transport) -> bool:
    """Whether bytes have arrived that the loop has not read: closing now would answer them with a reset."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return bool(poller.poll(0))
