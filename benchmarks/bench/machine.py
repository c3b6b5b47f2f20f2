"""What the figures depend on: the machine and the versions; no name and no path of the host."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "airflow-arbiter",
    "apache-airflow-core",
    "gunicorn",
    "uvicorn",
    "uvicorn-worker",
    "uvloop",
    "httptools",
    "granian",
)
GIB = 1024**3


def facts() -> dict[str, str]:
    """Name the machine."""
    named = {
        "day": time.strftime("%Y-%m-%d"),
        "processors": str(os.cpu_count()),
        "model": _processor_model(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f} GiB",
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            named[package] = version(package)
        except PackageNotFoundError:
            named[package] = "not installed"
    return {**named, "load average before": f"{os.getloadavg()[0]:.2f}"}


def _processor_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
