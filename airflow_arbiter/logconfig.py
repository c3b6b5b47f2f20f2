"""
The structlog-backed ``logconfig_dict`` that gunicorn, uvicorn and our own events go through.

Owns the look of a log line. A pure function of its settings: configures nothing itself.
"""

from __future__ import annotations

import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

_OURS = ("airflow_arbiter", "gunicorn.error", "uvicorn", "uvicorn.error", "uvicorn.asgi")
_ACCESS = ("gunicorn.access", "uvicorn.access")


def build(*, level: str, errorlog: str = "-", accesslog: str | None = None) -> dict[str, Any]:
    """
    Build the configuration for :func:`logging.config.dictConfig`.

    :param level: of our own loggers, gunicorn's and uvicorn's, e.g. ``info``.
    :param errorlog: file to write to, ``-`` for standard error.
    :param accesslog: file for the access log, ``-`` for standard output, None for none.
    """
    handlers = {"error": _handler(errorlog, "ext://sys.stderr")}
    access: dict[str, Any] = {"level": "INFO", "handlers": [], "propagate": False}
    if accesslog is not None:
        handlers["access"] = _handler(accesslog, "ext://sys.stdout")
        access["handlers"] = ["access"]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "console": _formatter(colors=errorlog == "-" and sys.stderr.isatty()),
        },
        "handlers": handlers,
        "root": {"level": "INFO", "handlers": ["error"]},
        "loggers": {
            # No handlers of their own, so that each line is printed once, by the root's.
            **{name: {"level": level.upper(), "handlers": [], "propagate": True} for name in _OURS},
            **dict.fromkeys(_ACCESS, access),
        },
    }


def _handler(target: str, stream: str) -> dict[str, Any]:
    if target == "-":
        return {"class": "logging.StreamHandler", "formatter": "console", "stream": stream}
    return {"class": "logging.FileHandler", "formatter": "console", "filename": target}


def _drop_color_message(_: Any, __: str, event: EventDict) -> EventDict:
    """Remove uvicorn's second copy of its message."""
    event.pop("color_message", None)
    return event


def _formatter(*, colors: bool) -> dict[str, Any]:
    before: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    return {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": before,
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _drop_color_message,
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
        ],
    }
