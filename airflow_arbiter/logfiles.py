"""
Log files: opened, and opened anew after a rotation, without ever being left with none or failing who logs.
"""

from __future__ import annotations

import io
import logging
import logging.handlers
from typing import Any

from gunicorn.instrument.statsd import Statsd

from airflow_arbiter import events, limits, logguard
from airflow_arbiter.errors import SettingsError


def set_up(cfg: Any) -> Any:
    """
    Make gunicorn's logger, which configures the logging of this process.

    :param cfg: all options.
    :raises SettingsError: for what cannot be opened or configured.
    """
    logguard.install()
    try:
        log = cfg.logger_class(cfg)
        if isinstance(log, Statsd) and log.sock is not None:
            log.sock.settimeout(0)  # at a path, its reader may stand still, and the master must not
        return log
    except Exception as error:
        # Handlers and formatters are classes of anybody's, and raise what they like.
        raise SettingsError(
            "errorlog, accesslog, syslog* and logconfig*: the log cannot be set up as they say "
            f"({limits.one_line(str(error))}); allowed: files that can be written to, and what "
            "logging.config understands"
        ) from error


class LogFile(logging.handlers.WatchedFileHandler):
    """
    A log file that is opened anew when it was moved away, in every process and without a signal.

    Where it cannot be written to or opened, as on a full disk or in a directory that is gone, the line is
    lost, standard error is told, and the next line tries again. The library's own lets the exception out,
    into the app's request or the master's turn; and it keeps what a full disk did not take, for each worker
    that is forked meanwhile to write once more.
    """

    def _open(self) -> io.TextIOWrapper:
        file = io.FileIO(self.baseFilename, "a")
        return io.TextIOWrapper(file, encoding=self.encoding, errors=self.errors, write_through=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except Exception:
            self.handleError(record)


def reopen() -> None:
    """
    Open the file of every file handler anew; where that fails, keep the old one and say so.

    gunicorn's own closes a file before it opens the next, and then, with no file, every log call raises.
    """
    known = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            try:
                _reopen(handler)
            except OSError:
                events.publish_exception("log.reopen_failed", filename_wanted=handler.baseFilename)


def _reopen(handler: logging.FileHandler) -> None:
    handler.acquire()
    try:
        old, handler.stream = handler.stream, handler._open()
    finally:
        handler.release()
    if old is not None:
        old.close()
