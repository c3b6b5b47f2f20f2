"""The warm-up of the real Airflow: what it asks, and that it leaves nothing that must not cross a fork."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
from harness.airflow_command import HEALTH
from harness.postgres import Postgres
from harness.starting import Start

PLUGIN = """
import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from airflow import settings
from airflow.plugins_manager import AirflowPlugin
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
threading.Thread(target=threading.Event().wait, name="plugin-poller", daemon=True).start()
kept = settings.engine.connect()

class Leaving(AirflowPlugin):
    name = "leaving"

    @classmethod
    def on_load(cls, *args, **kwargs):
        cls.pool = ThreadPoolExecutor(thread_name_prefix="of-on-load")
        cls.pool.submit(int)
        cls.connections = asyncio.run(connect())

async def connect():
    connection = settings.async_engine.connect()
    await connection.start()
    return connection
"""


def test_the_warm_up_leaves_nothing_in_the_master(serve_airflow: Start, airflow_home: Path) -> None:
    """All paths are asked; no thread and no connection is left that the strictest audit finds."""
    pytest.importorskip("statsd", reason="only with Airflow's extra `statsd`")
    server = serve_airflow("--fork-safety=strict", env={"AIRFLOW__METRICS__STATSD_ON": "True"}, workers=2)
    assert "Could not configure StatsClient" not in server.log()
    (warmed,) = server.events("preload.warmed")
    assert warmed.values["paths"] == f"{HEALTH} /api/v2/version /openapi.json"
    assert warmed.values["refused"] == "/ui/config"
    assert server.events("preload.warmup_failed") == []
    assert server.events("preload.tainted") == []
    master = psutil.Process(server.pid)
    assert master.num_threads() == 1
    assert [
        file.path for file in master.open_files() if file.path.startswith(f"{airflow_home}/airflow.db")
    ] == []
    (listening,) = (found for found in master.net_connections() if found.type == socket.SOCK_STREAM)
    assert listening.laddr.port == server.port


@pytest.mark.parametrize(
    ("option", "maker", "because"),
    [
        ("AIRFLOW__METRICS__OTEL_ON", "opentelemetry.sdk.metrics.", "[metrics] otel_on"),
        ("AIRFLOW__TRACES__OTEL_ON", "opentelemetry.sdk._shared_internal", "[traces] otel_on"),
    ],
)
def test_airflows_exporters_are_named(serve_airflow: Start, option: str, maker: str, because: str) -> None:
    """Airflow starts OpenTelemetry's threads while it is imported; the warning says for which option."""
    pytest.importorskip("opentelemetry.sdk", reason="only with Airflow's extra `otel`")
    env = {option: "True", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    server = serve_airflow(env=env, workers=1)
    found = [event.values for event in server.events("fork_safety.found")]
    assert [
        str(values["made_by"])[: len(maker)] for values in found if "exporter" in str(values["kind"])
    ] == [maker]
    assert {values["kind"] for values in found} <= {"exporter's thread", "native thread"}  # gRPC's
    (exporter,) = (values for values in found if "exporter" in str(values["kind"]))
    assert f"Airflow starts it for {because}, which fork_safety = strict excludes" in str(exporter["made_by"])


def test_a_plugin_that_is_not_safe_to_fork_is_named(
    start: Start, airflow_env: dict[str, str], tmp_path: Path
) -> None:
    """Each thread, exporter and database connection is told with the plugin that made it."""
    pytest.importorskip("opentelemetry.sdk", reason="only with Airflow's extra `otel`")
    plugin = tmp_path / "leaving_plugin.py"
    plugin.write_text(PLUGIN)
    env = {**airflow_env, "AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path)}
    server = start("--fork-safety=strict", command=[sys.executable, "-m", "airflow_arbiter"], env=env)
    assert server.wait_exit(90) == 3
    (error,) = [line for line in server.log().splitlines() if "app.load_failed" in line]
    for kind in ("thread 'plugin-poller'", "exporter's thread 'Otel", "database connection of sqlite3"):
        assert kind in error
    assert "thread 'of-on-load_0', made by leaving_plugin (" in error
    assert "database connection of sqlalchemy.dialects.sqlite.aiosqlite, made by " in error
    findings = error.partition("strict): ")[2].partition(". Make these")[0].split("; ")
    (other,) = (finding for finding in findings if f"{plugin}:" not in finding)
    assert "made by unknown (kept by aiosqlite.core.Connection" in other


BOUND_PLUGIN = """
import asyncio
from airflow.plugins_manager import AirflowPlugin

class Client:
    \"\"\"As clients of HTTP are: it belongs to the event loop on which it was made.\"\"\"

    def __init__(self):
        self.loop = asyncio.get_running_loop()

    async def ask(self):
        self.loop.call_soon(int)

class Middleware:
    client = None

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            if self.client is None:
                self.client = Client()
            await self.client.ask()
        await self.app(scope, receive, send)

class Binding(AirflowPlugin):
    name = "binding"
    fastapi_root_middlewares = [{"name": "bound", "middleware": Middleware, "args": [], "kwargs": {}}]
"""


def test_a_plugin_whose_client_is_bound_to_the_event_loop(start_command: Start, tmp_path: Path) -> None:
    """`airflow api-server` starts again without the warm-up, and workers answer; also after a reload."""
    (tmp_path / "binding_plugin.py").write_text(BOUND_PLUGIN)
    server = start_command(env={"AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path)}, workers=1)
    server.wait_ready(1, within_s=120)
    (tainted,) = server.events("preload.tainted")
    assert str(tainted.values["left"]).startswith("an event loop, held by ")
    assert "binding_plugin.Client" in str(tainted.values["left"])
    assert server.get("/api/v2/version")[0] == 200
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed", within_s=120)
    assert server.events("reload.refused") == []
    assert server.get("/api/v2/version")[0] == 200


def test_a_warm_up_that_hangs_on_the_database(
    start: Start, airflow_env: dict[str, str], postgres: Postgres, postgres_env: dict[str, str]
) -> None:
    """A table that somebody has locked: no thread and no connection of the warm-up comes to the workers."""
    with postgres.locked("job"):
        server = start(
            "--fork-safety=strict",
            command=[sys.executable, "-m", "airflow_arbiter"],
            env={**airflow_env, **postgres_env},
            workers=1,
        )
        (tainted,) = server.wait_event("preload.tainted", within_s=120)
        assert str(tainted.values["left"]).startswith("thread ")
        server.wait_event("worker.unhealthy", within_s=60)
        assert psutil.Process(server.pid).num_threads() == 1
        assert _connections(server.pid, postgres) == []
    server.wait_ready(1, within_s=60)
    server.send(signal.SIGTERM)
    assert server.wait_exit(30) == 0


THREAD_PLUGIN = """
import threading
from airflow import settings
from airflow.plugins_manager import AirflowPlugin
from sqlalchemy import text

ready = threading.Event()

def work():
    session = settings.Session()
    session.execute(text("SELECT 4711"))
    ready.set()
    threading.Event().wait()

threading.Thread(target=work, daemon=True).start()
ready.wait()

class Working(AirflowPlugin):
    name = "working"
"""


def test_a_worker_that_leaves_says_nothing_on_the_connections_of_the_master(
    serve_airflow: Start, postgres: Postgres, postgres_env: dict[str, str], tmp_path: Path
) -> None:
    """A thread of the master's has a transaction; the worker has neither, and does not roll it back."""
    (tmp_path / "working_plugin.py").write_text(THREAD_PLUGIN)
    server = serve_airflow(env={**postgres_env, "AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path)}, workers=1)
    (worker,) = server.ready()
    psutil.Process(worker.pid).terminate()
    (left,) = server.wait_event("worker.exited")
    assert left.values["cause"] == "exit code 0"
    last = postgres.query("SELECT state FROM pg_stat_activity WHERE query = 'SELECT 4711'")
    assert last == [("idle in transaction",)]
    assert server.events("worker.exit_hook_failed") == []
    assert "Exception during reset" not in server.log()


def _connections(pid: int, postgres: Postgres) -> list[int]:
    """The local ports of a process's connections to the database."""
    connections = psutil.Process(pid).net_connections()
    return [seen.laddr.port for seen in connections if seen.raddr and seen.raddr.port == postgres.port]
