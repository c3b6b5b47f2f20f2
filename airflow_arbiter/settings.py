"""
Our settings, as gunicorn settings.

Owns names, defaults, bounds and descriptions. A subclass of gunicorn's ``Setting`` registers itself when it
is defined, which gives each option its command-line flag, its place in ``gunicorn.conf.py`` and
``GUNICORN_CMD_ARGS``, and its validation, with no parser of ours. Knows nothing of processes.

Source: ``gunicorn.config.SettingMeta`` and ``Config.parser``.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from gunicorn import config as gunicorn_config
from gunicorn.config import Config, Setting

from airflow_arbiter.errors import SettingsError
from airflow_arbiter.pool import RolloutPolicy

SECTION = "Airflow arbiter"
WORKER_CLASS = "airflow_arbiter.workers.AirflowUvicornWorker"
LAST_PORT = 65535


# -- validators
# ------------------------------------------------------------------------------------------------


def _whole_number(value: Any) -> int:
    """Accept a whole number, 0 or more, also as text."""
    number = int(value, 0) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError("not a whole number, 0 or more")
    return number


def _number(value: Any) -> float:
    """Accept a finite number, 0 or more, also as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not a number")
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError("not a finite number, 0 or more")
    return number


def _positive_number(value: Any) -> float:
    number = _number(value)
    if not number:
        raise ValueError("not above 0")
    return number


def _fraction(value: Any) -> float:
    number = _number(value)
    if number > 1:
        raise ValueError("above 1")
    return number


def _size(value: Any) -> int:
    """Accept a number of bytes, 0 or more, also as text that ends in K, M or G (powers of 1,024)."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:iB|B)?", value.strip(), re.IGNORECASE)
        if match is None:
            raise ValueError("not a size")
        value = round(float(match[1]) * 1024.0 ** " KMG".index(match[2].upper() or " "))
    number = _whole_number(value)
    if number > 2**50:
        raise ValueError("above 1 PiB")
    return number


def _path(value: Any) -> str | None:
    """Accept a URL path that starts with a slash; an empty one means none."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not re.fullmatch(r"/[!-~]*", value):
        raise ValueError("not a path of printable ASCII characters that starts with '/'")
    return value


def _log_format(value: Any) -> str | None:
    if value not in (None, "console", "json"):
        raise ValueError("not a format")
    return None if value is None else str(value)


_ALLOWED: dict[Callable[[Any], Any], str] = {
    _whole_number: "a whole number, 0 or more",
    _number: "a number, 0 or more",
    _positive_number: "a number above 0",
    _fraction: "a number from 0 to 1",
    _size: "a number of bytes, 0 or more, or such as 512M or 1.5G",
    _log_format: "console or json",
    _path: "a path that starts with '/', or nothing",
    gunicorn_config.validate_pos_int: "a whole number, 0 or more",
    gunicorn_config.validate_bool: "True or False",
    gunicorn_config.validate_string: "text",
    gunicorn_config.validate_list_string: "a list of text",
    gunicorn_config.validate_dict: "a mapping",
}


# -- the settings
# ----------------------------------------------------------------------------------------------


class _InOurSection:
    """Puts the option into a section of its own in ``--help``."""

    section = SECTION

    def add_option(self, parser: argparse.ArgumentParser) -> None:
        groups = [group for group in parser._action_groups if group.title == SECTION]
        group = groups[0] if groups else parser.add_argument_group(SECTION)
        super().add_option(group)  # type: ignore[misc]  # gunicorn's Setting comes next in the MRO


class WorkerRefreshInterval(_InOurSection, Setting):
    name = "worker_refresh_interval"
    cli = ["--worker-refresh-interval"]
    meta = "SECONDS"
    validator = _number
    type = float
    default = 0.0
    desc = """\
        Time in service after which a worker is replaced, in seconds; 0 never.

        Workers are replaced oldest first, each only after its successor has proved itself. Airflow's
        ``[api] worker_refresh_interval``.
        """


class WorkerRefreshJitter(_InOurSection, Setting):
    name = "worker_refresh_jitter"
    cli = ["--worker-refresh-jitter"]
    meta = "FRACTION"
    validator = _fraction
    type = float
    default = 0.1
    desc = """\
        Largest fraction that chance adds to each worker's refresh interval, from 0 to 1.

        Keeps replicas that were started together from replacing their workers in step.
        """


