"""The access log: one event a request, whatever the app does and the client sends."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_arbiter import logconfig
from airflow_arbiter.accesslog import AccessLog

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


@pytest.fixture(autouse=True)
def _logger_is_put_back() -> Iterator[None]:
    logger = logging.getLogger(logconfig.ACCESS_LOGGER)
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    for handler in logger.handlers:
        handler.close()
    level, logger.propagate, logger.handlers = before
    logger.setLevel(level)


def configure(path: Path, log_format: logconfig.LogFormat) -> None:
    config = logconfig.build(level="info", log_format=log_format, accesslog=str(path))
    name = logconfig.ACCESS_LOGGER
    config.update(
        root={},
        handlers={"access": config["handlers"]["access"]},
        loggers={name: config["loggers"][name]},
    )
    logging.config.dictConfig(config)


def scope(path: str = "/", headers: tuple[tuple[bytes, bytes], ...] = ()) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "headers": list(headers),
        "client": ("127.0.0.1", 4711),
    }


async def answering(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def raising(_scope: Any, _receive: Any, _send: Any) -> None:
    raise RuntimeError


def ask(app: Any, *scopes: dict[str, Any], silent: str | None = None) -> None:
    """Put requests to an app behind the access log, and let its lines out."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    async def put() -> None:
        log = AccessLog(app, pid=7, generation=2, silent_path=silent)
        for asked in scopes:
            task = asyncio.ensure_future(log(asked, receive, send))
            await asyncio.wait({task})
            task.exception()

    asyncio.run(put())
    for handler in logging.getLogger(logconfig.ACCESS_LOGGER).handlers:
        handler.flush()


def test_json(tmp_path: Path) -> None:
    """A line has the keys of every other line first, and the request's after them."""
    configure(tmp_path / "log", "json")
    ask(answering, scope("/a", ((b"x-request-id", b'my "id"\\'),)))
    line = json.loads((tmp_path / "log").read_text())
    assert list(line)[:4] == ["timestamp", "level", "event", "logger"]
    assert re.fullmatch(TIME, line.pop("timestamp"))
    assert line.pop("duration_ms") >= 0
    assert line == {
        "level": "info",
        "event": "request.finished",
        "logger": "airflow_arbiter.access",
        "pid": 7,
        "generation": 2,
        "request_id": 'my "id"\\',
        "method": "GET",
        "path": "/a",
        "status": 204,
        "client": "127.0.0.1:4711",
    }


def test_console(tmp_path: Path) -> None:
    """A line looks as the console's others, and what a client sends cannot end it."""
    configure(tmp_path / "log", "console")
    ask(answering, scope("/a", ((b"x-request-id", b"two words\x85"),)))
    assert re.fullmatch(
        TIME + r" \[info     \] request\.finished {15}\[airflow_arbiter\.access\] client=127\.0\.0\.1:4711 "
        r"duration_ms=[\d.]+ generation=2 method=GET path=/a pid=7 request_id='two words\\x85' status=204\n",
        (tmp_path / "log").read_text(),
    )


def test_an_app_that_raises_is_a_500(tmp_path: Path) -> None:
    """It is what uvicorn answers then."""
    configure(tmp_path / "log", "json")
    ask(raising, scope())
    assert json.loads((tmp_path / "log").read_text())["status"] == 500


def test_the_silent_path_and_other_protocols_are_left_out(tmp_path: Path) -> None:
    """Health checks, WebSockets and the lifespan are no requests of anybody's interest."""
    configure(tmp_path / "log", "json")
    ask(answering, scope("/health"), {"type": "lifespan"}, silent="/health")
    assert (tmp_path / "log").read_text() == ""


def test_the_apps_own_lines_carry_the_id() -> None:
    """The id is bound while the app works."""
    seen: list[Any] = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(logconfig.bound_request_id.get())

    ask(app, scope(headers=((b"x-request-id", b"abc"),)), scope())
    assert seen[0] == "abc"
    assert re.fullmatch(r"[0-9a-f]{16}", seen[1])


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    """A rotation needs no signal."""
    configure(tmp_path / "log", "json")
    ask(answering, scope("/old"))
    (tmp_path / "log").rename(tmp_path / "log.1")
    ask(answering, scope("/new"))
    assert json.loads((tmp_path / "log").read_text())["path"] == "/new"


def test_a_configuration_that_is_not_ours_gets_a_log_record(caplog: pytest.LogCaptureFixture) -> None:
    """The values are attributes of the record, as `extra` makes them."""
    logger = logging.getLogger(logconfig.ACCESS_LOGGER)
    logger.propagate, logger.handlers = True, []
    logger.setLevel(logging.INFO)
    ask(answering, scope("/a"))
    (record,) = caplog.records
    values = vars(record)
    assert (record.getMessage(), values["path"], values["status"], values["pid"]) == (
        "request.finished",
        "/a",
        204,
        7,
    )
