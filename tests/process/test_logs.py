"""One log format: every line, from every process, once."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness.load import ClosedError
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually

TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"
CONSOLE_LINE = re.compile(rf"{TIMESTAMP} \[(info|warning|error|critical) *\] \S.* +\[[\w.]+\]( [\w.]+=.*)?")

LIFE = ["--access-logfile=-", "--worker-boot-timeout=2", "--health-check-path=/health"]


def test_every_line_of_a_whole_life_is_json_and_comes_once(
    start: Start, tmp_path: Path, set_fault: SetFault
) -> None:
    """Start, requests, errors, a crash, rollouts, a refused reload, stop: one object a line, each once."""
    server = start("--log-format=json", *LIFE, f"--config={_config(tmp_path)}", workers=2)
    _live(server, tmp_path, set_fault)
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert all(list(line)[:4] == ["timestamp", "level", "event", "logger"] for line in lines)
    assert all(re.fullmatch(TIMESTAMP, line["timestamp"]) for line in lines)
    assert {line["level"] for line in lines} <= {"info", "warning", "error", "critical"}
    workers = {event.values["pid"] for event in server.events("worker.spawned")}
    assert all(str(line["pid"]) in workers for line in lines if line["logger"] == "uvicorn.error")

    assert _repeated(lines) == {}
    _assert_told(lines)
    errors = {error["exc_value"] for line in lines for error in line.get("exception", [])}
    assert {"the app is broken", "a thread is broken", "a task is broken"} <= errors


def test_every_line_of_a_whole_life_matches_the_console_pattern(
    start: Start, tmp_path: Path, set_fault: SetFault
) -> None:
    """The same life on the console: every line but those of tracebacks matches one pattern."""
    server = start("--log-format=console", *LIFE, f"--config={_config(tmp_path)}", workers=2)
    _live(server, tmp_path, set_fault)
    lines = server.log().splitlines()
    assert CONSOLE_LINE.fullmatch(lines[0]), lines[0]
    beside = [line for line in lines if not CONSOLE_LINE.fullmatch(line)]
    assert [line for line in beside if not _is_below_a_line(line)] == []
    assert "\x1b" not in server.log()


def test_json_is_the_default_where_there_is_no_terminal(serve: Start) -> None:
    """A log that is collected is for machines."""
    server = serve(workers=1)
    assert json.loads(server.log().splitlines()[0])["event"].startswith("Starting gunicorn")


@pytest.mark.parametrize(("level", "is_shown"), [("info", True), ("error", False)])
def test_log_level_works(start: Start, level: str, is_shown: bool) -> None:
    """`--log-level` rules the server's own loggers."""
    server = start(f"--log-level={level}", workers=1)
    eventually(server.answers, what="it serves")
    assert (server.events("worker.ready") != []) is is_shown


def test_access_log(serve: Start) -> None:
    """One event a request: method, path, status, duration, client and id; the health path is left out."""
    server = serve("--access-logfile=-", "--health-check-path=/health", workers=1)
    for path in ("/", "/health", "/a%0Ab?c=d"):
        server.get(path)
    requests = eventually(lambda: _requests(server, 2), what="two requests in the log")
    for request in requests:
        assert request.pop("duration_ms") > 0
        assert re.fullmatch(r"127\.0\.0\.1:\d+", request.pop("client"))
        assert re.fullmatch(r"[0-9a-f]{16}", request.pop("request_id"))
        assert request.pop("pid") == server.ready()[0].pid
        assert re.fullmatch(TIMESTAMP, request.pop("timestamp"))
    common = {
        "level": "info",
        "event": "request.finished",
        "logger": "airflow_arbiter.access",
        "generation": 1,
    }
    assert requests == [
        {**common, "method": "GET", "path": "/", "status": 200},
        {**common, "method": "GET", "path": "/a%0Ab", "status": 200},
    ]


def test_access_log_off_means_off(serve: Start) -> None:
    """Without `--access-logfile` no request is logged."""
    server = serve(workers=1)
    server.get("/")
    server.send(signal.SIGTERM)
    server.wait_exit()
    assert _requests(server, 0) == []


def test_sigusr1_leaves_no_line_behind_in_a_rotated_file(start: Start, tmp_path: Path) -> None:
    """After a log file was moved away and SIGUSR1 was sent, master and workers write to a new one."""
    log = tmp_path / "server.log"
    server = start(f"--error-logfile={log}", workers=1)
    eventually(lambda: log.exists() and "worker.ready" in log.read_text(), what="the worker is ready")
    log.rename(tmp_path / "old.log")
    server.send(signal.SIGUSR1)
    server.get("/raise")
    for line in ("the app is broken", "Handling signal: usr1"):  # a worker's and the master's, in any order
        eventually(lambda: log.exists() and line in log.read_text(), what=f"new file with {line}")  # noqa: B023
    assert "the app is broken" not in (tmp_path / "old.log").read_text()


