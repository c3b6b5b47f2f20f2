"""The real Airflow API server, on a metadata database of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.airflow_command import AIRFLOW, RunAirflow
from harness.postgres import Postgres, running_postgres
from harness.server import Server
from harness.starting import BIND, HARNESS, Servers, Start


@pytest.fixture(scope="session")
def airflow_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """
    An environment with a migrated SQLite database and a plugin; every server of the session shares it.

    Nothing of this machine's own Airflow, if it has one, is seen.
    """
    home = tmp_path_factory.mktemp("airflow")
    (home / "plugins").mkdir()
    shutil.copy(HARNESS / "airflow_plugin.py", home / "plugins")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    inherited.pop("GUNICORN_CMD_ARGS", None)
    env = {
        **inherited,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__WORKER_TIMEOUT": "60",
    }
    subprocess.run([*AIRFLOW, "db", "migrate"], env=env, check=True, timeout=170, stdout=subprocess.DEVNULL)
    return env


@pytest.fixture(scope="session")
def postgres(airflow_env: dict[str, str]) -> Iterator[Postgres]:
    """A PostgreSQL with Airflow's tables. A test that takes it away brings it back."""
    with running_postgres() as server:
        subprocess.run(
            [*AIRFLOW, "db", "migrate"],
            env={**airflow_env, **_database_env(server)},
            check=True,
            timeout=170,
            capture_output=True,
        )
        yield server


@pytest.fixture(scope="session")
def postgres_env(postgres: Postgres) -> dict[str, str]:
    """What makes the API server use the PostgreSQL."""
    return _database_env(postgres)


def _database_env(postgres: Postgres) -> dict[str, str]:
    return {
        # libpq waits for ever unless it is told otherwise.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"{postgres.url('psycopg2')}?connect_timeout=2",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": postgres.url("asyncpg"),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    }


@pytest.fixture(scope="session")
def airflow_home(airflow_env: dict[str, str]) -> Path:
    """Airflow's home."""
    return Path(airflow_env["AIRFLOW_HOME"])


@pytest.fixture(scope="session")
def run_airflow(airflow_env: dict[str, str]) -> RunAirflow:
    """Run one command of Airflow to its end."""

    def run(
        *arguments: str, env: dict[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*AIRFLOW, *arguments],
            env={**airflow_env, **(env or {})},
            check=check,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def serve_airflow(start: Start, airflow_env: dict[str, str]) -> Start:
    """Start the API server from our command line and wait until all its workers are ready."""

    def start_and_wait(
        *arguments: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        workers: int | None = 4,
        listen: str = BIND,
    ) -> Server:
        server = start(
            *arguments,
            command=command or [sys.executable, "-m", "airflow_arbiter"],
            env={**airflow_env, **(env or {})},
            workers=workers,
            listen=listen,
        )
        server.wait_ready(workers or 1, within_s=120)
        return server

    return start_and_wait


def api_server(start: Start, airflow_env: dict[str, str]) -> Start:
    """Make a starter of `airflow api-server` with `server_type = gunicorn`, which does not wait."""

    def start_command(
        *arguments: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        workers: int | None = 2,
        listen: str = "--host=127.0.0.1 --port={port}",
    ) -> Server:
        return start(
            *arguments,
            command=command or [*AIRFLOW, "api-server"],
            env={**airflow_env, "AIRFLOW__API__SERVER_TYPE": "gunicorn", **(env or {})},
            workers=workers,
            listen=listen,
        )

    return start_command


@pytest.fixture
def start_command(start: Start, airflow_env: dict[str, str]) -> Start:
    """Start `airflow api-server` with `server_type = gunicorn`; 2 workers."""
    return api_server(start, airflow_env)


@pytest.fixture(scope="module")
def start_shared(
    request: pytest.FixtureRequest, xprocess: Any, airflow_env: dict[str, str]
) -> Iterator[Start]:
    """Start `airflow api-server` for all tests of a module."""
    servers = Servers(xprocess, owner=request.module.__name__, env={})
    yield api_server(servers.start, airflow_env)
    servers.stop()
