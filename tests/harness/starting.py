"""Starting servers, and the types of the fixtures that do."""

from __future__ import annotations

import itertools
import os
import re
import sys
from pathlib import Path
from typing import Any, Protocol

from xprocess import ProcessStarter

from harness.server import Server, free_port

HARNESS = Path(__file__).parent
BIND = "--bind=127.0.0.1:{port}"

_numbers = itertools.count()


class Start(Protocol):
    """
    Starts a server, and does not wait for it to be ready: some never are.

    `listen` tells it where to listen, in its own words.
    """

    def __call__(
        self,
        *arguments: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        workers: int | None = 4,
        listen: str = BIND,
    ) -> Server: ...


class SetFault(Protocol):
    """Switches a fault of the app on, for processes that look from now on; an empty one switches it off."""

    def __call__(self, where: str, what: str) -> None: ...


class Servers:
    """
    The servers of one test, or of one module's tests.

    :param owner: the name of the test or module.
    :param env: what they see in their environment beside this process's.
    """

    def __init__(self, xprocess: Any, *, owner: str, env: dict[str, str]) -> None:
        self._xprocess = xprocess
        self._owner = re.sub(r"\W+", "-", owner)[:60]
        self._env = env
        self._servers: list[Server] = []

    def start(
        self,
        *arguments: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        workers: int | None = 4,
        listen: str = BIND,
    ) -> Server:
        """Start one more. See :class:`Start`."""
        port = free_port()
        command_line = [
            *(command or [sys.executable, "-m", "airflow_arbiter", "faulty:app"]),
            *listen.format(port=port).split(),
            *([] if workers is None else [f"--workers={workers}"]),
            *arguments,
        ]

        class Starter(ProcessStarter):  # type: ignore[misc]
            args = command_line

            def startup_check(self) -> bool:
                return True  # the tests wait on facts of their own

        inherited = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
        path = os.pathsep.join(filter(None, (str(HARNESS), os.environ.get("PYTHONPATH"))))
        Starter.env = {**inherited, "PYTHONPATH": path, **self._env, **(env or {})}
        name = f"{self._owner}-{os.getpid()}-{next(_numbers)}"
        _, log = self._xprocess.ensure(name, Starter, persist_logs=False)
        server = Server(self._xprocess.resources[-1].popen, port=port, log=Path(str(log)))
        self._servers.append(server)
        return server

    def stop(self) -> None:
        """Stop them all; a worker that outlives its master is a failure."""
        for server in self._servers:
            server.stop()
        orphans = [pid for server in self._servers for pid in server.orphans()]
        assert not orphans, f"workers outlived their master: {orphans}"
