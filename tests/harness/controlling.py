"""Asking a server through its control socket, as operators do, and as nobody should."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from gunicorn.ctl.protocol import ControlProtocol, make_request

from airflow_arbiter import client
from harness.server import Server

CONSOLE = [sys.executable, "-c", "from airflow_arbiter.__main__ import console; console()"]
"""``airflow-arbiter``, whatever script is installed."""

NOBODY = 65534


def socket_of(server: Server) -> Path:
    """Where a server can be asked."""
    return Path(server.wait_event("control.listening")[0].values["path"])


def mode(path: Path) -> int:
    """The permissions of a file."""
    return stat.S_IMODE(path.lstat().st_mode)


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``airflow-arbiter`` with a command."""
    return subprocess.run(
        [*CONSOLE, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )


def gunicornc(path: Path, command: str) -> Any:
    """Run gunicorn's own client, and return what it has been answered."""
    line = [sys.executable, "-m", "gunicorn.ctl.cli", "--socket", str(path), "--json", "--command", command]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return json.loads(ended.stdout)


def second_pid(server: Server) -> int:
    """The master that stands beside a server after SIGUSR2; 0 while there is none."""
    for child in psutil.Process(server.pid).children():
        if "airflow-arbiter: master" in " ".join(child.cmdline()):
            return int(child.pid)
    return 0


class Asking:
    """A client that asks again and again, and counts how it goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.outcomes: Counter[str] = Counter()

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                client.ask(self._path, "help", timeout_s=60)
                self.outcomes["answered"] += 1
            except client.LostError:
                self.outcomes["lost"] += 1
            except client.NoServerError:
                self.outcomes["nobody"] += 1

    def __enter__(self) -> Asking:  # noqa: PYI034  # 3.10 has no Self
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


class Attack:
    """
    A hostile client that goes on until it is told to stop.

    :param kind: what it does, one of :data:`KINDS`.
    """

    KINDS = ("half-open", "slow", "garbage", "oversized", "connections", "requests", "deaf")

    def __init__(self, path: Path, kind: str) -> None:
        self._path = str(path)
        self._attack = getattr(self, "_" + kind.replace("-", "_"))
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0

    def __enter__(self) -> Attack:  # noqa: PYI034  # as above
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.ExitStack() as held:
            while not self._is_over.is_set():
                with contextlib.suppress(OSError):
                    sock = held.enter_context(socket.socket(socket.AF_UNIX))
                    sock.settimeout(0.5)
                    sock.connect(self._path)
                    self._attack(sock)
                self.rounds += 1
                if self.rounds % 20 == 0:
                    held.pop_all().close()

    def _half_open(self, sock: socket.socket) -> None:
        sock.send(b"\0\0")
        self._is_over.wait(0.05)

    def _slow(self, sock: socket.socket) -> None:
        for byte in ControlProtocol.encode_message(make_request(1, "help" + " " * 200)):
            sock.send(bytes([byte]))
            if self._is_over.wait(0.01):
                return

    def _garbage(self, sock: socket.socket) -> None:
        sock.send(struct.pack(">I", 1000) + os.urandom(1000))

    def _oversized(self, sock: socket.socket) -> None:
        sock.sendall(struct.pack(">I", 2**31) + bytes(1 << 20))

    def _connections(self, sock: socket.socket) -> None:
        pass

    def _requests(self, sock: socket.socket) -> None:
        request = ControlProtocol.encode_message(make_request(1, "show config"))
        while not self._is_over.is_set():
            sock.send(request * 10)
            while select.select([sock], [], [], 0)[0] and sock.recv(1 << 16):
                pass

    def _deaf(self, sock: socket.socket) -> None:
        sock.send(ControlProtocol.encode_message(make_request(1, "show config")) * 1000)
        self._is_over.wait(0.05)


def ask_as_nobody(path: Path) -> bytes:
    """Ask as another user, and return what comes back."""
    holds, tells = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                sock.connect(str(path))
                with contextlib.suppress(OSError):  # it may have been closed before we write
                    sock.send(ControlProtocol.encode_message(make_request(1, "help")))
                    os.write(tells, b"answer: " + sock.recv(1 << 16))
                os.write(tells, b"; came through")
        os._exit(0)
    os.close(tells)
    os.waitpid(child, 0)
    with os.fdopen(holds, "rb") as pipe:
        return pipe.read()
