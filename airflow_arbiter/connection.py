"""
One connection to the control socket: a client asks, is answered, asks again.

Owns gunicorn's framing, so that its ``gunicornc`` works, and the limits and deadlines of what goes through.
Never waits. What is answered is the business of whoever gives the answers.

Source: ``gunicorn.ctl.protocol`` for what goes over the wire.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

from gunicorn.ctl.protocol import ControlProtocol, make_error_response

from airflow_arbiter.meeting import Peer

LARGEST_REQUEST = 4096
LARGEST_ANSWER = 4 * 1024 * 1024
"""Bytes. A thousand workers take half a megabyte to tell."""

FIRST_S = 10.0
"""Time from a connection to its first request."""

REQUEST_S = 5.0
"""Time from a request's first byte to its last."""

ANSWER_S = 10.0
"""Time in which a client must take an answer."""

IDLE_S = 300.0
"""Time between two requests: somebody types them into ``gunicornc``. As gunicorn has it."""

_THROWN_AWAY = 65536
_PREFIX = struct.Struct(">I")


Answer = Callable[[Mapping[str, Any], Peer], Mapping[str, Any]]
"""Answers a request; what it raises ends the connection."""


class Connection:
    """
    One client: asks, is answered, asks again.

    Nothing is read beyond the request that is under way, so that what a client sends ahead stays its own
    affair, and nothing more is read before it has taken its answer.

    :ivar unsent: what it has not taken yet of its answer.
    :ivar heard_at: when it last sent something.
    :ivar served_at: when it last was looked after.
    :ivar ends_at: when it is dropped, if nothing happens before.
    :ivar is_over: whether nothing more is to come.
    """

    def __init__(self, sock: socket.socket, peer: Peer) -> None:
        self.sock = sock
        self._peer = peer
        self._received = b""
        self._is_last = False
        self.unsent: memoryview | bytes = b""
        self.heard_at = self.served_at = time.monotonic()
        self.ends_at = self.heard_at + FIRST_S
        self.is_over = False

    def go_on(self, answer: Answer) -> None:
        """
        Take the next step: read a request, or write an answer.

        :raises OSError: when it is gone.
        :raises Exception: whatever ``answer`` raises.
        """
        self.served_at = time.monotonic()
        if not self.unsent and (payload := self._read()) is not None:
            self._received = b""
            self.unsent = memoryview(self._answer(payload, answer))
            self.ends_at = time.monotonic() + ANSWER_S
        if self.unsent:
            self._write()

    def _read(self) -> bytes | None:
        """Read what there is of a request; its payload once it is whole."""
        try:
            while missing := self._missing():
                data = self.sock.recv(missing)
                if not data:
                    self.is_over = True
                    return None
                self.heard_at = time.monotonic()
                if not self._received:
                    self.ends_at = self.heard_at + REQUEST_S
                self._received += data
        except BlockingIOError:
            return None
        return self._received[_PREFIX.size :]

    def _missing(self) -> int:
        """How many bytes the request wants that is under way; a size beyond reason wants none."""
        if len(self._received) < _PREFIX.size:
            return _PREFIX.size - len(self._received)
        (length,) = _PREFIX.unpack_from(self._received)
        self._is_last = length > LARGEST_REQUEST
        return 0 if self._is_last else _PREFIX.size + length - len(self._received)

    def _answer(self, payload: bytes, answer: Answer) -> bytes:
        if self._is_last:
            with contextlib.suppress(OSError):
                self.sock.recv(_THROWN_AWAY)  # unread, it would keep the client from our answer
            return _refusal(f"the request is longer than {LARGEST_REQUEST} bytes")
        try:
            request = json.loads(payload)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            self._is_last = True  # who speaks another language would not understand the next answer either
            return _refusal("the request is no JSON object")
        encoded: bytes = ControlProtocol.encode_message(answer(request, self._peer))
        return encoded if len(encoded) <= LARGEST_ANSWER else _refusal("the answer is too long")

    def _write(self) -> None:
        try:
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            return
        self.is_over = self._is_last
        self.ends_at = time.monotonic() + IDLE_S


def _refusal(error: str) -> bytes:
    encoded: bytes = ControlProtocol.encode_message(make_error_response(0, error))
    return encoded
