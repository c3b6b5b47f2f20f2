"""
Where a server's control socket is to be.

Owns the choice, and the cleaning up of what other servers have left there. Where clients look, and what makes
a place safe, is in :mod:`airflow_arbiter.meeting`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from airflow_arbiter import meeting
from airflow_arbiter.errors import ArbiterError
from airflow_arbiter.meeting import SocketFile

_MOST_SOCKETS = 100
"""What is looked at of a folder by a server that starts."""

_STALE_AFTER_S = 10.0
"""A younger socket may be another server's that is about to listen."""

_FORGOTTEN_AFTER_S = 7 * meeting.REFRESH_S
"""A living server's socket is never as old as that."""


class UnavailableError(ArbiterError):
    """
    There is no place for a control socket; the message says why.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """
    Where a control socket is to be.

    :param path: where the operator wants it; empty for a private folder.
    :param is_airflow: whether it is Airflow that is served.
    :param is_second: whether this master stands beside its predecessor, which has the path.
    """

    path: str
    is_airflow: bool
    is_second: bool

    def listen(self, *, backlog: int) -> tuple[socket.socket, SocketFile]:
        """
        Listen at the best place that can be had.

        :param backlog: connections that may wait.
        :raises UnavailableError: when there is none.
        """
        if not hasattr(socket, "SO_PEERCRED"):
            raise UnavailableError("this system does not tell who connects")
        failures = []
        for path in self._candidates():
            try:
                if self.path:
                    path.parent.mkdir(mode=0o700, exist_ok=True)
                else:
                    meeting.make_private(path.parent)
                    sweep(path.parent)
                return meeting.listen(path, backlog=backlog)
            except OSError as error:
                failures.append(f"{path}: {error.strerror or error}")
        raise UnavailableError("; ".join(failures))

    def _candidates(self) -> tuple[Path, ...]:
        if self.path:
            return (Path(f"{self.path}.2" if self.is_second else self.path).absolute(),)
        own = meeting.name(os.getpid())
        return tuple(folder / own for folder in meeting.folders(is_airflow=self.is_airflow))


def sweep(folder: Path) -> None:
    """
    Remove the sockets of dead servers of this host, and those of other hosts that nobody has refreshed.

    Whether those live cannot be told from here. Only so many files are looked at.
    """
    with contextlib.suppress(OSError):
        for path in itertools.islice(meeting.sockets(folder), _MOST_SOCKETS):
            with contextlib.suppress(OSError):
                age_s = time.time() - path.lstat().st_mtime
                if meeting.is_of_this_host(path):
                    if age_s > _STALE_AFTER_S:
                        meeting.make_free(path)
                elif age_s > _FORGOTTEN_AFTER_S:
                    path.unlink()
