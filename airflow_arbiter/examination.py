"""
A look at a server of one worker, which is booted for that and ended again.

Owns that server's life, which must neither harm one that runs nor outlive whoever asked. Of what its
configuration has to do without, :mod:`airflow_arbiter.trial` takes care; what the findings mean is said by
:mod:`airflow_arbiter.doctor`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import psutil

from airflow_arbiter import client, finding, meeting, memory
from airflow_arbiter.client import LostError, NoServerError
from airflow_arbiter.doctor import Findings, Running, mib
from airflow_arbiter.errors import ArbiterError

LEAST_ROOM_BYTES = 512 * 1024**2
"""What a server of one worker may take where none runs to compare with: about Airflow's."""

LONGEST_BOOT_S = 600.0
CONFIGURED = "configured"
"""The file in which that server tells what it is configured to, in its folder."""

TIMES = ("worker_boot_timeout", "graceful_timeout", "termination_grace_period")
"""What is told there."""

_LEAVE_S = 60.0
_PR_SET_PDEATHSIG = 1
"""Source: prctl(2)."""

_OTHERS = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "GUNICORN_FD", "GUNICORN_PID")
"""What would make a second server speak for the first, or take its sockets."""


def examine(arguments: Sequence[str]) -> Findings:
    """
    Boot a server of one worker, look at it, and end it.

    :param arguments: of ``python -m airflow_arbiter``: an app, options.
    :raises ArbiterError: when it does not come up, there is no room for it, or it goes meanwhile.
    """
    try:
        running = _running()
        _make_sure_of_room(_room_bytes(memory.Container()), running)
        with _ending_by_signals(), tempfile.TemporaryDirectory(prefix="arbiter") as made:
            folder = Path(made)
            began_at = time.monotonic()
            with _serving(arguments, folder) as process:
                return _look(process, folder, running, began_at)
    except (psutil.Error, OSError) as error:
        raise ArbiterError(f"it could not be measured: {error}") from error


def _running() -> tuple[Running, ...]:
    """Find our user's servers that run here; one that goes meanwhile is left out."""
    found = []
    for pid in filter(None, map(meeting.pid_of, finding.living())):
        with contextlib.suppress(psutil.Error):
            master = psutil.Process(pid)
            master_bytes: int = master.memory_info().rss
            held_bytes, largest_bytes = master_bytes, 0
            for worker in master.children():
                with contextlib.suppress(psutil.Error):
                    largest_bytes = max(largest_bytes, worker.memory_info().rss)
                    held_bytes += memory.private_bytes(worker.pid)
            found.append(
                Running(pid=pid, held_bytes=held_bytes, one_worker_bytes=master_bytes + largest_bytes)
            )
    return tuple(found)


def _room_bytes(container: memory.Container) -> int:
    """Tell what may still be taken, of this machine and of the container."""
    available: int = psutil.virtual_memory().available
    room_bytes = container.room_bytes()
    return available if room_bytes is None else min(available, room_bytes)


def _make_sure_of_room(room_bytes: int, running: Sequence[Running]) -> None:
    """
    Refuse where the kernel might have to kill: in a container it may take all of it, with what serves there.

    :raises ArbiterError: where there is too little.
    """
    needed_bytes = max((server.one_worker_bytes for server in running), default=LEAST_ROOM_BYTES)
    if room_bytes < needed_bytes:
        like = "as the one that runs" if running else "where none runs to compare with"
        raise ArbiterError(
            f"a server of one worker may take {mib(needed_bytes)} ({like}), and {mib(room_bytes)} are left "
            "here: what runs could get killed; try it in a container of its own"
        )


@contextlib.contextmanager
def _ending_by_signals() -> Iterator[None]:
    """Have whatever is under way cleaned up when we are asked to end."""

    def leave(sig: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + sig)  # as a shell tells it

    heard = [sig for sig in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(sig) != signal.SIG_IGN]
    before = {sig: signal.signal(sig, leave) for sig in heard}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


@contextlib.contextmanager
def _serving(arguments: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = (
        f"--bind=unix:{folder / 'http'}",
        f"--control-socket={folder / 'control'}",
        f"--pid={folder / 'pid'}",
        "--workers=1",
    )
    environment = {name: value for name, value in os.environ.items() if name not in _OTHERS}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # ourselves
            [sys.executable, "-m", "airflow_arbiter.trial", *arguments, *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_bind_to(os.getpid()),  # noqa: PLW1509  # no thread runs here
            start_new_session=True,  # what a terminal sends is for us: a master takes SIGHUP for a reload
        )
    try:
        yield process
    finally:
        _end(process)


def _bind_to(parent: int) -> Callable[[], None]:
    """Let a child be the first that the kernel takes when memory runs out, and end when we do."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        with contextlib.suppress(AttributeError):  # of Linux
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            os._exit(0)

    return prepare


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the throw-away server, at once where it takes too long or we are asked again."""
    process.terminate()
    try:
        process.wait(_LEAVE_S)
    except subprocess.TimeoutExpired:
        _kill(process)
    except BaseException:
        _kill(process)
        raise


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _look(
    process: subprocess.Popen[bytes], folder: Path, running: tuple[Running, ...], began_at: float
) -> Findings:
    seen = _wait(process, folder)
    start_s = time.monotonic() - began_at
    configured = json.loads((folder / CONFIGURED).read_text())
    worker = psutil.Process(seen["workers"][0]["pid"]).memory_full_info()
    master_bytes: int = psutil.Process(process.pid).memory_info().rss
    held_bytes = master_bytes + worker.uss + sum(server.held_bytes for server in running)
    return Findings(
        start_s=start_s,
        boot_s=seen["counters"]["boot"]["max_s"],
        master_bytes=master_bytes,
        private_bytes=worker.uss,
        shared_bytes=max(0, worker.rss - worker.uss),
        room_bytes=_room_bytes(memory.Container()) + held_bytes,
        cpus=_cpus(),
        boot_timeout_s=configured["worker_boot_timeout"],
        drain_s=configured["graceful_timeout"],
        grace_s=configured["termination_grace_period"],
        running=running,
    )


def _wait(process: subprocess.Popen[bytes], folder: Path) -> client.AsJson:
    """
    Wait until its worker is available.

    :raises ArbiterError: when that does not come about.
    """
    ends_at = time.monotonic() + LONGEST_BOOT_S
    while process.poll() is None and time.monotonic() < ends_at:
        with contextlib.suppress(NoServerError, LostError):
            seen = client.report(folder / "control")
            if seen["pool"]["available"]:
                return seen
        time.sleep(0.1)
    sys.stderr.write((folder / "log").read_text(errors="replace"))
    raise ArbiterError("the server did not come up; what it has said is above")


def _cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Tell how many processors may be used: by affinity, and by the container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, (root / "cpu.max").read_text().split())
        cpus = min(cpus, math.ceil(quota / period))
    return max(1, cpus)
