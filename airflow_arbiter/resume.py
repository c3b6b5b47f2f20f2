"""
The program of a master's new image, and of the preflight before it.

Run by path, with a handover's descriptor: ``resume.py FD`` goes on as the master that the handover describes,
``resume.py FD preflight PIPE`` only tries whether that would work, ``resume.py FD import`` whether this
package is there. Stands on the standard library alone until it is: while an upgrade of it, or of what it
needs, is half done, it may not be found, and the workers must be kept. All signals are blocked at first.

It may also be a first start, made once more by a process that had to undo its warm-up.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Our own folder: its modules must not be found by their short names.
    sys.path.pop(0)

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

RETRY_FIRST_S = 1.0
RETRY_LAST_S = 60.0
"""Pauses between two tries; they double."""

TRY_S = 60.0
"""What an interpreter gets to import us."""

QUICK_S = 2.0
"""What workers get that are to end at once."""

ENDS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


def main() -> None:
    fd = int(sys.argv[1])
    options = sys.argv[2:]
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(fd), "rb") as file:
        message = json.loads(file.read())
    os.lseek(fd, 0, os.SEEK_SET)
    # The caller's own order, and whatever has come since.
    wanted = message["path"]
    sys.path[:] = [*wanted, *(entry for entry in sys.path if entry not in wanted)]
    if options[:1] == ["preflight"]:
        from airflow_arbiter import preflight
        from airflow_arbiter.handover import Handover

        preflight.run(Handover.read(fd), int(options[1]))
        return
    # Before foreign code runs, whose programs must not hold our sockets open.
    _inherit((fd, *_descriptors(message)), is_wanted=False)
    try:
        from airflow_arbiter import launch, stranded
        from airflow_arbiter.arbiter import AirflowArbiter
        from airflow_arbiter.handover import Handover

        handover = Handover.read(os.dup(fd))
    except BaseException:
        if options:
            raise
        _outlast(fd, message)
    if options:
        return
    os.close(fd)
    if handover.is_first:
        launch.start_anew(handover)
        return
    arbiter, noted = stranded.insist(lambda: AirflowArbiter(handover.make_app()), handover)
    launch.resume(arbiter, handover, noted)


# -- without our own package
# ---------------------------------------------------------------------------------------------


def _outlast(fd: int, message: Mapping[str, Any]) -> NoReturn:
    """
    Keep the workers until another interpreter can import us, and become one then: this one has half of it.

    :raises SystemExit: when a signal to end has come, and everything has ended.
    """
    _tell(message)
    pause_s = RETRY_FIRST_S
    line = [sys.executable, *sys.orig_argv[1:]]
    while True:
        _end_if_asked(message, signal.sigtimedwait({*ENDS, signal.SIGHUP}, pause_s))
        pause_s = min(pause_s * 2, RETRY_LAST_S)
        tried = subprocess.Popen([*line, "import"], pass_fds=(fd,), stderr=subprocess.DEVNULL)  # noqa: S603
        ends_at = time.monotonic() + TRY_S
        while tried.poll() is None and time.monotonic() < ends_at:
            taken = signal.sigtimedwait({*ENDS, signal.SIGCHLD}, 1.0)
            if taken is not None and taken.si_signo in ENDS:
                tried.kill()
            _end_if_asked(message, taken)
        tried.kill()
        if tried.wait() == 0:
            _inherit((fd, *_descriptors(message)), is_wanted=True)
            os.execv(line[0], line)  # noqa: S606  # there is no shell to want


def _end_if_asked(message: Mapping[str, Any], taken: signal.struct_siginfo | None) -> None:
    if taken is not None and taken.si_signo in ENDS:
        _tell_systemd(message, "STOPPING=1")
        end(message, signal.Signals(taken.si_signo))
        sys.exit(0)


def _tell(message: Mapping[str, Any]) -> None:
    """Say what has happened, as our log would."""
    line = {
        "timestamp": datetime.now(timezone.utc).isoformat(),
        "level": "error",
        "event": "reload.failed",
        "logger": "airflow_arbiter",
        "because": "this package, or what it needs, cannot be imported",
        "exception": traceback.format_exc(),
    }
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()
    with contextlib.suppress(Exception):
        from setproctitle import setproctitle

        setproctitle(f"[reload failed] airflow-arbiter: {message['title']}")
    status = f"{len(message['workers'])} workers serve; reload failed: airflow-arbiter cannot be imported"
    _tell_systemd(message, f"READY=1\nSTATUS={status}\nWATCHDOG_USEC=0")


def _tell_systemd(message: Mapping[str, Any], text: str) -> None:
    """Tell it for an arbiter that is not there, unless another master speaks for the service."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if message["master_pid"] or address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.settimeout(0)
        notify.sendto(text.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def _descriptors(message: Mapping[str, Any]) -> tuple[int, ...]:
    """As :meth:`airflow_arbiter.handover.Handover.descriptors`."""
    of_workers = (worker[name] for worker in message["workers"] for name in ("status_fd", "tmp_fd"))
    control = () if message["control"] is None else (message["control_fd"],)
    return (*message["listeners"], *message["notify"], *control, *of_workers)


def _inherit(fds: tuple[int, ...], *, is_wanted: bool) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, is_wanted)


