"""Fixtures for tests of real servers: each gets a port and a name of its own and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.server import Server, free_port
from harness.starting import SetFault, Start
from xprocess import ProcessStarter

HARNESS = Path(__file__).parent / "harness"

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests by their folder."""
    for item in items:
        folder = item.path.parent.name
        if folder != "unit":
            item.add_marker(folder)


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """The folder in which the app looks for its faults."""
    folder = tmp_path / "faults"
    folder.mkdir()
    return folder


@pytest.fixture
def set_fault(faults: Path) -> SetFault:
    """Switch faults of the app on and off."""

    def switch(where: str, what: str) -> None:
        # Renamed into place: a process that looks sees the old text or the new one.
        (faults.parent / "fault").write_text(what)
        (faults.parent / "fault").rename(faults / where)

    return switch


@pytest.fixture
def start(request: pytest.FixtureRequest, xprocess: Any, faults: Path) -> Iterator[Start]:
    """
    Start servers for a test; they are stopped after it, and a worker that outlives its master is a failure.

    Does not wait for the server to be ready: some never are.
    """
    servers: list[Server] = []

    def start_server(
        *arguments: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        workers: int | None = 4,
    ) -> Server:
        port = free_port()
        command_line = [
            *(command or [sys.executable, "-m", "airflow_arbiter", "faulty:app"]),
            f"--bind=127.0.0.1:{port}",
            *([] if workers is None else [f"--workers={workers}"]),
            *arguments,
        ]

        class Starter(ProcessStarter):  # type: ignore[misc]
            args = command_line

            def startup_check(self) -> bool:
                return True  # the tests wait on facts of their own

        inherited = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
        Starter.env = {**inherited, "PYTHONPATH": str(HARNESS), "FAULTS": str(faults), **(env or {})}
        name = re.sub(r"\W+", "-", request.node.name)[:60] + f"-{os.getpid()}-{next(_numbers)}"
        _, log = xprocess.ensure(name, Starter, persist_logs=False)
        server = Server(xprocess.resources[-1].popen, port=port, log=Path(str(log)))
        servers.append(server)
        return server

    yield start_server
    for server in servers:
        server.stop()
    orphans = [pid for server in servers for pid in server.orphans()]
    assert not orphans, f"workers outlived their master: {orphans}"


@pytest.fixture
def serve(start: Start) -> Start:
    """Start a server of the faulty app and wait until all its workers are ready."""

    def start_and_wait(
        *arguments: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        workers: int | None = 4,
    ) -> Server:
        server = start(*arguments, command=command, env=env, workers=workers)
        server.wait_ready(workers or 1)
        return server

    return start_and_wait