class WorkerRefreshBatchSize(_InOurSection, Setting):
    name = "worker_refresh_batch_size"
    cli = ["--worker-refresh-batch-size"]
    meta = "INT"
    validator = _whole_number
    type = int
    default = 1
    desc = """\
        The surge: extra live processes allowed while workers are replaced; 0 turns replacement off.

        More than ``workers`` is lowered to ``workers``, with a warning. Airflow's
        ``[api] worker_refresh_batch_size``.
        """


class WorkerBootTimeout(_InOurSection, Setting):
    name = "worker_boot_timeout"
    cli = ["--worker-boot-timeout"]
    meta = "SECONDS"
    validator = _positive_number
    type = float
    default = 120.0
    desc = """\
        Time that a new worker has to start and prove itself before it is removed, in seconds.
        """


class MinReadySeconds(_InOurSection, Setting):
    name = "min_ready_seconds"
    cli = ["--min-ready-seconds"]
    meta = "SECONDS"
    validator = _number
    type = float
    default = 0.0
    desc = """\
        Time that a worker must have been ready before it counts as capacity, in seconds.
        """


class HealthCheckPath(_InOurSection, Setting):
    name = "health_check_path"
    cli = ["--health-check-path"]
    meta = "PATH"
    validator = _path
    default = None
    desc = """\
        Path that a new worker asks of its own app, in memory, before it takes connections.

        It has proved itself once the answer is 2xx and, for Airflow, its database is healthy. The Airflow API
        server uses ``/api/v2/monitor/health`` unless told otherwise; other apps have none, and are ready when
        their lifespan startup is complete.
        """


class WorkerMaxMemory(_InOurSection, Setting):
    name = "worker_max_memory"
    cli = ["--worker-max-memory"]
    meta = "SIZE"
    validator = _size
    default = 0
    desc = """\
        Private memory at which a worker is replaced, in bytes or as ``512M``, ``1.5G``; 0 never.

        Private is what no other process shares (USS): with ``preload_app``, far less than ``ps`` shows. A
        worker is due after three samples in a row above the limit. Where new workers pass it as well, the log
        says ``memory.limit_too_low`` once, and nobody is replaced for memory until the next reload.
        """


class WorkerMemoryInterval(_InOurSection, Setting):
    name = "worker_memory_interval"
    cli = ["--worker-memory-interval"]
    meta = "SECONDS"
    validator = _positive_number
    type = float
    default = 10.0
    desc = """\
        Time between two samples of a worker's memory, in seconds.

        They are taken only where they are used: with ``worker_max_memory``, or in a container with a memory
        limit.
        """


class WorkerMinLifetime(_InOurSection, Setting):
    name = "worker_min_lifetime"
    cli = ["--worker-min-lifetime"]
    meta = "SECONDS"
    validator = _number
    type = float
    default = 60.0
    desc = """\
        Time in service before which no worker is replaced for its memory, in seconds.
        """


class LogFormat(_InOurSection, Setting):
    name = "log_format"
    cli = ["--log-format"]
    meta = "FORMAT"
    validator = _log_format
    default = None
    desc = """\
        Look of the log: ``console`` for people, ``json`` for one object a line.

        Unless told, ``console`` on a terminal and ``json`` elsewhere. The Airflow API server's log looks as
        Airflow's ``[logging]`` section says.
        """


class HealthCheckTimeout(_InOurSection, Setting):
    name = "health_check_timeout"
    cli = ["--health-check-timeout"]
    meta = "SECONDS"
    validator = _positive_number
    type = float
    default = 5.0
    desc = """\
        Time for the answer to one health check, in seconds.
        """


OURS: tuple[type[Setting], ...] = (
    WorkerRefreshInterval,
    WorkerRefreshJitter,
    WorkerRefreshBatchSize,
    WorkerBootTimeout,
    MinReadySeconds,
    HealthCheckPath,
    HealthCheckTimeout,
    WorkerMaxMemory,
    WorkerMemoryInterval,
    WorkerMinLifetime,
    LogFormat,
)
"""Our settings in the order of the documentation."""


