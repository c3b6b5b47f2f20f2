"""
A server that is measured: how it is started, told to roll, and stopped.

Each runs in a session, a working directory and a home of its own, which are gone when it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

from bench.ruler import Pool, wait_for_full_set

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

SERVED = Path(__file__).resolve().parents[1] / "served"
"""What the servers serve."""

ROOT = SERVED.parents[1]
"""The checkout, whose airflow_arbiter is measured."""

BOOT_LIMIT_S = 120.0
STOP_LIMIT_S = 30.0
LEFTOVER_LIMIT_S = 10.0
SETTLE_S = 2.0
"""What a server gets after its boot to become quiet."""

NEVER_S = 24 * 3600
"""An interval for a server that may replace workers by age, but shall not while we look."""

_FOREIGN = (
    "AIRFLOW", "GUNICORN", "UVICORN", "GRANIAN", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "XDG_RUNTIME_DIR",
)  # fmt: skip
"""Beginnings of variables that would make this machine's servers other than those of the next."""


class ServerFailedError(Exception):
    """A server did not start; the message ends with what it logged last."""


class Server(ABC):
    """
    One running server, as a context manager.

    :param workers: how many.
    :param refresh_s: age at which a server that cannot be told replaces its workers, in seconds.
    :ivar old: pids of the workers of its boot.
    :ivar before: pids of all children there were with them.
    """

    name = ""
    label = ""
    needs = ""
    """The module without which it cannot be measured."""

    begins_by_age = False
    alone_with_one = False
    """Whether one worker is the master itself."""

    def __init__(self, workers: int, *, refresh_s: int = NEVER_S) -> None:
        self.workers = workers
        self.refresh_s = refresh_s
        self.port = _free_port()
        self.full_at = 0.0

    @abstractmethod
    def command(self) -> list[str]:
        """The command line, without the interpreter."""

    @classmethod
    def is_installed(cls) -> bool:
        """Whether this Python has what it needs."""
        return not cls.needs or importlib.util.find_spec(cls.needs) is not None

    def prepare(self, home: Path) -> None:
        """Put into the home what the server expects to find there."""
        self._home = home

    def wait_until_up(self) -> None:
        """Return when all workers serve."""
        self.old = wait_for_full_set(self.pool, self.workers, BOOT_LIMIT_S)

    def begin_roll(self) -> None:
        """Tell the master to replace its workers; where age begins the roll, there is nothing to do."""
        if not self.begins_by_age:
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
        return "\n".join(self.log().splitlines()[-lines:])

    def log(self) -> str:
        """What the server wrote; after its end too."""
        with contextlib.suppress(FileNotFoundError):
            self._log = self._log_path.read_text(errors="replace")
        return self._log

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.prepare(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))))
            self._log_path = self._home / "log"
            stack.callback(self.log)
            log = stack.enter_context(self._log_path.open("wb"))
            self.began_at = time.monotonic()
            self._process = subprocess.Popen(
                [sys.executable, *self.command()],
                cwd=self._home,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(self._stop)
            self.pool = Pool(self.pid, self.port, alone=self.alone_with_one and self.workers == 1)
            try:
                self.wait_until_up()
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

    def environment(self) -> dict[str, str]:
        """This process's, without what would make a server another one."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        return {
            **kept,
            # gunicorn's control socket, which Airflow leaves on, lives in the home directory: with the real
            # one, two servers of one user would share it.
            "HOME": str(self._home),
            "AIRFLOW_HOME": str(self._home / "airflow"),
            "AIRFLOW__API__WORKER_REFRESH_INTERVAL": str(self.refresh_s),
            "PYTHONPATH": os.pathsep.join([str(SERVED), str(ROOT)]),
            # As an installer does: otherwise those who are imported from a checkout are compiled each time.
            "PYTHONDONTWRITEBYTECODE": "",
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
