"""
Busy clients that count every outcome by kind.

A client is strict: it never retries, and a kept connection that is closed under its next request is a
failure, unless the server had said ``Connection: close`` with the answer before.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter
from types import TracebackType

from harness.waiting import eventually

TIMEOUT_S = 30.0

CUT = {"reset", "broken pipe", "closed"}
"""The outcomes of a request inside a process that was killed."""


class ClosedError(Exception):
    """The server closed the connection before a whole answer."""


class Client:
    """
    One HTTP/1.1 client.

    :param keep_alive: keep the connection for the next request.
    :param tls: how to speak TLS, if it is to.
    :param headers: sent with each request.
    """

    def __init__(
        self,
        port: int,
        *,
        keep_alive: bool,
        timeout_s: float = TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._port = port
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._tls = tls
        self._keep_alive = keep_alive
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None
        self._rest = b""

    def get(self, path: str) -> tuple[int, bytes]:
        """
        Ask once.

        :return: status and body.
        :raises OSError: refused, reset, timed out.
        :raises ClosedError: closed without a whole answer.
        """
        if self._sock is None:
            self._sock = socket.create_connection(("127.0.0.1", self._port), timeout=self._timeout_s)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                self._sock = self._tls.wrap_socket(self._sock, server_hostname="localhost")
            self._rest = b""
        headers = self._headers if self._keep_alive else f"{self._headers}Connection: close\r\n"
        try:
            self._sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
            status, body, is_last = self._read()
        except BaseException:
            self.close()
            raise
        if is_last or not self._keep_alive:
            self.close()
        return status, body

    def ending(self) -> str:
        """Wait until the server ends the idle connection, and tell how."""
        assert self._sock is not None
        try:
            return "said something" if self._sock.recv(1) else "closed"
        except ConnectionResetError:
            return "reset"
        except TimeoutError:
            return "left open"

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _read(self) -> tuple[int, bytes, bool]:
        head = self._until(b"\r\n\r\n").decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size)
                self._exactly(2)
            self._exactly(2)
        else:
            body = self._exactly(int(headers.get("content-length", 0)))
        return status, body, headers.get("connection") == "close"

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(mark)
        return head

    def _exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._more()
        body, self._rest = self._rest[:size], self._rest[size:]
        return body

    def _more(self) -> None:
        assert self._sock is not None
        data = self._sock.recv(65536)
        if not data:
            raise ClosedError
        self._rest += data


class Load:
    """
    Clients that ask as fast as they are answered, half of them keeping their connection unless told not to.

    :param path: what they ask for; its answer is the worker's pid.
    :param clients: how many.
    :param pause_s: rest between two requests of a client, for a server that cannot take full speed.
    :param headers: sent with each request.
    """

    def __init__(
        self,
        port: int,
        *,
        path: str = "/",
        clients: int = 16,
        pause_s: float = 0.0,
        keep_alive: bool = True,
        tls: ssl.SSLContext | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.bodies: set[bytes] = set()
        self._port, self._path, self._pause_s = port, path, pause_s
        self._tls, self._headers = tls, headers
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(keep_alive and number % 2 == 0,), daemon=True)
            for number in range(clients)
        ]

    @property
    def answered(self) -> int:
        """How many requests were answered with 200 so far."""
        with self._lock:
            return self.outcomes["ok"]

    @property
    def failures(self) -> dict[str, int]:
        """Every other outcome, by kind."""
        with self._lock:
            return {kind: count for kind, count in self.outcomes.items() if kind != "ok"}

    def wait_answered(self, more: int) -> None:
        """Wait until so many more requests were answered with 200."""
        enough = self.answered + more
        eventually(lambda: self.answered >= enough, what="clients are served")

    def __enter__(self) -> Load:  # noqa: PYI034
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S + 5)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def _ask(self, keep_alive: bool) -> None:
        client = Client(self._port, keep_alive=keep_alive, tls=self._tls, headers=self._headers)
        while not self._stopping.is_set():
            outcome, body = _outcome(client, self._path)
            with self._lock:
                self.outcomes[outcome] += 1
                self.bodies.add(body)
            if self._pause_s or outcome != "ok":
                time.sleep(self._pause_s or 0.05)
        client.close()


def _outcome(client: Client, path: str) -> tuple[str, bytes]:
    try:
        status, body = client.get(path)
    except TimeoutError:
        return "timeout", b""
    except ConnectionRefusedError:
        return "refused", b""
    except ConnectionResetError:
        return "reset", b""
    except BrokenPipeError:
        return "broken pipe", b""
    except (ClosedError, ssl.SSLEOFError):
        return "closed", b""
    return ("ok" if status == 200 else f"status {status}"), body
