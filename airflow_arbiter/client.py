"""
How a client finds a server, asks it, and waits for what it does.

Owns the choice among several servers, the conversation, and when a rollout counts as over. Prints nothing,
and imports nothing of gunicorn before there is somebody to talk to.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_arbiter import meeting
from airflow_arbiter.errors import ArbiterError, CommandError
from airflow_arbiter.meeting import Peer

ANSWER_S = 60.0
"""What an answer may take: a master that takes in new code answers when that is imported."""

LOOK_S = 0.5
"""Pause between two looks at something that is under way."""

_SHORTEST_S = 0.001
"""A time of 0 means to the kernel that there is no limit."""

AsJson = Mapping[str, Any]
"""A report as it comes over the wire: the server may be of another version than we are."""


class NoServerError(ArbiterError):
    """
    No server answers, or more than one.
    """


class LostError(NoServerError):
    """
    The server has taken the connection, and has not answered.
    """


def find(*, pid: int | None = None, path: str | None = None) -> Path:
    """
    Find the one server that is meant.

    :param pid: of its master.
    :param path: of its socket.
    :raises NoServerError: when there is none, or more than one.
    """
    if path is not None:
        return Path(path)
    found = [place for place in meeting.living() if pid in (None, meeting.pid_of(place))]
    if len(found) == 1:
        return found[0]
    if found:
        pids = ", ".join(str(meeting.pid_of(place)) for place in found)
        raise NoServerError(f"several servers answer, with the pids {pids}: choose with --pid or --socket")
    of_pid = "" if pid is None else f" of pid {pid}"
    folders = ", ".join(map(str, meeting.folders(is_airflow=True)))
    raise NoServerError(f"no server{of_pid} answers in {folders}; one that is elsewhere is named by --socket")


def ask(path: Path, command: str, *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """
    Give a command, and return its answer.

    :param path: of the server's socket.
    :param timeout_s: for the whole of it; a server that is busy with a reload answers afterwards.
    :raises CommandError: when the server refuses it.
    :raises NoServerError: when nobody is there, or somebody else.
    :raises LostError: when there is no answer; whether the command was taken is not known.
    """
    # Not above: every command of Airflow's imports this module.
    from gunicorn.ctl.protocol import ControlProtocol, ProtocolError, make_request

    with socket.socket(socket.AF_UNIX) as sock:
        # A blocking connect waits where many wait already; one with Python's timeout fails there.
        timeout_s = max(timeout_s, _SHORTEST_S)
        timeval = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        try:
            sock.connect(str(path))
            sock.settimeout(timeout_s)
            _check(sock, path)
            ControlProtocol.write_message(sock, make_request(1, command))
            answer = ControlProtocol.read_message(sock)
        except (OSError, ProtocolError) as error:
            if isinstance(error, OSError) and error.errno in _NOBODY:
                raise NoServerError(f"no server answers at {path}: {error.strerror}") from error
            raise LostError(f"the server at {path} has not answered: {error}") from error
    if not isinstance(answer, dict) or answer.get("status") != "ok":
        raise CommandError(str(answer.get("error") if isinstance(answer, dict) else answer))
    data: dict[str, Any] = answer.get("data") or {}
    return data


_NOBODY = (
    errno.ENOENT,
    errno.ECONNREFUSED,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPROTOTYPE,
    errno.ENAMETOOLONG,
)


_TOO_LATE = (TimeoutError, BlockingIOError)
"""What is raised when an answer, or room for a connection, has not come in time."""


def _check(sock: socket.socket, path: Path) -> None:
    """
    Make sure that it is a server of ours that is at the other end.

    :raises NoServerError: when it is somebody else's: it could tell us anything.
    """
    uid = Peer.of(sock).uid
    if uid not in (0, os.geteuid()) and os.geteuid() != 0:
        raise NoServerError(f"the server at {path} is of user {uid}")


def report(path: Path, *, timeout_s: float = ANSWER_S) -> AsJson:
    """
    Ask how everything stands, once more where the question was lost in a reload.

    :param timeout_s: for one answer.
    :raises NoServerError: as :func:`ask`.
    """
    try:
        return ask(path, "status", timeout_s=timeout_s)
    except LostError as error:
        if isinstance(error.__cause__, _TOO_LATE):
            raise
        return ask(path, "status", timeout_s=timeout_s)


def follow(path: Path, *, interval_s: float = LOOK_S, limit_s: float = math.inf) -> Iterator[AsJson]:
    """
    Look at one server again and again, over its reloads.

    :param limit_s: seconds after which it ends, also where the server is busy with a reload.
    :raises NoServerError: when it has gone, or another one has its place.
    """
    ends_at = time.monotonic() + limit_s
    pid = None
    while (left_s := ends_at - time.monotonic()) > 0:
        try:
            seen = report(path, timeout_s=min(ANSWER_S, left_s))
        except LostError:
            if time.monotonic() < ends_at:
                raise
            return
        if pid not in (None, seen["server"]["pid"]):
            raise NoServerError(f"the server of pid {pid} has gone, and another has its place")
        pid = seen["server"]["pid"]
        yield seen
        time.sleep(max(0.0, min(interval_s, ends_at - time.monotonic())))


def verdict(seen: AsJson, revision: int | None) -> str | None:
    """
    Tell whether a rollout is over.

    :param revision: of the restart or reload that is meant; None means whatever is under way.
    :return: empty once it is complete, why it is not going to be, or None while that is open.
    """
    rollout, reload, is_stopping = seen["rollout"], seen["reload"], seen["server"]["stopping"]
    is_reloading = reload["state"] != "idle"  # what is stalled then is of the code that is to be replaced
    if revision is None:
        is_complete = rollout["phase"] == "idle" and not is_reloading and not is_stopping
    else:
        is_complete = rollout["completed"] >= revision
    because = None
    if is_complete:
        because = ""
    elif revision is not None and rollout["aborted"] >= revision:
        because = str(reload["failure"] or "it was given up")
    elif is_stopping:
        because = "the server is stopping"
    elif rollout["phase"] == "stalled" and not is_reloading:
        because = str(rollout["because"] or "newcomers fail")
    return because
