"""Servers that have a part of the machine for themselves: file systems, a clock, the ends of their pipes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.server import Server

SERVE = [sys.executable, "-m", "airflow_arbiter", "faulty:app"]


def in_shell(*steps: str, command: list[str] | None = None) -> list[str]:
    """A command that takes some steps of the shell first, and keeps its pid."""
    return ["sh", "-euc", "\n".join([*steps, 'exec "$@"']), "sh", *(command or SERVE)]


def as_user(uid: int) -> list[str]:
    """
    What makes the command that follows run as a user, and skips the test where that cannot be.

    It may read everything all the same, because a checkout or a Python may lie in somebody's home.
    """
    ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    capabilities = [
        f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")
    ]
    setpriv = ["setpriv", *ids, *capabilities]
    try:
        subprocess.run([*setpriv, "true"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("setpriv (util-linux) is not installed")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no other user can be had here: {error.stderr.decode().strip()}")
    return setpriv


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


READ_ONLY_STEPS = (
    # Mounts that others hide cannot be changed; the last step sees that those in sight were.
    "cut -d' ' -f5 /proc/self/mountinfo | while read -r at; do mount -o remount,bind,ro \"$at\" || :; done",
    "if touch /tmp/written /dev/shm/written; then exit 1; fi",
)
"""The steps that make every mount read-only."""


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


# -- the clock -----------------------------------------------------------------------------------------------


class Clock:
    """
    The wall clock of a server, and of nobody else; skips the test where it cannot be moved.

    The monotonic clock stays as it is, as it does when an operator or NTP sets the wall clock.

    :param path: of the file that tells how far it is off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set("+0")
        package = importlib.util.find_spec("libfaketime")
        if package is None or not package.submodule_search_locations:
            pytest.skip("libfaketime is not installed")
        (library,) = Path(package.submodule_search_locations[0]).rglob("libfaketime.so.1")
        self.env = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_RESET": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        self._check()

    def set(self, offset: str) -> None:
        """Jump, to so far off the real time, e.g. ``+3d`` or ``-5h``."""
        # Renamed into place: whoever asks for the time sees the old text or the new one.
        new = self._path.with_suffix(".new")
        new.write_text(offset)
        new.rename(self._path)

    def _check(self) -> None:
        """Skip where the library cannot be loaded, as on another architecture than it was built for."""
        self.set("+1000d")
        code = "import time; print(time.time(), time.monotonic())"
        told = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **self.env}, capture_output=True, text=True
        )
        self.set("+0")
        wall, monotonic = map(float, told.stdout.split())
        if abs(wall - time.time() - 1000 * 86400) > 60:
            pytest.skip(f"libfaketime cannot move the clock here: {told.stderr.strip()}")
        assert abs(monotonic - time.monotonic()) < 60
