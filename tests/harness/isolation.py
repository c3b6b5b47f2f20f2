"""Servers that have a part of the machine for themselves: file systems, the ends of their pipes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.server import Server

SERVE = [sys.executable, "-m", "airflow_arbiter", "faulty:app"]


def in_shell(*steps: str, command: list[str] | None = None) -> list[str]:
    """A command that takes some steps of the shell first, and keeps its pid."""
    return ["sh", "-euc", "\n".join([*steps, 'exec "$@"']), "sh", *(command or SERVE)]


# -- file systems --------------------------------------------------------------------------------------------


def in_mount_namespace(*steps: str, command: list[str] | None = None) -> list[str]:
    """
    A command that sees mounts of its own; skips the test where there can be none.

    :param steps: of the shell, which mount what is wanted.
    """
    unshare = ["unshare", "--mount", "--propagation=private"]
    try:
        subprocess.run([*unshare, "mount", "-t", "tmpfs", "tried", "/mnt"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("unshare (util-linux) is not installed")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted here: {error.stderr.decode().strip()}")
    return [*unshare, *in_shell(*steps, command=command)]


def small_disk(at: Path, options: str) -> str:
    """The step that mounts a small file system."""
    return f"mount -t tmpfs -o {options} small {shlex.quote(str(at))}"


class Disk:
    """
    A file system that a server has for itself, from outside.

    :param server: has taken its first steps: it is ready.
    :param at: where it sees it.
    """

    def __init__(self, server: Server, at: Path) -> None:
        self.path = Path(f"/proc/{server.pid}/root{at}")

    def fill(self) -> None:
        """Use the last byte."""
        with (self.path / "ballast").open("wb", buffering=0) as file, _until_full():
            while True:
                file.write(bytes(4096))

    def fill_with_files(self) -> None:
        """Make the last file."""
        with _until_full():
            for number in range(1_000_000):
                (self.path / f"ballast-{number}").touch()

    def free(self) -> None:
        """Give back what was used."""
        for file in self.path.glob("ballast*"):
            file.unlink()


@contextlib.contextmanager
def _until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


# -- pipes ---------------------------------------------------------------------------------------------------


class Pipe:
    """
    A pipe that a server writes to, and that we read, or do not.

    :param path: of the FIFO that is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        # Open before the server opens its end, which would wait for us.
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, 4096)  # the smallest, so that it is full soon

    def drain(self) -> bytes:
        """Read what is there."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._fd, 65536)
        return b""

    def close(self) -> None:
        """Leave: who writes from now on gets EPIPE."""
        os.close(self._fd)
