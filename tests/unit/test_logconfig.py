"""The log: each record once, with its values."""

from __future__ import annotations

import logging
import logging.config
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_arbiter import events, logconfig

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"
NAMES = (
    "",
    "airflow_arbiter",
    "gunicorn.error",
    "gunicorn.access",
    "uvicorn",
    "uvicorn.error",
    "uvicorn.asgi",
    "uvicorn.access",
)


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    """Leave the loggers of this process as they were, and no file open."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, propagate, handlers in before:
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


def configure(folder: Path, *, level: str = "info", has_access: bool = True) -> None:
    access = str(folder / "access.log") if has_access else None
    logging.config.dictConfig(
        logconfig.build(
            level=level, log_format="console", errorlog=str(folder / "error.log"), accesslog=access
        )
    )


def lines(path: Path) -> list[str]:
    """The lines without their time and padding."""
    return [re.sub(" +", " ", re.sub(f"^{TIME} ", "", line)) for line in path.read_text().splitlines()]


def test_every_line_begins_with_the_time(tmp_path: Path) -> None:
    """In UTC, so that the logs of several machines can be sorted."""
    configure(tmp_path)
    events.publish("worker.ready", age=7)
    assert re.fullmatch(
        rf"{TIME} \[info *\] worker\.ready +\[airflow_arbiter\] age=7\n", (tmp_path / "error.log").read_text()
    )


def test_record_of_each_logger_is_written_once(tmp_path: Path) -> None:
    """Ours, gunicorn's, uvicorn's and the app's go one way, through the root."""
    configure(tmp_path)
    events.publish("worker.spawned", pid=12, age=1, cause="exit code 3", boot_s=1.5)
    events.publish("rollout.stalled", level="error", failures=2)
    logging.getLogger("gunicorn.error").info("Listening at: %s (%s)", "http://127.0.0.1:8080", 12)
    logging.getLogger("uvicorn.error").warning("Invalid %s", "request", extra={"client": "a"})
    logging.getLogger("uvicorn").info("plain")
    logging.getLogger("some.app").info("hello", extra={"dag": "d"})
    assert [re.sub(r" +\]", "]", line) for line in lines(tmp_path / "error.log")] == [
        "[info] worker.spawned [airflow_arbiter] age=1 boot_s=1.5 cause='exit code 3' pid=12",
        "[error] rollout.stalled [airflow_arbiter] failures=2",
        "[info] Listening at: http://127.0.0.1:8080 (12) [gunicorn.error]",
        "[warning] Invalid request [uvicorn.error] client=a",
        "[info] plain [uvicorn]",
        "[info] hello [some.app] dag=d",
    ]


def test_second_copy_of_uvicorn_is_dropped(tmp_path: Path) -> None:
    """uvicorn sends its message twice, once with colours."""
    configure(tmp_path)
    extra = {"color_message": "Started \x1b[36m12\x1b[0m"}
    logging.getLogger("uvicorn.error").info("Started 12", extra=extra)
    assert [re.sub(r" +\]", "]", line) for line in lines(tmp_path / "error.log")] == [
        "[info] Started 12 [uvicorn.error]"
    ]


def test_file_has_no_colours(tmp_path: Path) -> None:
    """A file is no terminal."""
    configure(tmp_path)
    events.publish("worker.exited", level="error", age=1)
    assert "\x1b" not in (tmp_path / "error.log").read_text()


def test_exception_has_its_traceback(tmp_path: Path) -> None:
    """What went wrong is told with where."""
    configure(tmp_path)
    try:
        raise ZeroDivisionError("nothing to divide by")
    except ZeroDivisionError:
        events.publish_exception("arbiter.turn_failed", turn=3)
    text = (tmp_path / "error.log").read_text()
    assert re.match(rf"{TIME} \[error *\] arbiter\.turn_failed +\[airflow_arbiter\] turn=3\nTraceback ", text)
    assert text.endswith("ZeroDivisionError: nothing to divide by\n")
    assert text.count("Traceback") == 1


@pytest.mark.parametrize("name", ["airflow_arbiter.access"])
def test_access_log_has_a_file_of_its_own(tmp_path: Path, name: str) -> None:
    """Requests go to the access log, and nowhere else."""
    configure(tmp_path)
    logging.getLogger(name).info('%s - "%s"', "127.0.0.1", "GET /")
    assert [re.sub(r" +\]", "]", line) for line in lines(tmp_path / "access.log")] == [
        f'[info] 127.0.0.1 - "GET /" [{name}]'
    ]
    assert (tmp_path / "error.log").read_text() == ""


@pytest.mark.parametrize("name", ["airflow_arbiter.access"])
def test_no_access_log_is_none(tmp_path: Path, name: str) -> None:
    """Without an access log requests are not logged, not in the error log either."""
    configure(tmp_path, has_access=False)
    logging.getLogger(name).info("GET /")
    assert (tmp_path / "error.log").read_text() == ""


@pytest.mark.parametrize(
    ("level", "names"),
    [
        ("debug", ["b.warning", "b.info", "b.debug"]),
        ("INFO", ["b.warning", "b.info"]),
        ("warning", ["b.warning"]),
        ("error", []),
    ],
)
def test_level_is_of_the_server(tmp_path: Path, level: str, names: list[str]) -> None:
    """`loglevel` rules our loggers, gunicorn's and uvicorn's, and leaves the app's alone."""
    configure(tmp_path, level=level)
    for name in ("warning", "info", "debug"):
        getattr(logging.getLogger("gunicorn.error"), name)(f"b.{name}")
    logging.getLogger("some.app").info("a")
    written = [line.split("] ")[1].split(" [")[0] for line in lines(tmp_path / "error.log")]
    assert written == [*names, "a"]


def test_standard_streams(capsys: pytest.CaptureFixture[str]) -> None:
    """`-` is standard error for the log and standard output for the access log."""
    logging.config.dictConfig(
        logconfig.build(level="info", log_format="console", errorlog="-", accesslog="-")
    )
    events.publish("worker.ready", age=7)
    logging.getLogger("airflow_arbiter.access").info("GET /")
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"{TIME} \[info *\] GET / +\[airflow_arbiter\.access\]\n", out)
    assert re.fullmatch(rf"{TIME} \[info *\] worker\.ready +\[airflow_arbiter\] age=7\n", err)


def test_other_loggers_stay(tmp_path: Path) -> None:
    """What the app has configured before us is not disabled."""
    logger = logging.getLogger("some.app")
    configure(tmp_path)
    assert not logger.disabled
