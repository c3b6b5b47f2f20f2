"""What systemd is to a service: a datagram socket that it tells things, and sockets that it is given."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from harness.server import Server
from harness.starting import HARNESS
from harness.waiting import eventually

_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message: who sent it and when, in seconds of the monotonic clock, and its lines."""

    pid: int
    at: float
    lines: tuple[str, ...]


class Systemd:
    """
    Hears everything that a service and its processes say, with the pid that the kernel vouches for.

    :param path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        # Its queue is short: whoever does not read it all the time holds the sender up.
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            if not data:
                return
            pid, _, _ = _CREDENTIALS.unpack(ancillary[0][2][: _CREDENTIALS.size])
            lines = tuple(data.decode().split("\n"))
            self.messages.append(Message(pid=pid, at=time.monotonic(), lines=lines))

    def close(self) -> None:
        """Hear no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()

    def environment(self, **more: str) -> dict[str, str]:
        """What it puts into the environment of a service."""
        return {"NOTIFY_SOCKET": str(self.path), **more}

    def said(self, *names: str) -> list[str]:
        """All lines whose names are these, in order."""
        return [
            line for message in self.messages for line in message.lines if line.partition("=")[0] in names
        ]

    def wait(self, line: str, count: int = 1, within_s: float = 60.0) -> Message:
        """Wait until a line has come this often, and return the message that it came in."""

        def found() -> Message | None:
            having = [message for message in self.messages if line in message.lines]
            return having[count - 1] if len(having) >= count else None

        message = eventually(found, what=f"{count} x {line}", within_s=within_s)
        assert message is not None
        return message


class Activation:
    """
    A listening socket that outlives the servers that it is given to.

    :param folder: for their logs.
    :param path: where it is a Unix socket.
    """

    def __init__(self, folder: Path, path: Path | None = None) -> None:
        self._folder = folder
        self._servers: list[Server] = []
        self.port = 0
        if path is None:
            self._socket = socket.create_server(("127.0.0.1", 0))
            self.port = self._socket.getsockname()[1]
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(str(path))
            self._socket.listen()

    def start(self, *command: str, env: dict[str, str]) -> Server:
        """Start a server as its service."""
        log = self._folder / f"activated-{len(self._servers)}.log"
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [sys.executable, "-c", _ACTIVATE, str(self._socket.fileno()), *command],
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONPATH": _path(), **env},
                pass_fds=[self._socket.fileno()],
            )
        server = Server(popen, port=self.port, log=log)
        self._servers.append(server)
        return server

    def close(self) -> None:
        """End what is left."""
        for server in self._servers:
            server.stop()
        self._socket.close()


def _path() -> str:
    return os.pathsep.join(filter(None, (str(HARNESS), os.environ.get("PYTHONPATH"))))


_ACTIVATE = """
import os, sys
fd, *command = sys.argv[1:]
os.dup2(int(fd), 3)
pid = str(os.getpid())
os.environ.update(LISTEN_FDS="1", LISTEN_PID=pid, WATCHDOG_PID=pid)
os.execvp(command[0], command)
"""
"""Become a service with a socket, as systemd starts one."""
