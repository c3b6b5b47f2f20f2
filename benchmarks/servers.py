"""
The servers that are compared: how each is started, told to roll, and stopped.

Each runs in a session, a working directory and a home of its own, which are gone when it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from watch import Pool, wait_for_full_set

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

HERE = Path(__file__).resolve().parent
APP = "tiny:app"
BOOT_LIMIT_S = 120.0
STOP_LIMIT_S = 30.0
LEFTOVER_LIMIT_S = 10.0
SETTLE_S = 2.0
"""What a server gets after its boot to become quiet."""

NEVER_S = 24 * 3600
"""An interval for a server that may replace workers by age, but shall not while we look."""

_FOREIGN = ("AIRFLOW", "GUNICORN", "UVICORN", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "XDG_RUNTIME_DIR")
"""Beginnings of variables that would make this machine's servers other than those of the next."""


class ServerFailedError(Exception):
    """A server did not start; the message ends with what it logged last."""


class Server:
    """
    One running server, as a context manager.

    :param workers: how many.
    :param refresh_s: age at which a server that cannot be told replaces its workers, in seconds.
    """

    name = ""
    label = ""
    begins_by_age = False

    def __init__(self, workers: int, *, refresh_s: int = NEVER_S) -> None:
        self.workers = workers
        self.refresh_s = refresh_s
        self.port = _free_port()
        self.full_at = 0.0

    def command(self) -> list[str]:
        """The command line, without the interpreter."""
        raise NotImplementedError

    def begin_roll(self) -> None:
        """Tell the master to replace its workers."""
        self._process.send_signal(signal.SIGHUP)

    def wait_until_due(self, lead_s: float) -> None:
        """Let the boot settle; where age begins the roll, return about that long before it."""
        wait_s = SETTLE_S
        if self.begins_by_age:
            # The age is counted from before the first fork, so that this is late by the time of the boot.
            wait_s = max(wait_s, self.refresh_s - lead_s)
        time.sleep(max(0.0, self.full_at + wait_s - time.monotonic()))

    @property
    def pid(self) -> int:
        """The master's."""
        return self._process.pid

    def log_tail(self, lines: int = 15) -> str:
        """What the server wrote last."""
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roll-")))
            self._log_path = self._home / "log"
            log = stack.enter_context(self._log_path.open("wb"))
            self._process = subprocess.Popen(
                [sys.executable, *self.command()],
                cwd=self._home,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(self._stop)
            self.pool = Pool(self.pid, self.port)
            try:
                self.old = wait_for_full_set(self.pool, self.workers, BOOT_LIMIT_S)
            except TimeoutError as error:
                raise ServerFailedError(f"{self.label}: {error}\n{self.log_tail()}") from error
            self.before = self.pool.children()
            self.full_at = time.monotonic()
            self._leave = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        return {
            **kept,
            # gunicorn's control socket, which Airflow leaves on, lives in the home directory: with the real
            # one, two servers of one user would share it.
            "HOME": str(self._home),
            "AIRFLOW_HOME": str(self._home / "airflow"),
            "AIRFLOW__API__WORKER_REFRESH_INTERVAL": str(self.refresh_s),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _stop(self) -> None:
        """End what we started: the master by its pid; its group by force only if that does not do."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            _say(f"{self.label} did not stop within {STOP_LIMIT_S:g} s of SIGTERM and is killed")
        # The group has the pid of the master; nobody else can get that number while the group has a member.
        # What was ours can outlive the master by a moment: the resource tracker ends when its pipe does.
        deadline = time.monotonic() + LEFTOVER_LIMIT_S
        with contextlib.suppress(ProcessLookupError):
            while self._process.returncode is not None and time.monotonic() < deadline:
                os.killpg(self.pid, 0)
                time.sleep(0.05)
            os.killpg(self.pid, signal.SIGKILL)
            _say(f"{self.label} left processes behind, which were killed")
        self._process.wait()


class Ours(Server):
    name = "ours"
    label = "airflow_arbiter"

    def command(self) -> list[str]:
        bind = f"127.0.0.1:{self.port}"
        return ["-m", "airflow_arbiter", "--bind", bind, "--workers", str(self.workers), APP]


class AirflowGunicorn(Server):
    """Airflow's own arbiter, which has no command: a roll begins when its timer is up."""

    name = "airflow"
    label = "Airflow gunicorn mode"
    begins_by_age = True

    def command(self) -> list[str]:
        script = str(HERE / "airflow_gunicorn.py")
        return [script, "--port", str(self.port), "--workers", str(self.workers)]

    def begin_roll(self) -> None:
        """Wait: gunicorn's SIGHUP would replace all workers at once, ungated, which is not its roll."""


class Uvicorn(Server):
    name = "uvicorn"
    label = "uvicorn"

    def command(self) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        return ["-m", "uvicorn", *where, "--workers", str(self.workers), "--no-access-log", APP]


SERVERS: tuple[type[Server], ...] = (Ours, AirflowGunicorn, Uvicorn)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
