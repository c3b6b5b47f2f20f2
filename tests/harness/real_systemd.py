"""systemd itself, as a user's manager of services, in namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness.waiting import eventually

_PROGRAM = Path("/lib/systemd/systemd")

_FIRST_PROCESS = """
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
"$0" --user --log-target=console &
wait
"""
"""A user's manager runs only where there is a system's, whose sign is this folder."""


class RealSystemd:
    """
    A manager of services; skips the test where there can be none.

    :param folder: for its sockets and units.
    :ivar service_log: what services print, where their units say so.
    """

    def __init__(self, folder: Path) -> None:
        if not _PROGRAM.exists() or not all(map(shutil.which, ("systemctl", "unshare", "nsenter"))):
            pytest.skip("systemd is not installed here")
        self._units = folder / "config" / "systemd" / "user"
        self._units.mkdir(parents=True)
        self._log = folder / "systemd.log"
        self.service_log = folder / "service.log"
        places = {"XDG_RUNTIME_DIR": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
        self._env = {**os.environ, **places}
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                [*unshare, "sh", "-euc", _FIRST_PROCESS, str(_PROGRAM)],
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )
        try:
            eventually(lambda: self._popen.poll() is not None or self._is_there(), what="systemd runs")
            if self._popen.poll() is not None:
                pytest.skip(f"systemd cannot run here: {self._log.read_text()[-200:].strip()}")
        except BaseException:
            self.close()
            raise

    def _is_there(self) -> bool:
        state = self._systemctl("show", "--property=SystemState", "--value").stdout.strip()
        return state in ("running", "degraded")

    def close(self) -> None:
        """End it and all of its services, and show what services have said: to be seen where a test fails."""
        if self.service_log.exists():
            sys.stdout.write(self.service_log.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def add(self, name: str, text: str) -> None:
        """Install a unit."""
        (self._units / name).write_text(text)

    def run(self, *words: str) -> str:
        """Do what an operator does with ``systemctl``, and return what it says."""
        done = self._systemctl(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}{self._log.read_text()[-2000:]}"
        return done.stdout.strip()

    def _systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        # From within: systemd does not answer whom it cannot see.
        first = next(iter(psutil.Process(self._popen.pid).children()), None)
        enter = ["nsenter", f"--target={0 if first is None else first.pid}", "--mount", "--pid"]
        command = [*enter, "systemctl", "--user", *words]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=60)

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.run("show", unit, f"--property={what}", "--value")
