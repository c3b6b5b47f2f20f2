"""
The sockets that this process has open, as the system knows them: whose objects they are is no matter.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any


def socket_inodes() -> dict[int, int]:
    """The sockets that this process has open: descriptors by inode. Source: proc(5)."""
    inodes = {}
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    inodes[int(target[len("socket:[") : -1])] = int(entry.name)
    return inodes


def is_meant_for_children(fd: int) -> bool:
    """
    Whether a socket was there before the app was: one to listen on, or one that came over an exec.

    What Python makes itself does not go over an exec (PEP 446), unless somebody wants it to.
    """
    with contextlib.suppress(OSError), _duplicate(fd) as sock:
        return os.get_inheritable(fd) or bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return False


def sends_datagrams(fd: int) -> bool:
    with contextlib.suppress(OSError), _duplicate(fd) as sock:
        return sock.type == socket.SOCK_DGRAM
    return False


def _duplicate(fd: int) -> socket.socket:
    """
    A socket object for a descriptor, of its own.

    :raises OSError: when there is no such descriptor any more.
    """
    return socket.socket(fileno=os.dup(fd))


def describe(fd: int) -> str:
    """Say where a socket goes to."""
    with contextlib.suppress(OSError), _duplicate(fd) as sock:
        family = (
            sock.family.name.removeprefix("AF_") if isinstance(sock.family, socket.AddressFamily) else "?"
        )
        with contextlib.suppress(OSError):
            return f"{family} connected to {_address(sock.getpeername())}"
        return f"{family} bound to {_address(sock.getsockname())}"
    return "unknown"


def _address(address: Any) -> str:
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return repr(address) if address else "nothing"
