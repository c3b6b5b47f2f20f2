"""
Bring into the log what Python prints by itself: warnings, and exceptions that nobody catches.

Owns the interpreter's hooks. They are set once, in the master, and forked into every worker.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from types import TracebackType
from typing import TextIO

_logger = logging.getLogger("airflow_arbiter")
_warnings_logger = logging.getLogger("py.warnings")
_print_warning = warnings.showwarning


def install() -> None:
    """
    Set the hooks, where nobody else has set them: Airflow has its own for warnings.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _log_uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _log_uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _log_unraisable
    if warnings.showwarning is _print_warning:
        warnings.showwarning = _log_warning


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _logger.critical("process.failed", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    _logger.error(
        "thread.failed",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        extra={"in_thread": args.thread.name if args.thread else ""},
    )


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    error = unraisable.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    _logger.error(
        "exception.ignored",
        exc_info=(unraisable.exc_type, error, unraisable.exc_traceback),
        extra={"ignored_in": repr(unraisable.object), "because": unraisable.err_msg or ""},
    )


def _log_warning(  # noqa: PLR0917  # Python's signature
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if file is not None:
        _print_warning(message, category, filename, lineno, file, line)
        return
    _warnings_logger.warning(
        "%s", message, extra={"category": category.__name__, "warned_at": f"{filename}:{lineno}"}
    )
