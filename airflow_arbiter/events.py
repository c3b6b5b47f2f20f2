"""
Our events: a stable, dotted, past-tense name, and values in keys.

Goes through the standard library's logging, with the values as ``extra``, so that any log configuration, the
operator's own included, can show them. In a worker, every line carries its pid and generation.
"""

from __future__ import annotations

import logging

from structlog.contextvars import bind_contextvars

from airflow_arbiter.pool import Level

_logger = logging.getLogger("airflow_arbiter")
_LEVELS: dict[Level, int] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def publish(name: str, *, level: Level = "info", **values: object) -> None:
    """
    Tell the operator.

    :param name: e.g. ``worker.ready``.
    :param values: e.g. ``age=7``; durations and sizes have their unit in the key (``boot_s``).
    """
    _logger.log(_LEVELS[level], name, extra=values, stacklevel=2)


def publish_exception(name: str, *, level: Level = "error", **values: object) -> None:
    """
    Tell the operator of the exception that is being handled, with its traceback.

    :param name: as for :func:`publish`, and so are the values.
    """
    _logger.log(_LEVELS[level], name, extra=values, exc_info=True, stacklevel=2)


def bind(**values: object) -> None:
    """
    Add values to every line that this process logs from now on, whoever logs it.

    :param values: e.g. ``pid=4711``.
    """
    bind_contextvars(**values)
