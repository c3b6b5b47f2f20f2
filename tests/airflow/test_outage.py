"""
The metadata database goes away and comes back: shown on a real PostgreSQL.

Two ways to go: a crash, after which connections are refused, and a hang, in which they are taken and nobody
answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import psutil
import pytest
from harness.airflow_command import HEALTH
from harness.load import Load
from harness.postgres import Postgres
from harness.server import SeenEvent, Server
from harness.starting import Start
from harness.waiting import eventually

VERSION = "/api/v2/version"
"""What is answered without a database."""

BOOT_TIMEOUT_S = 10
WORKERS = 3

Outage = Callable[[Postgres], AbstractContextManager[None]]

OUTAGES = [
    pytest.param(Postgres.away, "health check answered 200, but its database is unhealthy", id="crash"),
    pytest.param(Postgres.hung, "health check timed out", id="hang"),
]


@pytest.fixture
def server(start_command: Start, postgres_env: dict[str, str]) -> Server:
    """The API server, for one test: it remembers for a minute that a young worker has died."""
    settings = {
        "AIRFLOW__API__WORKER_BOOT_TIMEOUT": str(BOOT_TIMEOUT_S),
        "AIRFLOW__API__HEALTH_CHECK_TIMEOUT": "3",
        # A poll that gets a connection that was kept waits for as long as the database hangs.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "1",
        # More than a test asks of a worker before it wants it due.
        "GUNICORN_CMD_ARGS": "--max-requests=400",
    }
    return start_command(env={**postgres_env, **settings}, workers=WORKERS)


@pytest.mark.parametrize(("outage", "trouble"), OUTAGES)
def test_a_rollout_waits_for_the_database(
    server: Server, postgres: Postgres, outage: Outage, trouble: str
) -> None:
    """
    Newcomers stall and say why, the old workers serve on and tell of the outage, and nobody but newcomers is
    killed; when the database is back, the rollout completes by itself.
    """
    old = {worker.pid for worker in server.wait_ready(WORKERS)}
    stalls, ends = _Since(server, "rollout.stalled"), _Since(server, "rollout.completed")
    killed = _Since(server, "worker.killed")
    with (
        Load(server.port, path=VERSION, clients=4, pause_s=0.1) as load,
        Load(server.port, path=HEALTH, clients=12, pause_s=2) as polls,
    ):
        eventually(lambda: _told(polls) == {"healthy"}, what="the database is told healthy")
        with outage(postgres):
            with Load(server.port, path=VERSION, clients=4) as wear:
                stall = stalls.wait()
            eventually(lambda: "unhealthy" in _told(polls), what="the outage is told", within_s=60)
            assert {worker.pid for worker in server.ready()} == old
            before = load.answered
            eventually(lambda: load.answered > before + 20, what="clients are served")
            assert {worker.pid for worker in server.ready()} == old
            assert ends.events() == []
        end = ends.wait()
    assert load.failures == wear.failures == {}
    assert polls.failures.keys() <= {"timeout"}  # what the database has not answered while it hung
    assert trouble in stall.values["cause"]
    assert {event.values["cause"].split(":")[0] for event in killed.events()} == {
        f"missed its boot deadline of {BOOT_TIMEOUT_S} s"
    }
    assert not old & {int(event.values["pid"]) for event in killed.events()}
    assert len(server.wait_ready(WORKERS)) == WORKERS
    assert int(end.values["replaced"]) >= 1
    assert _health(server) == "healthy"


def test_a_worker_that_dies_is_replaced_after_the_outage(server: Server, postgres: Postgres) -> None:
    """Its successor cannot prove itself and the pool is one short, until the database is back."""
    killed, *others = [worker.pid for worker in server.wait_ready(WORKERS)]
    stalls = _Since(server, "rollout.stalled")
    with Load(server.port, path=VERSION, clients=2, pause_s=0.5) as load:
        with postgres.away():
            os.kill(killed, signal.SIGKILL)
            stall = stalls.wait()
            assert [worker.pid for worker in server.ready()] == others
            assert _health(server) == "unhealthy"
            assert "its database is unhealthy" in stall.values["cause"]
        ready = {worker.pid for worker in server.wait_ready(WORKERS)}
    assert ready > set(others)
    assert killed not in ready
    assert sum(load.failures.values()) <= 2, "more was lost than the requests inside the killed worker"
    assert _health(server) == "healthy"


@pytest.mark.parametrize(("outage", "trouble"), OUTAGES)
def test_the_first_workers_wait_for_the_database(
    start: Start,
    airflow_env: dict[str, str],
    postgres: Postgres,
    postgres_env: dict[str, str],
    outage: Outage,
    trouble: str,
) -> None:
    """They listen and tell of the outage, for longer than a boot may take, and are ready when it is over."""
    with outage(postgres):
        server = start(
            f"--worker-boot-timeout={BOOT_TIMEOUT_S}",
            "--health-check-timeout=3",
            command=[sys.executable, "-m", "airflow_arbiter"],
            env={**airflow_env, **postgres_env},
            workers=2,
        )
        server.wait_event("worker.unhealthy", 2, within_s=60)
        assert _health(server) == "unhealthy"
        first = [worker.pid for worker in server.workers()]
        eventually(lambda: _youngest_uptime(first) > BOOT_TIMEOUT_S + 1, what="older than a boot may take")
        assert server.get(VERSION)[0] == 200
        assert server.ready() == []
    assert [worker.pid for worker in server.wait_ready(2)] == first
    assert _health(server) == "healthy"
    assert server.events("worker.exited") == []


class _Since:
    """The events of one name from now on."""

    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name
        self._before = len(server.events(name))

    def events(self) -> list[SeenEvent]:
        return self._server.events(self._name)[self._before :]

    def wait(self) -> SeenEvent:
        """Wait for the first."""
        return self._server.wait_event(self._name, self._before + 1, within_s=60)[self._before]


def _health(server: Server) -> str:
    """What a worker tells of its database."""
    return _database(server.get(HEALTH)[1])


def _told(polls: Load) -> set[str]:
    """What was told of the database so far."""
    return {_database(body) for body in set(polls.bodies) if body}


def _database(body: bytes) -> str:
    return str(json.loads(body)["metadatabase"]["status"])


def _youngest_uptime(pids: list[int]) -> float:
    return time.time() - max(float(psutil.Process(pid).create_time()) for pid in pids)