def test_a_users_own_log_configuration_wins(start: Start, tmp_path: Path) -> None:
    """`logconfig_dict` of the operator is used as it is."""
    config = tmp_path / "conf.py"
    config.write_text(
        "logconfig_dict = {'version': 1, 'formatters': {'f': {'format': 'MINE %(message)s'}}, 'handlers':"
        " {'h': {'class': 'logging.StreamHandler', 'formatter': 'f'}},"
        " 'root': {'level': 'INFO', 'handlers': ['h']},"
        " 'loggers': {'gunicorn.error': {'level': 'INFO', 'handlers': [], 'propagate': True}}}"
    )
    server = start(f"--config={config}", workers=1)
    eventually(lambda: "MINE worker.ready" in server.log(), what="the worker is ready")
    assert all(line.startswith("MINE ") for line in server.log().splitlines())


def test_a_broken_log_configuration_is_refused_at_a_reload(start: Start, tmp_path: Path) -> None:
    """SIGHUP with a log configuration that cannot be keeps the old one, and says so in it."""
    config = tmp_path / "conf.py"
    config.write_text("")
    server = start(f"--config={config}", workers=1)
    old = server.wait_ready(1)
    config.write_text("logconfig_dict = {'version': 1, 'root': {'handlers': ['nowhere']}}")
    server.send(signal.SIGHUP)
    (refused,) = server.wait_event("reload.refused")
    assert "nowhere" in refused.values["exception"]
    assert server.ready() == old
    assert all(line.startswith("{") for line in server.log().splitlines())


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_crash_in_boot_shows_its_traceback_once(start: Start, set_fault: SetFault, log_format: str) -> None:
    """The app's error is in the format, once, and nothing is printed beside it."""
    set_fault("import", "raise")
    server = start(f"--log-format={log_format}", workers=2)
    assert server.wait_exit() == 3
    if log_format == "json":
        lines = [json.loads(line) for line in server.log().splitlines()]
        errors = [error["exc_value"] for line in lines for error in line.get("exception", [])]
        assert errors == ["import is broken"]
    else:
        assert server.log().count("RuntimeError: import is broken") == 1
        assert server.log().count("Traceback") == 1


def _config(tmp_path: Path) -> Path:
    config = tmp_path / "conf.py"
    config.write_text("workers = 2\n")
    return config


def _live(server: Server, tmp_path: Path, set_fault: SetFault) -> None:
    """Lead a whole life, with everything in it that could print."""
    server.wait_ready(2)
    for path in ("/", "/raise", "/warn", "/log", "/task", "/thread"):
        server.get(path)
    eventually(lambda: server.log().count("request.finished") == 6, what="the access log is written")
    eventually(lambda: "thread.failed" in server.log(), what="the thread's end is told")
    with pytest.raises((OSError, ClosedError)):
        server.get("/die")
    server.wait_event("worker.spawned", 3)
    server.wait_ready(2)
    for fault in ("fail", "exit"):
        set_fault("startup", fault)
        stalls = len(server.events("rollout.stalled"))
        server.send(signal.SIGHUP)
        server.wait_event("rollout.stalled", stalls + 1)
    set_fault("startup", "")
    server.wait_event("rollout.completed")
    _config(tmp_path).write_text("raise RuntimeError('the configuration is broken')")
    server.send(signal.SIGHUP)
    server.wait_event("reload.refused")
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


def _assert_told(lines: list[dict[str, Any]]) -> None:
    """What each part of that life must have left in the log."""
    told = Counter((line["logger"], line["event"]) for line in lines)
    assert told["airflow_arbiter.access", "request.finished"] == 6
    assert told["uvicorn.error", "Exception in ASGI application\n"] == 1
    assert told["py.warnings", "something is old\nand has two lines"] == 1
    assert told["some.app", "the app says\ntwo lines"] == 1
    (said,) = [line for line in lines if line["logger"] == "some.app"]
    assert said["request_id"] in {line["request_id"] for line in lines if line["event"] == "request.finished"}
    assert told["airflow_arbiter", "thread.failed"] == 1
    assert sum(count for (name, _), count in told.items() if name == "asyncio") == 1
    assert told["airflow_arbiter", "rollout.completed"] == 1
    assert told["airflow_arbiter", "reload.refused"] == 1
    assert told["gunicorn.error", "Shutting down: Master"] == 1


def _repeated(lines: list[dict[str, Any]]) -> dict[str, int]:
    """Lines that stand more than once, but for their time; signals that were sent twice may."""
    texts = Counter(
        json.dumps({key: value for key, value in line.items() if key != "timestamp"}, sort_keys=True)
        for line in lines
        if not line["event"].startswith(("Handling signal: ", "Hang up: "))
    )
    return {text: count for text, count in texts.items() if count > 1}


def _requests(server: Server, count: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log().splitlines()]
    requests = [line for line in lines if line["logger"] == "airflow_arbiter.access"]
    return requests if len(requests) >= count else []


def _is_below_a_line(line: str) -> bool:
    """Whether a line belongs to a traceback, or is the second of a message."""
    return not re.match(TIMESTAMP, line) and not line.startswith("{")
