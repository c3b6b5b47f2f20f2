"""What we need of the machine, of gunicorn and for it, checked before anything of gunicorn is imported."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version

from airflow_arbiter import limits
from airflow_arbiter.errors import IntegrationError, SettingsError

GUNICORN_MIN = (25, 2)
GUNICORN_BELOW = (28, 0)


def check_platform() -> None:
    """
    Make sure that we can run here.

    :raises IntegrationError: on Windows, and without a gunicorn of the supported range.
    :raises SettingsError: as :func:`check_environment`.
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
    check_environment()


def check_environment() -> None:
    """
    Make sure that gunicorn can be imported and set up with what this process was started with.

    :raises SettingsError: for a variable or an argument that it would raise a traceback for.
    """
    for name, limit in limits.ENVIRONMENT.items():
        if name in os.environ:
            try:
                limit(os.environ[name])
            except ValueError as error:
                message = limits.refusal(name, os.environ[name], error, limit.allowed)
                raise SettingsError(f"environment: {message}") from error
    for argument in sys.orig_argv:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise SettingsError(f"command line: {argument!r} is not UTF-8") from error


def is_supported_gunicorn(installed: str) -> bool:
    """
    Tell whether we know this version of gunicorn.

    :param installed: a version as its package states it, e.g. ``27.0.1``.
    """
    match = re.match(r"(\d+)\.(\d+)", installed)
    return match is not None and GUNICORN_MIN <= tuple(map(int, match.groups())) < GUNICORN_BELOW
