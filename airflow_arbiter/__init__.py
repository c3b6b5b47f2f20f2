"""
Serve the Airflow API server, or any ASGI app, and replace its workers without losing capacity or a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_arbiter.errors import ArbiterError, IntegrationError, SettingsError

if TYPE_CHECKING:
    from airflow_arbiter.app import AirflowGunicornApp
    from airflow_arbiter.arbiter import AirflowArbiter
    from airflow_arbiter.workers import AirflowUvicornWorker

__version__ = "0.1.0"

__all__ = [
    "AirflowArbiter",
    "AirflowGunicornApp",
    "AirflowUvicornWorker",
    "ArbiterError",
    "IntegrationError",
    "SettingsError",
    "__version__",
]

_HOMES = {
    "AirflowArbiter": "airflow_arbiter.arbiter",
    "AirflowGunicornApp": "airflow_arbiter.app",
    "AirflowUvicornWorker": "airflow_arbiter.workers",
}


def __getattr__(name: str) -> Any:
    # Late, so that the checks of compat.py can speak before an import of gunicorn fails, and so that a
    # process that only looks at our metadata (every Airflow command does) does not pay for gunicorn.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from airflow_arbiter.compat import check_platform

    check_platform()
    return getattr(import_module(_HOMES[name]), name)
