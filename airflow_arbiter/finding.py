"""
Which servers there are for a client to talk to.

Owns where it looks, whom it believes, and which servers are not meant. What a folder and a socket are is in
:mod:`airflow_arbiter.meeting`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from airflow_arbiter import meeting


def living() -> list[Path]:
    """
    Find the sockets of this user's servers that live on this host; root is told of other users', too.

    Other hosts are left out, as containers beside this one that share a volume: nobody here means them.
    """
    return list(_answering(meeting.is_of_this_host))


def renamed() -> list[Path]:
    """
    Find the sockets that answer here and have another host's name.

    Such a server is of a container that shares a volume, or of this host under the name that it had.
    """
    return list(_answering(lambda path: not meeting.is_of_this_host(path)))


def _answering(is_meant: Callable[[Path], bool]) -> Iterator[Path]:
    for folder in meeting.folders(is_airflow=True):
        with contextlib.suppress(OSError):
            meant = filter(is_meant, meeting.sockets(folder) if _is_trusted(folder) else ())
            yield from sorted(filter(meeting.is_living, meant))


def _is_trusted(folder: Path) -> bool:
    """
    Whether whatever answers in a folder may be believed: it could tell anything.

    So where it is ours. Root believes whose folder is nobody else's business.

    :raises OSError: when it is not there.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return False
    if found.st_uid == os.geteuid():
        return True
    # Where everybody may make folders, one must be whose name it has.
    owner = re.fullmatch(rf"{re.escape(meeting.OF_USER)}(\d+)", folder.name)
    is_owners = owner is None or int(owner[1]) == found.st_uid
    return os.geteuid() == 0 and not meeting.is_open(found) and is_owners


def held_by(pid: int) -> list[Path]:
    """
    Find the socket of a master in whatever folder, where the system lets us see what the process holds.

    That is so for our own processes, and for root. The kernel's word holds also where the host was renamed.
    """
    import psutil  # every command imports this module, and few need it

    with contextlib.suppress(psutil.Error, OSError):
        held = {Path(found.laddr or "/") for found in psutil.Process(pid).net_connections(kind="unix")}
        named = [path for path in held if path.is_absolute() and meeting.pid_of(path) == pid]
        return [path for path in named if meeting.is_living(path)]
    return []
