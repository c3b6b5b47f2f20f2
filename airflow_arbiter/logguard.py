"""
Keep what goes wrong in logging out of those who log.

Owns what becomes of an exception that a filter or a handler of the operator's raises. The standard library
lets it out to the caller, who here may be the master in the middle of a turn.
"""

from __future__ import annotations

import contextlib
import logging

from airflow_arbiter.logconfig import ACCESS_LOGGER, SERVER_LOGGERS

_LOGGERS = (*SERVER_LOGGERS, ACCESS_LOGGER, "asyncio", "py.warnings")
"""Who logs in the server's own code."""

_reporter = logging.Handler()


def install() -> None:
    """
    Guard the server's own loggers, whatever configuration they get afterwards.

    The app's loggers are left alone: what they raise is between the app and the operator.
    """
    for name in _LOGGERS:
        _guard(logging.getLogger(name))


def _guard(logger: logging.Logger) -> None:
    """Guard the logger itself, not its filters and handlers: those change with every reload."""

    def handle(record: logging.LogRecord) -> None:
        try:
            type(logger).handle(logger, record)
        except Exception:
            # The library's own report: the traceback and the message, on standard error, if there is one.
            with contextlib.suppress(Exception):
                _reporter.handleError(record)

    logger.handle = handle  # type: ignore[method-assign]
