"""Under Airflow the one log format is Airflow's: a line of ours cannot be told from a line of its own."""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections import defaultdict
from typing import Any

from harness.load import Client
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually

TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
CONSOLE_LINE = re.compile(
    rf"{TIMESTAMP} \[(info|warning|error) +\] \S.* +\[([\w.]+)\]( .*)? loc=\S+:\d+( .*)?"
)


def test_json_lines_of_all_are_alike(serve_airflow: Start) -> None:
    """gunicorn's, uvicorn's, Airflow's and our lines have the same keys in the same order, and come once."""
    server = serve_airflow(env={"AIRFLOW__LOGGING__JSON_LOGS": "True"}, workers=2)
    _live(server)
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for text in _after_start(server):
        line = json.loads(text)
        lines[line["logger"]].append(line)
    assert {"gunicorn.error", "uvicorn.error", "airflow_arbiter", "http.access"} <= set(lines)
    for line in itertools.chain.from_iterable(lines.values()):
        assert list(line)[:3] == ["timestamp", "level", "event"]
        assert re.fullmatch(TIMESTAMP, line["timestamp"])
        assert {"filename", "lineno"} <= set(line)
    ready = next(line for line in lines["airflow_arbiter"] if line["event"] == "worker.ready")
    assert {"pid", "generation", "age", "boot_s"} <= set(ready)
    assert ready["filename"] == "workers.py"
    # What Airflow itself logs in a worker carries the same two keys.
    assert all({"pid", "generation"} <= set(line) for line in lines["http.access"])
    assert len(lines["http.access"]) == 1
    started = [line["event"] for line in lines["uvicorn.error"] if line["event"].startswith("Started server")]
    assert len(started) == len(set(started)) == 4


def test_console_lines_of_all_are_alike(serve_airflow: Start) -> None:
    """On the console every line matches one pattern, Airflow's."""
    server = serve_airflow(workers=2)
    _live(server)
    lines = _after_start(server)
    assert [line for line in lines if not CONSOLE_LINE.fullmatch(line)] == []
    loggers = {match[2] for line in lines if (match := CONSOLE_LINE.fullmatch(line))}
    assert {"gunicorn.error", "uvicorn.error", "airflow_arbiter", "http.access"} <= loggers


def test_airflows_options_rule_ours_too(serve_airflow: Start) -> None:
    """`[logging] log_format` and `logging_level` hold for our lines as for Airflow's."""
    server = serve_airflow(
        env={
            "AIRFLOW__LOGGING__LOG_FORMAT": "MINE %(levelname)s %(name)s %(message)s",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        },
        workers=2,
    )
    server.send(signal.SIGTTOU)
    eventually(lambda: len(server.workers()) == 1, what="one worker has gone")
    assert "worker.ready" not in server.log()
    server.kill_a_worker()
    eventually(lambda: "worker.exited" in server.log(), what="an error is logged")
    (line,) = [line for line in server.log().splitlines() if "worker.exited" in line]
    assert line.startswith("MINE ")


def test_namespace_levels_rule_the_servers_loggers(serve_airflow: Start) -> None:
    """`[logging] namespace_levels` silences one logger of the server, and leaves the others."""
    server = serve_airflow(env={"AIRFLOW__LOGGING__NAMESPACE_LEVELS": "uvicorn.error=ERROR"}, workers=1)
    assert "worker.ready" in server.log()
    assert "[uvicorn.error]" not in server.log()


def _live(server: Server) -> None:
    Client(server.port, keep_alive=False).get("/api/v2/version")
    # The answer comes before its line, and the reload must come after.
    eventually(lambda: any("http.access" in line for line in _while_serving(server)), what="it is logged")
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed", within_s=60)
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


def _while_serving(server: Server) -> list[str]:
    """The log since the start: while it is imported, Airflow prints at will."""
    return server.log().partition("Starting gunicorn")[2].splitlines()[1:]


def _after_start(server: Server) -> list[str]:
    """The log since the start, without that of a reload's import."""
    lines = _while_serving(server)
    begin, end = (
        next(number for number, line in enumerate(lines) if text in line)
        for text in ("reload.started", "reload.resumed")
    )
    return [*lines[: begin + 1], *lines[end:]]
