"""Process titles, so that ``ps`` tells who is who."""

from __future__ import annotations

import sys

PREFIX = "airflow-arbiter"


def set_title(text: str, *, state: str = "") -> None:
    """
    Name this process.

    :param text: what it is, e.g. ``master [api]``.
    :param state: what it does now, shown first in brackets.
    """
    if sys.platform == "darwin":
        # setproctitle after fork crashes on macOS (https://github.com/benoitc/gunicorn/issues/3021).
        return
    from setproctitle import setproctitle

    setproctitle(f"[{state}] {PREFIX}: {text}" if state else f"{PREFIX}: {text}")
