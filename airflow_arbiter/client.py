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

from airflow_arbiter import answers, finding, meeting
from airflow_arbiter.errors import ArbiterError, CommandError
from airflow_arbiter.limits import one_line
from airflow_arbiter.meeting import Peer

ANSWER_S = 60.0
"""What an answer may take: a master that takes in new code answers when that is imported."""

LOOK_S = 0.5
"""Pause between two looks at something that is under way."""

STARTED_ANEW = "the server was started anew, and knows nothing of it"

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


class Patience:
    """
    How long somebody waits: one time for all that is asked meanwhile. It begins when this is made.

    :param limit_s: seconds; None is for ever.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self.limit_s = math.inf if limit_s is None else limit_s
        self._ends_at = time.monotonic() + self.limit_s

    @property
    def left_s(self) -> float:
        """Seconds that are left; negative once it is over."""
        return self._ends_at - time.monotonic()

    @property
    def for_an_answer_s(self) -> float:
        """What one answer may take."""
        return min(ANSWER_S, self.left_s)


def find(*, pid: int | None = None, path: str | None = None) -> Path:
    """
    Find the one server that is meant.

    :param pid: of its master.
    :param path: of its socket.
    :raises NoServerError: when there is none, or more than one.
    """
    if path is not None:
        return Path(path)
    found = [place for place in finding.living() if pid in (None, meeting.pid_of(place))]
    if not found and pid is not None:
        found = finding.held_by(pid)
    if len(found) == 1:
        return found[0]
    if found:
        pids = ", ".join(str(meeting.pid_of(place)) for place in found)
        raise NoServerError(f"several servers answer, with the pids {pids}: choose with --pid or --socket")
    of_pid = "" if pid is None else f" of pid {pid}"
    folders = ", ".join(map(str, meeting.folders(is_airflow=True)))
    others = ", ".join(map(str, finding.renamed()))
    renamed = f"; under other hosts' names, as this one may have had, there are {others}" if others else ""
    raise NoServerError(
        f"no server{of_pid} answers in {folders}; one that is elsewhere is named by --socket{renamed}"
    )


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

    ends_at = time.monotonic() + timeout_s
    with _Timed(socket.AF_UNIX) as sock:
        # A blocking connect waits where many wait already; one with Python's timeout fails there.
        timeout_s = max(timeout_s, _SHORTEST_S)
        timeval = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        try:
            sock.connect(str(path))
            sock.ends_at = ends_at
            _check(sock, path)
            ControlProtocol.write_message(sock, make_request(1, command))
            answer = ControlProtocol.read_message(sock)
        except (OSError, ProtocolError) as error:
            if isinstance(error, OSError) and error.errno in _NOBODY:
                raise NoServerError(f"no server answers at {path}: {error.strerror}") from error
            because = f" within {round(timeout_s, 1):g} s" if isinstance(error, _TOO_LATE) else f": {error}"
            raise LostError(f"the server at {path} has not answered{because}") from error
    if not isinstance(answer, dict) or answer.get("status") != "ok":
        raise CommandError(str(answer.get("error") if isinstance(answer, dict) else answer))
    data: dict[str, Any] = answer.get("data") or {}  # as gunicorn's protocol says, and not more than that
    return data


class _Timed(socket.socket):
    """
    A socket with one deadline for all that is read and written; gunicorn's protocol has one for each piece.

    :ivar ends_at: when it is to be over, by the monotonic clock.
    """

    ends_at = math.inf

    def recv(self, *arguments: Any) -> bytes:
        self._hurry()
        return super().recv(*arguments)

    def sendall(self, *arguments: Any) -> None:
        self._hurry()
        super().sendall(*arguments)

    def _hurry(self) -> None:
        self.settimeout(max(self.ends_at - time.monotonic(), _SHORTEST_S))


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

    :param timeout_s: for the whole of it.
    :raises NoServerError: as :func:`ask`.
    :raises NotUnderstoodError: when what comes is no report.
    """
    ends_at = time.monotonic() + timeout_s
    try:
        answer = ask(path, "status", timeout_s=timeout_s)
    except LostError as error:
        if isinstance(error.__cause__, _TOO_LATE):
            raise
        answer = ask(path, "status", timeout_s=ends_at - time.monotonic())
    return answers.report(answer)


def follow(path: Path, *, interval_s: float = LOOK_S, limit_s: float = math.inf) -> Iterator[AsJson]:
    """
    Look at one server again and again, over its reloads.

    :param limit_s: seconds after which it ends, also where the server is busy with a reload.
    :raises NoServerError: when it has gone, or another one has its place.
    """
    ends_at = time.monotonic() + limit_s
    # Until then it is asked again and again; a server that only takes its time is waited for.
    pid, uptime_s = None, 0.0
    while (left_s := ends_at - time.monotonic()) > 0:
        try:
            seen = report(path, timeout_s=min(ANSWER_S, left_s))
        except LostError as error:
            if not isinstance(error.__cause__, _TOO_LATE):
                raise
            continue  # it takes in new code, for as long as that takes
        if pid not in (None, seen["server"]["pid"]):
            raise NoServerError(f"the server of pid {pid} has gone, and another has its place")
        if seen["server"]["uptime_s"] < uptime_s:
            raise NoServerError(STARTED_ANEW)  # in a container the next one has the same pid
        pid, uptime_s = seen["server"]["pid"], seen["server"]["uptime_s"]
        yield seen
        time.sleep(max(0.0, min(interval_s, ends_at - time.monotonic())))


def verdict(seen: AsJson, revision: int | None) -> str | None:
    """
    Tell whether a rollout is over.

    :param revision: of the restart or reload that is meant; None means whatever is under way.
    :return: empty once it is complete, why it is not going to be, or None while that is open.
    """
    if revision is not None:
        rollout = seen["rollout"]
        if rollout["revision"] < revision:
            return STARTED_ANEW
        if revision in _given_up(seen):
            return _given_up(seen)[revision] or "it was given up"
        if revision not in rollout["open"]:
            return "" if revision <= rollout["completed"] else "it was given up, too long ago to tell why"
    return _held_up(seen, revision) or (_at_rest(seen) if revision is None else None)


def _given_up(seen: AsJson) -> dict[int, str]:
    """Why revisions were given up; empty for one that a person has given up."""
    return {
        revision: one_line(item["because"])
        for item in seen["rollout"]["given_up"]
        for revision in item["revisions"]
    }


def _held_up(seen: AsJson, revision: int | None) -> str:
    """Why what is under way does not get on, or nothing."""
    rollout, reload = seen["rollout"], seen["reload"]
    if seen["server"]["stopping"]:
        return "the server is stopping"
    is_meant = revision is None or revision in reload["awaiting"]
    if is_meant and reload["retry_in_s"] is not None:
        return one_line(reload["failure"]) or "the new code could not be tried"
    is_reloading = reload["state"] != "idle"  # what is stalled then is of the code that is to be replaced
    if rollout["stalled"] and (not is_reloading or reload["retry_in_s"] is not None):
        return one_line(rollout["because"]) or "newcomers fail"
    return ""


def _at_rest(seen: AsJson) -> str | None:
    """Tell of a server from which nothing is awaited: empty if all is well, why not, None if it moves."""
    rollout, pool = seen["rollout"], seen["pool"]
    if rollout["phase"] != "idle" or seen["reload"]["state"] != "idle":
        return None
    if failure := _given_up(seen).get(rollout["revision"]):
        return failure
    return "" if pool["available"] >= pool["target"] else None
