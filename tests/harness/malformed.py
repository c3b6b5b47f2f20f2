"""Requests that are wrong in as many ways as a seed can think of."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """
    What one client sends.

    :param parts: sent one after the other, each on its own.
    :param leaves: how: it waits for what is said (``waits``), or is gone at once (``closes``, ``resets``).
    """

    parts: tuple[bytes, ...]
    leaves: str


def malformed(seed: int, count: int) -> Iterator[Malformed]:
    """Make so many, the same ones for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        maker = _Maker(chance, wrong=chance.choice((0.02, 0.1, 0.3)))
        data = b"".join(maker.request() for _ in range(chance.choice((1, 1, 1, 2, 5))))
        for _ in range(chance.choice((0, 0, 0, 0, 1, 3))):
            data = _damaged(data, chance)
        yield Malformed(
            parts=_cut(data, chance), leaves=chance.choice(("waits", "waits", "closes", "resets"))
        )


def send(port: int, request: Malformed, tls: ssl.SSLContext | None = None) -> None:
    """
    Send one, and read what comes, if it waits for that.

    :raises TimeoutError: when the server neither answers nor closes.
    """
    try:
        _send(port, request, tls)
    except TimeoutError:
        raise
    except OSError:
        pass  # closed, reset, no handshake: whatever the server does is well, but to say nothing for ever


def _send(port: int, request: Malformed, tls: ssl.SSLContext | None) -> None:
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock, server_hostname="localhost"))
        for part in request.parts:
            sock.sendall(part)
        if request.leaves == "waits":
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        elif request.leaves == "resets":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


_METHODS = (b"get", b"PRI", b"CONNECT", b"", b"G\x00T", b"X" * 9000)
_TARGETS = (
    b"*", b"", b"//", b"/%", b"/%00", b"/%ff%fe", b"/\xff", b"/ /", b"/\x00", b"/#x", b"localhost:1",
    b"http://other/", b"http://[::1", b"/../" * 200, b"/?" + b"a=&" * 3000,
)  # fmt: skip
_VERSIONS = (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1.1", b"ICY", b"")
_HEADERS = (
    b"Host: localhost",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Connection: keep-alive",
)
_NAMES = (
    b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Sec-WebSocket-Key", b"Expect",
    b"Sec-WebSocket-Version", b"X-Request-ID", b"X", b"Cookie", b"", b"A B", b"X\x00", b"\xff", b" Folded",
)  # fmt: skip
_VALUES = (
    b"0", b"-1", b"99999999999999999999", b"5, 6", b"0x5", b"13", b"dGhlIHNhbXBsZSBub25jZQ==",
    b"chunked, chunked", b"gzip, chunked", b"100-continue", b"close", b"Upgrade", b"websocket", b"h2c",
    b"", b"\t\t", b"\x00", b"\xff\xfe", b"a\r\nSet-Cookie: b", b"y" * 70_000,
)  # fmt: skip
_BODIES = (b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"")
_SIZES = (b"5;ext=1", b"-5", b"0x5", b"FFFFFFFFFFFFFFFFFF", b"", b"g", b"5" * 500)


class _Maker:
    """
    Makes requests in which this and that is wrong.

    :param wrong: how often, from 0 to 1: where all is, nothing gets past the first line.
    """

    def __init__(self, chance: random.Random, *, wrong: float) -> None:
        self._chance = chance
        self._wrong = wrong

    def request(self) -> bytes:
        method = self._pick((b"GET", b"POST"), _METHODS)
        target = self._pick((b"/", b"/body"), _TARGETS)
        line = b" ".join((method, target, self._pick((b"HTTP/1.1",), _VERSIONS)))
        headers = [self._header() for _ in range(self._pick((1, 2, 4), (0, 50)))]
        newline = self._pick((b"\r\n",), (b"\n", b"\r"))
        return newline.join((line, *headers, b"", b"")) + self._body()

    def _header(self) -> bytes:
        wrong = (
            self._chance.choice(_NAMES) + self._pick((b": ",), (b" : ", b"")) + self._chance.choice(_VALUES)
        )
        return self._pick(_HEADERS, (wrong,))

    def _body(self) -> bytes:
        end = self._chance.choice((b"\r\n", b"\n", b"", b"too long"))
        wrong = self._chance.choice(_SIZES) + b"\r\nhello" + end + b"0\r\nTrailer\r\n\r\n"
        return self._pick(_BODIES, (b"hell", b"hello and more", wrong))

    def _pick(self, right: Sequence[T], wrong: Sequence[T]) -> T:
        return self._chance.choice(wrong if self._chance.random() < self._wrong else right)


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """Turn a byte over, lose some, double some, or put noise among them."""
    at = chance.randrange(len(data) + 1)
    some = data[at : at + chance.choice((1, 2, 20))]
    noise = chance.choice((chance.randbytes(chance.choice((1, 3, 50))), b"\x00", some + some, b""))
    return data[:at] + noise + data[at + len(some) :]


def _cut(data: bytes, chance: random.Random) -> tuple[bytes, ...]:
    """Send all, or less, in one or some parts."""
    data = data[: chance.choice((len(data), len(data), chance.randrange(len(data) + 1)))]
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 1, 4))))
    ends = [*cuts, len(data)]
    return tuple(data[a:b] for a, b in zip([0, *cuts], ends, strict=True))
