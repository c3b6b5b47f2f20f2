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
from collections.abc import Mapping
from typing import Any

from gunicorn.config import Config, Setting, validate_bool, validate_list_string

from airflow_arbiter import limits
from airflow_arbiter.errors import SettingsError
from airflow_arbiter.pool import RolloutPolicy

SECTION = "Airflow arbiter"
WORKER_CLASS = "airflow_arbiter.workers.AirflowUvicornWorker"


_ALLOWED: dict[str, str] = {
    "validate_pos_int": "a whole number, 0 or more",
    "validate_bool": "True or False",
    "validate_string": "text",
    "validate_list_string": "a list of text",
    "validate_dict": "a mapping",
    "validate_class": "a class, or its name",
    "validate_string_to_list": "names with commas between",
    "validate_string_to_addr_list": "IP addresses or networks with commas between, or *",
    "validate_statsd_address": "host:port or unix://PATH",
    "validate_post_request": "a function, or its name",
    "_validate_callable": "a function, or its name",
}
"""gunicorn's validators in words; its versions have not all the same."""


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
    validator = limits.SECONDS
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
    validator = limits.FRACTION
    default = 0.1
    desc = """\
        Largest fraction that chance adds to each worker's refresh interval, from 0 to 1.

        Keeps replicas that were started together from replacing their workers in step.
        """


class WorkerRefreshBatchSize(_InOurSection, Setting):
    name = "worker_refresh_batch_size"
    cli = ["--worker-refresh-batch-size"]
    meta = "INT"
    validator = limits.whole(0, limits.MOST_WORKERS)
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
    validator = limits.SECONDS_ABOVE_0
    default = 120.0
    desc = """\
        Time that a new worker has to start and prove itself before it is removed, in seconds.
        """


class MinReadySeconds(_InOurSection, Setting):
    name = "min_ready_seconds"
    cli = ["--min-ready-seconds"]
    meta = "SECONDS"
    validator = limits.SECONDS
    default = 0.0
    desc = """\
        Time that a worker must have been ready before it counts as capacity, in seconds.
        """


class HealthCheckPath(_InOurSection, Setting):
    name = "health_check_path"
    cli = ["--health-check-path"]
    meta = "PATH"
    validator = limits.PATH
    default = None
    desc = """\
        Path that a new worker asks of its own app, in memory, before it takes connections.

        It has proved itself once the answer is 2xx and, for Airflow, its database is healthy. The Airflow API
        server uses ``/api/v2/monitor/health`` unless told otherwise; other apps have none, and are ready when
        their lifespan startup is complete.
        """


class WarmupPath(_InOurSection, Setting):
    name = "warmup_path"
    cli = ["--warmup-path"]
    action = "append"
    meta = "PATH"
    validator = limits.PATHS
    default: list[str] = []
    desc = """\
        Path that the master asks of the app, in memory, before it makes workers; may be given more than once.

        With ``preload_app`` only. What the app does at its first requests is done once, in memory that all
        workers share. The app's lifespan is not run for it. A path that fails is told of, and harms nobody;
        where one leaves a thread or an object of its event loop behind, the server begins anew without them.
        A reload asks them twice: in the preflight, and in the new image. What the app draws at random then,
        such as the seed of a ``random.Random()`` that it makes lazily, is the same in all workers. An app
        that swallows every exception can hold the start up beyond the limit of 20 s.
        The Airflow API server has some of its own; an empty one takes them back.
        """


class ForkSafety(_InOurSection, Setting):
    name = "fork_safety"
    cli = ["--fork-safety"]
    meta = "MODE"
    validator = limits.FORK_SAFETY
    default = "warn"
    desc = """\
        What follows where the app has threads, connections or event loops before the first fork.

        With ``preload_app`` only: a worker would have a broken copy of each. ``warn`` names them, ``strict``
        refuses to start, ``off`` does not look.
        """


class ImmortalPreload(_InOurSection, Setting):
    name = "immortal_preload"
    cli = ["--no-immortal-preload"]
    action = "store_const"
    const = False
    validator = validate_bool
    default = True
    desc = """\
        Keep what the master has preloaded out of Python's counting of references, so that it stays shared.

        With ``preload_app``, on CPython 3.12 and 3.13; elsewhere nothing happens. Objects that were there
        before the first fork are never freed, in the master and in its workers, but for those that have
        something to do at their end, such as files.
        """


