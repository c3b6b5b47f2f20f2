"""
The load: clients that ask without pause, and count how every single request ended.

A process of its own, so that it shares no interpreter with the ruler: ``python -m bench.load PORT``. It runs
until its standard input is closed, and then prints the counts as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

KEEP_ALIVE_CLIENTS = 8
FRESH_CLIENTS = 8
TIMEOUT_S = 10.0
AFTER_FAILURE_S = 0.01
"""Pause after a failure, without which one dead moment would be counted thousands of times."""

OK = "ok"
_REQUEST = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{connection}\r\n"


class Client(threading.Thread):
    """
    One client; a request that fails is counted and never repeated.

    :param keep_alive: reuse the connection until the server announces its end, or connect for each request.
    """

    def __init__(self, port: int, stop: threading.Event, *, keep_alive: bool) -> None:
        super().__init__()
        self.outcomes: Counter[str] = Counter()
        self._port = port
        self._stop_asked = stop
        self._keep_alive = keep_alive
        self._request = _REQUEST.format(connection="" if keep_alive else "Connection: close\r\n").encode()
        self._connection: socket.socket | None = None

    def run(self) -> None:
        while not self._stop_asked.is_set():
            outcome = self._ask()
            self.outcomes[outcome] += 1
            if outcome != OK:
                self._hang_up()
                self._stop_asked.wait(AFTER_FAILURE_S)
        self._hang_up()

    def _ask(self) -> str:
        """Put one request, and say how it ended."""
        try:
            if self._connection is None:
                self._connection = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S)
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.sendall(self._request)
            head, body = _answer(self._connection)
        except OSError as error:
            return kind_of(error)
        status = head[9:12].decode("ascii", "replace")
        if status != "200" or body != b"ok":
            return f"status {status}"
        if not self._keep_alive or b"connection: close" in head:
            self._hang_up()
        return OK

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _ClosedError(OSError):
    """The server closed before its answer was whole."""


def _answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """
    Read one answer.

    :return: its head, in lower case, and its body.
    """
    data = _receive(connection)
    while b"\r\n\r\n" not in data:
        data += _receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    head = head.lower()
    _, _, after = head.partition(b"content-length:")
    length = int(after.split(b"\r\n", 1)[0]) if after else 0
    while len(body) < length:
        body += _receive(connection)
    return head, body


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(4096)
    if not data:
        raise _ClosedError
    return data


def kind_of(error: Exception) -> str:
    """Name the way in which a request failed."""
    if isinstance(error, (_ClosedError, EOFError)):
        return "closed without answer"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "reset"
    if isinstance(error, TimeoutError):
        return "timeout"
    return errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)


class Load:
    """
    The load on one server, as a context manager; the counts are there after it.

    :param port: of 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.outcomes: dict[str, int] = {}
        self._port = port

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load", str(self._port)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            written, _nothing = self._process.communicate(timeout=TIMEOUT_S + 5)
            self.outcomes = json.loads(written)
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()


def main() -> None:
    stop = threading.Event()
    port = int(sys.argv[1])
    clients = [Client(port, stop, keep_alive=True) for _ in range(KEEP_ALIVE_CLIENTS)]
    clients += [Client(port, stop, keep_alive=False) for _ in range(FRESH_CLIENTS)]
    for client in clients:
        client.start()
    sys.stdin.read()
    stop.set()
    for client in clients:
        client.join()
    print(json.dumps(sum((client.outcomes for client in clients), Counter())))


if __name__ == "__main__":
    main()
