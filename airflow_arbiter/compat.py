"""What we need of the machine and of gunicorn, checked before anything of gunicorn is imported."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version

from airflow_arbiter.errors import IntegrationError

GUNICORN_MIN = (25, 2)
GUNICORN_BELOW = (28, 0)


def check_platform() -> None:
    """
    Make sure that we can run here.

    :raises IntegrationError: on Windows, and without a gunicorn of the supported range.
    """
    if sys.platform == "win32":
        raise IntegrationError(
            "airflow-arbiter needs fork() and Unix signals, which Windows has not; use WSL or Linux"
        )
    try:
        installed = version("gunicorn")
    except PackageNotFoundError:
        installed = "none"
    if not is_supported_gunicorn(installed):
        raise IntegrationError(
            f"airflow-arbiter supports gunicorn >=25.2,<28, and {installed} is installed; "
            "install a supported one: pip install 'gunicorn>=25.2,<28'"
        )


def is_supported_gunicorn(installed: str) -> bool:
    """
    Tell whether we know this version of gunicorn.

    :param installed: a version as its package states it, e.g. ``27.0.1``.
    """
    match = re.match(r"(\d+)\.(\d+)", installed)
    return match is not None and GUNICORN_MIN <= tuple(map(int, match.groups())) < GUNICORN_BELOW