class MemoryMerge(_InOurSection, Setting):
    name = "memory_merge"
    cli = ["--memory-merge"]
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Let the kernel merge equal pages of the master and its workers (KSM), where its daemon runs.

        Needs Linux 6.4, and 1 in ``/sys/kernel/mm/ksm/run``, which only an administrator can write.
        A process whose pages are merged can be found out about by timing its writes, by the others that are
        merged on this machine.
        """


class ReloadOnPluginChange(_InOurSection, Setting):
    name = "reload_on_plugin_change"
    cli = ["--reload-on-plugin-change"]
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Load the code anew when the content of Airflow's plugins folder changes.

        Two looks in a row must see the same new content. It is tried in a process of its own first; what does
        not load, or is not healthy, changes nothing. Airflow's ``[api] reload_on_plugin_change``.
        """


class ReloadPath(_InOurSection, Setting):
    name = "reload_path"
    cli = ["--reload-path"]
    action = "append"
    meta = "PATH"
    validator = validate_list_string
    default: list[str] = []
    desc = """\
        Folder whose change asks for a reload, as ``reload_on_plugin_change``; may be given more than once.
        """


class ReloadCheckInterval(_InOurSection, Setting):
    name = "reload_check_interval"
    cli = ["--reload-check-interval"]
    meta = "SECONDS"
    validator = limits.SECONDS_ABOVE_0
    type = float
    default = 10.0
    desc = """\
        Time between two looks at the folders whose change asks for a reload, in seconds.
        """


class WorkerMaxMemory(_InOurSection, Setting):
    name = "worker_max_memory"
    cli = ["--worker-max-memory"]
    meta = "SIZE"
    validator = limits.SIZE
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
    validator = limits.SECONDS_ABOVE_0
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
    validator = limits.SECONDS
    default = 60.0
    desc = """\
        Time in service before which no worker is replaced for its memory, in seconds.
        """


class LogFormat(_InOurSection, Setting):
    name = "log_format"
    cli = ["--log-format"]
    meta = "FORMAT"
    validator = limits.LOG_FORMAT
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
    validator = limits.SECONDS_ABOVE_0
    default = 5.0
    desc = """\
        Time for the answer to one health check, in seconds.

        More than ``worker_boot_timeout`` is lowered to it, with a warning.
        """


class TerminationGracePeriod(_InOurSection, Setting):
    name = "termination_grace_period"
    cli = ["--termination-grace-period"]
    meta = "SECONDS"
    validator = limits.number_or_zero(limits.SHORTEST_GRACE_S, limits.YEAR_S)
    default = 0.0
    desc = """\
        Time from SIGTERM to SIGKILL that the platform gives the whole server, in seconds; 0 not known.

        Kubernetes' ``terminationGracePeriodSeconds``, systemd's ``TimeoutStopSec``. A ``graceful_timeout``
        that does not fit, with 2 s for the server itself, is lowered, with a warning.
        """


OURS: tuple[type[Setting], ...] = (
    WorkerRefreshInterval,
    WorkerRefreshJitter,
    WorkerRefreshBatchSize,
    WorkerBootTimeout,
    MinReadySeconds,
    HealthCheckPath,
    HealthCheckTimeout,
    TerminationGracePeriod,
    WarmupPath,
    ForkSafety,
    ImmortalPreload,
    MemoryMerge,
    ReloadOnPluginChange,
    ReloadPath,
    ReloadCheckInterval,
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
        limit = limits.GUNICORNS.get(name)
        try:
            limits.check_text(name, value)
            setting.set(limit(value) if limit else value)
        except (Exception, SystemExit) as error:
            # gunicorn's validators raise whatever comes: ValueError, TypeError, KeyError, OSError ...
            raise SettingsError(
                f"{source}: {limits.refusal(name, value, error, allowed(setting))}"
            ) from error


def allowed(setting: Setting) -> str:
    """Say in words which values a setting takes."""
    if limit := limits.GUNICORNS.get(setting.name):
        return limit.allowed
    validator = setting.validator
    if isinstance(validator, limits.Limit):
        return validator.allowed
    return _ALLOWED.get(validator.__name__) or str(setting.short).rstrip(".")


def policy(cfg: Config) -> RolloutPolicy:
    """
    Put together what the planner wants to know.

    :param cfg: options that fit each other, see :func:`airflow_arbiter.checks.corrections`.
    """
    return RolloutPolicy(
        surge=cfg.worker_refresh_batch_size,
        refresh_interval_s=cfg.worker_refresh_interval,
        refresh_jitter=cfg.worker_refresh_jitter,
        boot_timeout_s=cfg.worker_boot_timeout,
        min_ready_s=cfg.min_ready_seconds,
        heartbeat_timeout_s=float(cfg.timeout),
        drain_timeout_s=float(cfg.graceful_timeout),
        memory_limit_bytes=cfg.worker_max_memory,
        min_lifetime_s=cfg.worker_min_lifetime,
    )
