"""
Where a server and its clients meet: the file of the control socket.

Owns the folders, what makes one private, and how the sockets of the living are told from those that were left
behind. Used by both ends; knows nothing of what is said there. Which folder a server takes is chosen in
:mod:`airflow_arbiter.place`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_PATH = 107
"""Bytes, of a Unix socket's path on Linux. Source: unix(7)."""

_SUFFIX = ".sock"
OF_USER = "airflow-arbiter-"
"""What a folder's name begins with whose user is told by the rest of it."""

_CREDENTIALS = struct.Struct("iII")

_MOST_FILES = 10_000
"""What is looked at of a folder."""

REFRESH_S = 86_400.0
"""Age at which a socket's file is given a new time."""


def folders(*, is_airflow: bool) -> tuple[Path, ...]:
    """
    Tell where a control socket may be, the best place first.

    :param is_airflow: whether Airflow's own folder comes into question.
    """
    wanted = []
    if is_airflow:
        # As Airflow finds it, which a client need not import for that. Not Path.expanduser(), which raises
        # for a user that has no entry: as in a container that is given any uid.
        home = os.path.expanduser(os.path.expandvars(os.environ.get("AIRFLOW_HOME") or "~/airflow"))  # noqa: PTH111
        wanted.append(Path(home) / "arbiter")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        wanted.append(Path(runtime) / "airflow-arbiter")
    wanted.append(Path(os.environ.get("TMPDIR") or "/tmp") / f"{OF_USER}{os.geteuid()}")  # noqa: S108
    found = []
    for folder in wanted:
        with contextlib.suppress(OSError):  # a relative one, in a folder that is gone
            found.append(folder.absolute())
    return tuple(found)


def name(pid: int) -> str:
    """
    Name the socket of a master.

    By the host as well: containers that share a volume have masters of the same pid.
    """
    return f"{_host()}-{pid}{_SUFFIX}"


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())


# -- who meets
# -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """
    Who is at the other end.

    :param pid: as we see it; 0 for a process of another pid namespace.
    :param uid: its effective user when it connected.
    """

    pid: int
    uid: int

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        """
        Ask the kernel.

        :raises OSError: when the connection is gone.
        """
        told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(told)
        return cls(pid=pid, uid=uid)

    @property
    def may_ask(self) -> bool:
        """Whether it is of our user, or root."""
        return self.uid in (0, os.geteuid())


# -- the server's end
# -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFile:
    """
    A file that a server of this process has made.

    :param path: where it is.
    :param identity: device, inode and time of making, so that nobody removes another's: inodes come again.
    """

    path: str
    identity: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> SocketFile:
        """
        Look at a file.

        :raises OSError: when it is not there.
        """
        found = path.lstat()
        return cls(path=str(path), identity=(found.st_dev, found.st_ino, found.st_mtime_ns))

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> SocketFile:
        """
        Take it out of a message, perhaps of another version of this package.

        :raises Exception: for what is not understood.
        """
        device, inode, made_at = map(int, told["identity"])
        return cls(path=str(told["path"]), identity=(device, inode, made_at))

    def remove(self) -> None:
        """Remove it, unless it has become another's."""
        with contextlib.suppress(OSError):
            if SocketFile.of(Path(self.path)) == self:
                Path(self.path).unlink()

    def refresh(self) -> SocketFile:
        """
        Give it a new time, where it is old: whoever cleans up takes old files, other hosts' sweeps too.

        :raises OSError: when it is not there any more.
        """
        found = SocketFile.of(Path(self.path))
        if found != self or time.time() - found.identity[2] / 1e9 < REFRESH_S:
            return self
        os.utime(self.path, follow_symlinks=False)
        return SocketFile.of(Path(self.path))

    def rename(self, path: Path) -> SocketFile:
        """
        Give it another name, where nobody answers; a socket that was left behind there goes.

        :raises OSError: when that cannot be, or it has become another's.
        """
        if SocketFile.of(Path(self.path)) != self:
            raise FileNotFoundError(errno.ENOENT, "it is not ours any more", self.path)
        make_free(path)
        Path(self.path).rename(path)
        return SocketFile.of(path)


def make_private(folder: Path) -> None:
    """
    Have a folder that is nobody else's business.

    Only the folder itself is made, not what it is in.

    :raises OSError: when it cannot be had, or is somebody else's.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is a link or a file, not a folder", str(folder))
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"the folder belongs to user {found.st_uid}", str(folder))
    if is_open(found):
        folder.chmod(0o700)
        if is_open(folder.lstat()):  # as on a volume that has no modes
            raise PermissionError(errno.EPERM, "others can look into it", str(folder))


def is_open(found: os.stat_result) -> bool:
    """Whether others than its user may do anything with a file or folder."""
    return bool(stat.S_IMODE(found.st_mode) & 0o077)


def listen(path: Path, *, backlog: int) -> tuple[socket.socket, SocketFile]:
    """
    Listen at a path where nobody does; a socket that was left behind there goes.

    The file is for its user alone from its first moment. Must be called in a process without threads, whose
    umask it changes for a moment.

    :param backlog: connections that may wait.
    :raises OSError: when that cannot be.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, f"the path is longer than {LONGEST_PATH} bytes", str(path))
    make_free(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.settimeout(0)
        listener.listen(backlog)
        return listener, SocketFile.of(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(umask)


def make_free(path: Path) -> None:
    """
    Make a path free where only a dead server's socket is in the way.

    :raises OSError: when something else is.
    """
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise FileExistsError(errno.EEXIST, "there is something that is no socket", str(path))
    if is_living(path):
        raise OSError(errno.EADDRINUSE, "another server answers there", str(path))
    path.unlink(missing_ok=True)


def is_living(path: Path) -> bool:
    """Whether somebody listens at a path. Never waits."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(0)  # it would wait where more wait already than may
        try:
            client.connect(str(path))
        except BlockingIOError:
            return True
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


# -- what is there
# -------------------------------------------------------------------------------------------------------


def sockets(folder: Path) -> Iterator[Path]:
    """Find sockets that are named like ours. By the name first: a folder may be large, and far away."""
    with os.scandir(folder) as entries:
        for entry in itertools.islice(entries, _MOST_FILES):
            path = folder / entry.name
            if pid_of(path) is not None and path.is_socket():
                yield path


def is_of_this_host(path: Path) -> bool:
    """Whether a socket is, by its name, of a server beside us."""
    pid = pid_of(path)
    return pid is not None and path.name == name(pid)


def pid_of(path: Path) -> int | None:
    """Read a master's pid out of its socket's name; None where it has another one."""
    match = re.fullmatch(rf".*-(\d+){re.escape(_SUFFIX)}", path.name)
    return int(match[1]) if match else None
