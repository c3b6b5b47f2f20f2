"""
The structlog-backed ``logconfig_dict`` that every line of every process goes through.

Owns the look of a log line: gunicorn's, uvicorn's, the app's and our own. A pure function of its settings:
configures nothing itself. Under Airflow the look is Airflow's, by :func:`airflow_arbiter.provider.logconfig`.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["console", "json"]

SERVER_LOGGERS = ("airflow_arbiter", "gunicorn.error", "uvicorn", "uvicorn.error", "uvicorn.asgi")
"""The loggers that ``loglevel`` rules."""

ACCESS_LOGGER = "airflow_arbiter.access"
_OTHERS_ACCESS_LOGGERS = ("gunicorn.access", "uvicorn.access")

bound_request_id: ContextVar[str] = ContextVar("airflow_arbiter_request_id", default="")
"""The request that is being answered. Not structlog's way of binding, which each request would pay for."""

_FIRST_KEYS = ("timestamp", "level", "event", "logger")


def build(
    *,
    level: str,
    log_format: LogFormat,
    colors: bool = False,
    errorlog: str = "-",
    accesslog: str | None = None,
) -> dict[str, Any]:
    """
    Build the configuration for :func:`logging.config.dictConfig`.

    :param level: of the server's own loggers, e.g. ``info``; the root's stays at ``INFO``.
    :param log_format: ``console`` for people, ``json`` for one object a line.
    :param colors: colour the console's lines.
    :param errorlog: file to write to, ``-`` for standard error.
    :param accesslog: file for the access log, ``-`` for standard output, None for none.
    """
    handlers = {"error": _handler(errorlog)}
    access: dict[str, Any] = {"level": "INFO", "handlers": [], "propagate": False}
    if accesslog is not None:
        handlers["access"] = {
            "()": "airflow_arbiter.accesslog.AccessHandler",
            "log_format": log_format,
            "filename": accesslog,
            "formatter": "line",
        }
        access = {**access, "handlers": ["access"]}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": _formatter(log_format, colors=colors)},
        "handlers": handlers,
        "root": {"level": "INFO", "handlers": ["error"]},
        "loggers": {**server_loggers(level), ACCESS_LOGGER: access},
    }


def server_loggers(level: str) -> dict[str, Any]:
    """
    Send the server's loggers through the root's handlers, each line once; silence the others' access logs.

    :param level: as for :func:`build`.
    """
    through = {"level": level.upper(), "handlers": [], "propagate": True}
    silent = {"handlers": [], "propagate": False}
    return {**dict.fromkeys(SERVER_LOGGERS, through), **dict.fromkeys(_OTHERS_ACCESS_LOGGERS, silent)}


def _handler(target: str) -> dict[str, Any]:
    if target == "-":
        return {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}
    return {"class": "airflow_arbiter.logfiles.LogFile", "formatter": "line", "filename": target}


def _formatter(log_format: LogFormat, *, colors: bool) -> dict[str, Any]:
    return {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.contextvars.merge_contextvars,
            _add_request_id,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            add_extra,
        ],
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(_json() if log_format == "json" else _console(colors=colors)),
        ],
    }


def _json() -> list[Processor]:
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        _put_first_keys_first,
        structlog.processors.JSONRenderer(default=str),
    ]


def _console(*, colors: bool) -> list[Processor]:
    return [
        _keep_to_one_line,
        structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
    ]


# -- processors ----------------------------------------------------------------------------------------------

_add_extra = structlog.stdlib.ExtraAdder()


def add_extra(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Add the ``extra`` of a record, less uvicorn's second, coloured copy of its message."""
    event = _add_extra(logger, method, event)
    event.pop("color_message", None)
    return event


def _add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if request_id := bound_request_id.get():
        event["request_id"] = request_id
    return event


def _put_first_keys_first(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {**{key: event.pop(key) for key in _FIRST_KEYS if key in event}, **event}


def _keep_to_one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Show what follows the first line of a message below the line, where tracebacks go."""
    first, has_more, rest = str(event["event"]).partition("\n")
    if has_more:
        event["event"] = first
        if event.get("exc_info"):
            exc_info = event.pop("exc_info")
            rest += "\n" + logging.Formatter().formatException(exc_info)
        event["exception"] = rest.rstrip("\n")
    return event