# -- the end of everything
# ---------------------------------------------------------------------------------------------


def end(message: Mapping[str, Any], sig: signal.Signals) -> None:
    """
    End all workers, and leave no file behind.

    :param message: the handover, as plain values.
    :param sig: what asked for it; SIGTERM lets workers drain.
    """
    addresses = [_close(fd) for fd in message["listeners"]]
    is_graceful = sig == signal.SIGTERM
    left = _ask({worker["pid"] for worker in message["workers"]}, sig if is_graceful else signal.SIGQUIT)
    if is_graceful and (left := _wait(left, message["graceful_timeout_s"], is_hasty=True)):
        left = _ask(left, signal.SIGQUIT)
    _wait(_ask(_wait(left, QUICK_S), signal.SIGKILL), QUICK_S)
    if message["owns_socket_files"]:
        for address in addresses:
            _remove(address)
    with contextlib.suppress(Exception):  # as another version may have written it down, or there is none
        _remove_control_socket(message["control"])
    if message["fixed"].get("pidfile"):
        _remove(message["fixed"]["pidfile"] + (".2" if message["master_pid"] else ""))


def _ask(pids: set[int], sig: signal.Signals) -> set[int]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)
    return pids


def _wait(pids: set[int], limit_s: float, *, is_hasty: bool = False) -> set[int]:
    """
    Reap workers until all are gone or the time is over.

    :param is_hasty: whether a further signal to end cuts it short.
    :return: those that are still there.
    """
    left = set(pids)
    deadline = time.monotonic() + limit_s
    while left and time.monotonic() < deadline:
        for pid in tuple(left):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            left.discard(pid)
        # A child's end wakes it; the time is for one that came before.
        taken = signal.sigtimedwait({signal.SIGCHLD, *(ENDS if is_hasty else ())}, 0.1) if left else None
        if taken is not None and taken.si_signo in ENDS:
            break
    return left


def _close(fd: int) -> str:
    """Close a listening socket; the result is its file, if it has one."""
    with socket.socket(fileno=fd) as listener:
        address = listener.getsockname()
    return address if isinstance(address, str) else ""


def _remove(path: str) -> None:
    """Remove a file that was ours, if there is one."""
    with contextlib.suppress(OSError):
        Path(path).unlink()


def _remove_control_socket(told: Mapping[str, Any]) -> None:
    """Remove it unless it has become another's: see :class:`airflow_arbiter.meeting.SocketFile`."""
    found = Path(told["path"]).lstat()
    if [found.st_dev, found.st_ino, found.st_mtime_ns] == list(told["identity"]):
        _remove(told["path"])


if __name__ == "__main__":
    main()