# -- use
# -------------------------------------------------------------------------------------------------------


def apply(cfg: Config, options: Mapping[str, Any], *, source: str) -> None:
    """
    Set options by name.

    :param options: setting names and values, gunicorn's and ours.
    :param source: where they came from, for the message.
    :raises SettingsError: for a name that is no setting, or a value that the setting cannot have.
    """
    for name, value in options.items():
        setting = cfg.settings.get(name)
        if setting is None:
            near = difflib.get_close_matches(str(name), cfg.settings, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else "allowed: the names of gunicorn's settings and ours"
            )
            raise SettingsError(f"{source}: unknown option {name!r}; {hint}")
        try:
            setting.set(value)
        except Exception as error:
            # gunicorn's validators raise whatever comes: ValueError, TypeError, KeyError, OSError ...
            raise SettingsError(
                f"{source}: {name} cannot be {value!r} ({error}); allowed: {_allowed(setting)}"
            ) from error


def _allowed(setting: Setting) -> str:
    """Say in words which values a setting takes."""
    return _ALLOWED.get(setting.validator) or str(setting.short).rstrip(".")


def check(cfg: Config) -> None:
    """
    Refuse what would break the promises, once all options are known.

    :raises SettingsError: for a worker class that is not ours, ``reuse_port``, no workers, or a port that
        cannot be.
    """
    # Imported late: the worker's module reads this one's siblings, and gunicorn names it by text.
    from airflow_arbiter.workers import AirflowUvicornWorker

    try:
        worker_class = cfg.worker_class
    except RuntimeError as error:
        raise SettingsError(
            f"worker_class cannot be {cfg.worker_class_str!r}: {str(error).splitlines()[0]}"
        ) from error
    if not (isinstance(worker_class, type) and issubclass(worker_class, AirflowUvicornWorker)):
        raise SettingsError(
            f"worker_class cannot be {cfg.worker_class_str!r}: only our worker proves itself before it "
            f"listens and drains without losing a request; allowed: {WORKER_CLASS} or a subclass"
        )
    if cfg.reuse_port:
        raise SettingsError(
            "reuse_port cannot be True: each worker would have a queue of its own, and the connections in "
            "it are lost when the worker leaves; allowed: False"
        )
    if not cfg.control_socket_disable:
        raise SettingsError(
            "control_socket_disable cannot be False: gunicorn's control server is a thread, and the master "
            "forks; allowed: True"
        )
    if cfg.dirty_workers and cfg.dirty_apps:
        raise SettingsError("dirty_workers is not supported; allowed: 0")
    if cfg.workers < 1:
        raise SettingsError(f"workers cannot be {cfg.workers}; allowed: a whole number, 1 or more")
    _check_ports(cfg)
    try:
        _ = cfg.env  # gunicorn looks at raw_env here
    except RuntimeError as error:
        raise SettingsError(f"raw_env: {error}; allowed: a list of NAME=VALUE") from error
    try:
        policy(cfg)
    except (ValueError, OverflowError) as error:
        raise SettingsError(f"timeout and graceful_timeout must be numbers of seconds: {error}") from error


def _check_ports(cfg: Config) -> None:
    for address in cfg.address:
        if isinstance(address, tuple) and not 0 <= address[1] <= LAST_PORT:
            raise SettingsError(f"bind cannot have port {address[1]}; allowed: 0 to {LAST_PORT}")


def policy(cfg: Config) -> RolloutPolicy:
    """
    Put together what the planner wants to know.

    The surge is lowered to the number of workers.
    """
    return RolloutPolicy(
        surge=min(cfg.worker_refresh_batch_size, cfg.workers),
        refresh_interval_s=cfg.worker_refresh_interval,
        refresh_jitter=cfg.worker_refresh_jitter,
        boot_timeout_s=cfg.worker_boot_timeout,
        min_ready_s=cfg.min_ready_seconds,
        heartbeat_timeout_s=float(cfg.timeout),
        drain_timeout_s=float(cfg.graceful_timeout),
        memory_limit_bytes=cfg.worker_max_memory,
        min_lifetime_s=cfg.worker_min_lifetime,
    )
