"""Connections to the metadata database belong to one process: shown on a real PostgreSQL."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from harness.airflow_command import HEALTH
from harness.load import Load
from harness.postgres import Postgres
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually

HOOKS = """
import asyncio

from airflow import settings
from sqlalchemy import text

async def _use_async_engine():
    async with settings.async_engine.connect() as connection:
        await connection.execute(text("SELECT 1"))

def use(server, worker):
    # The main thread's session stays open, in a transaction, as a plugin's may that has asked something.
    settings.Session().execute(text("SELECT 'in use in the master'"))
    # These go back into the pools.
    connections = [settings.engine.connect() for _ in range(3)]
    for connection in connections:
        connection.execute(text("SELECT 1"))
        connection.close()
    asyncio.run(_use_async_engine())

pre_fork = use
child_exit = use  # after the last fork, where nobody gives back anything until the master's image is replaced
"""


@pytest.mark.timeout(450)
def test_no_connection_of_the_master_reaches_a_worker(
    start_command: Start, postgres: Postgres, postgres_env: dict[str, str], tmp_path: Path
) -> None:
    """
    The master uses its pools before every fork; under load and over a reload, no socket is in two processes,
    no backend serves two, and a worker that has left, or an earlier image of the master, leaves no backend
    behind.
    """
    (tmp_path / "hooks.py").write_text(HOOKS)
    server = start_command(env={**postgres_env, "GUNICORN_CMD_ARGS": f"--config={tmp_path / 'hooks.py'}"})
    server.wait_ready(2, within_s=120)
    sync, on_loop = (
        Load(server.port, path=HEALTH, clients=4, pause_s=0.05),
        Load(server.port, path="/probe/database", clients=4, pause_s=0.05),
    )
    with sync, on_loop:
        first = _wait_connected(server, postgres)
        old = _backends(set().union(*first.values()), postgres)
        server.send(signal.SIGTTOU)
        old |= eventually(
            lambda: _backends(_database_ports(server.pid, postgres), postgres),
            what="the master has used its pools",
        )
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed", within_s=150)
        server.send(signal.SIGTTIN)
        second = _wait_connected(server, postgres)
        _assert_apart(server, postgres)
    assert (sync.failures, on_loop.failures) == ({}, {})
    assert not set(first) & set(second)
    eventually(
        lambda: not old & {backend.pid for backend in postgres.backends()},
        what="the backends of the old workers and of the old image are gone",
    )
    assert "worker.exit_hook_failed" not in server.log()
    assert "worker.prepare_failed" not in server.log()
    assert "Exception closing connection" not in server.log()
    server.send(signal.SIGTERM)
    assert server.wait_exit(60) == 0
    eventually(lambda: postgres.backends() == [], what="all backends are gone")


def _wait_connected(server: Server, postgres: Postgres) -> dict[int, set[int]]:
    """Wait until each worker has connections of its own, and return them by pid."""

    def connections() -> dict[int, set[int]]:
        _assert_apart(server, postgres)
        found = {worker.pid: _database_ports(worker.pid, postgres) for worker in server.ready()}
        return found if len(found) == 2 and all(found.values()) else {}

    return eventually(connections, what="every worker has asked the database")


def _assert_apart(server: Server, postgres: Postgres) -> None:
    """No connection to the database is open in two processes."""
    pids = [server.pid, *(worker.pid for worker in server.workers())]
    ports = [port for pid in pids for port in _database_ports(pid, postgres)]
    assert len(ports) == len(set(ports))


def _backends(ports: set[int], postgres: Postgres) -> set[int]:
    """The backends at the other end now; a port's number may soon be that of another connection."""
    return {backend.pid for backend in postgres.backends() if backend.client_port in ports}


def _database_ports(pid: int, postgres: Postgres) -> set[int]:
    """The local ports of a process's connections to the database, inherited ones included."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return set()
    return {c.laddr.port for c in connections if c.raddr and c.raddr.port == postgres.port}


NO_DATABASE_NEEDED = [
    pytest.param({"AIRFLOW_API_APPS": "execution"}, id="execution"),
    pytest.param({"AIRFLOW__API__HEALTH_CHECK_PATH": "/api/v2/version"}, id="a-path-without-database"),
]


@pytest.mark.parametrize("env", NO_DATABASE_NEEDED)
def test_both_connections_are_there_before_a_worker_listens(
    serve_airflow: Start, postgres: Postgres, postgres_env: dict[str, str], env: dict[str, str]
) -> None:
    """Whatever the health check asks: a newcomer has them, and while it cannot, it does not listen."""
    server = serve_airflow(env={**postgres_env, **env}, workers=1)
    assert len(postgres.backends()) == 2
    (old,) = server.ready()
    with postgres.away():
        psutil.Process(old.pid).kill()
        server.wait_event("worker.connect_failed")
        assert server.ready() == []
    server.wait_ready(1)
    assert len(postgres.backends()) == 2


def test_the_first_workers_listen_without_connections(
    serve_airflow: Start, postgres: Postgres, postgres_env: dict[str, str]
) -> None:
    """An outage at a first start, with a health check that passes all the same."""
    env = {**postgres_env, "AIRFLOW__API__HEALTH_CHECK_PATH": "/api/v2/version"}
    with postgres.away():
        server = serve_airflow(env=env, workers=1)
        assert server.get("/api/v2/version")[0] == 200
        assert len(server.events("worker.connect_failed")) == 1
