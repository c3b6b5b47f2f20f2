"""The real Airflow API server, on a metadata database of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.server import Server
from harness.starting import Start


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated SQLite database; every server of the session shares it."""
    home = tmp_path_factory.mktemp("airflow")
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], env=_env(home), check=True, timeout=170
    )
    return home


@pytest.fixture
def serve_airflow(start: Start, airflow_home: Path) -> Start:
    """Start the API server from our command line and wait until all its workers are ready."""

    def start_and_wait(
        *arguments: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        workers: int | None = 4,
    ) -> Server:
        server = start(
            *arguments,
            command=command or [sys.executable, "-m", "airflow_arbiter"],
            env={**_env(airflow_home), **(env or {})},
            workers=workers,
        )
        server.wait_ready(workers or 1)
        return server

    return start_and_wait


def _env(home: Path) -> dict[str, str]:
    """An environment in which nothing of this machine's own Airflow, if it has one, is seen."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return {
        **inherited,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__WORKER_TIMEOUT": "60",
    }
