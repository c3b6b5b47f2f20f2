"""Airflow's command line, as the tests call it."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import Protocol

AIRFLOW = [sys.executable, "-m", "airflow"]
HEALTH = "/api/v2/monitor/health"
AIRFLOW_VERSION = tuple(map(int, importlib.metadata.version("apache-airflow-core").split(".")[:2]))
"""Major and minor."""


class RunAirflow(Protocol):
    """Runs one command of Airflow to its end."""

    def __call__(
        self, *arguments: str, env: dict[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]: ...
