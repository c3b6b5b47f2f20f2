"""
What Airflow reads of us in every one of its processes: that we are a provider, and which options we declare.

Imports nothing but the standard library: this runs while Airflow itself is being imported, in each scheduler,
worker and CLI call.
"""

from __future__ import annotations

import sys
from typing import Any

COMMAND = "api-server"


def _option(kind: str, default: str, description: str) -> dict[str, Any]:
    return {
        "description": description + "\n",
        "version_added": "0.1.0",
        "type": kind,
        "example": None,
        "default": default,
    }


_OPTIONS = {
    "gunicorn_arbiter": _option(
        "string",
        "airflow_arbiter",
        "Which arbiter serves under ``server_type = gunicorn``: ``airflow_arbiter`` for the one of the\n"
        "package airflow-arbiter, ``airflow`` for Airflow's own.",
    ),
    "worker_refresh_jitter": _option(
        "float",
        "0.1",
        "Largest fraction that chance adds to each worker's ``worker_refresh_interval``, from 0 to 1, so\n"
        "that replicas that were started together do not replace their workers in step.",
    ),
    "worker_boot_timeout": _option(
        "float",
        "120",
        "Seconds that a new worker has to start and prove itself before it is removed; above 0.",
    ),
    "min_ready_seconds": _option(
        "float",
        "0",
        "Seconds that a worker must have been ready before it counts as capacity.",
    ),
    "health_check_path": _option(
        "string",
        "",
        "Path that a new worker asks of its own app, in memory, before it takes connections. Empty: the\n"
        "health endpoint of the apps that are served.",
    ),
    "health_check_timeout": _option(
        "float",
        "5",
        "Seconds to wait for the answer to one health check; above 0.",
    ),
    "worker_max_memory": _option(
        "string",
        "0",
        "Private memory at which a worker is replaced, in bytes or as ``512M``, ``1.5G``; 0 never. Private\n"
        "is what no other process shares: far less than ``ps`` shows.",
    ),
    "termination_grace_period": _option(
        "float",
        "0",
        "Seconds from SIGTERM to SIGKILL that the platform gives the whole server, as Kubernetes'\n"
        "``terminationGracePeriodSeconds`` or systemd's ``TimeoutStopSec``; 0 where it is not known. A\n"
        "``worker_timeout`` that does not fit is lowered for the drain of a worker, with a warning.",
    ),
    "fork_safety": _option(
        "string",
        "warn",
        "What follows where plugins have started threads, opened connections or run event loops before\n"
        "workers are forked: ``warn`` names them, ``strict`` refuses to start, ``off`` does not look.",
    ),
    "immortal_preload": _option(
        "boolean",
        "True",
        "Keep what the master has loaded before the first fork out of Python's counting of references, so\n"
        "that workers go on sharing it. On CPython 3.12 and 3.13.",
    ),
    "memory_merge": _option(
        "boolean",
        "False",
        "Let the kernel merge equal pages of the master and its workers (KSM), where its daemon runs.\n"
        "Needs Linux 6.4.",
    ),
    "reload_on_plugin_change": _option(
        "boolean",
        "False",
        "Load the code anew and replace all workers when the content of the plugins folder changes. Content\n"
        "that does not load, or is not healthy, changes nothing but the log.",
    ),
    "reload_check_interval": _option(
        "float",
        "10",
        "Seconds between two looks at the plugins folder, where ``reload_on_plugin_change`` is on; above 0.\n"
        "Two looks in a row must see the same.",
    ),
}
"""What Airflow's ``[api]`` section does not declare itself."""


def get_provider_info() -> dict[str, Any]:
    """
    Describe this package to Airflow.

    In the process that runs ``airflow api-server``, and in no other, also watches for the import of Airflow's
    gunicorn server (see :mod:`airflow_arbiter.seam`). Airflow calls this more than once.

    :return: provider information, as ``airflow/provider_info.schema.json`` wants it.
    """
    if sys.argv[1:2] == [COMMAND]:
        from airflow_arbiter import seam

        seam.watch()
    return {
        "package-name": "airflow-arbiter",
        "name": "Airflow Arbiter",
        "description": "Serves the API server and replaces its workers without losing capacity or a request.",
        "cli": ["airflow_arbiter.provider.commands"],
        "config": {
            "api": {"description": "Options of airflow-arbiter for the API server.", "options": _OPTIONS}
        },
    }
