"""
What we know of Airflow around the app that it serves: options, command line, log and metrics.

Owns the translation of Airflow's ``[api]`` options into settings. Only this module and those of the app
itself, :mod:`airflow_arbiter.api_server` and what that is made of, import Airflow.

Source: ``airflow.cli.commands.api_server_command`` and ``airflow.api_fastapi.gunicorn_app``.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import re
import ssl
import sys
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import airflow
from airflow.configuration import conf
from airflow.exceptions import AirflowConfigException
from structlog.stdlib import ProcessorFormatter

from airflow_arbiter.errors import IntegrationError, SettingsError
from airflow_arbiter.logconfig import add_extra, server_loggers

CORE_HEALTH_PATH = "/api/v2/monitor/health"
EXECUTION_HEALTH_PATH = "/execution/health"

_WARMUP_PATHS = ("/api/v2/version", "/ui/config", "/openapi.json")
"""Beside the health path, for the core's API. The schema costs each worker 14 MB and 0.3 s otherwise."""

SUPPORTED_AIRFLOW = "supports Airflow 3.2 and 3.3"

OURS = "airflow_arbiter"
THEIRS = "airflow"
"""The values of ``[api] gunicorn_arbiter``."""

_OUR_OPTIONS = (
    "worker_refresh_jitter",
    "worker_boot_timeout",
    "min_ready_seconds",
    "health_check_timeout",
    "worker_max_memory",
    "termination_grace_period",
    "reload_check_interval",
    "fork_safety",
)
"""Those of our settings that mean the same in the ``[api]`` section; checked where all settings are."""

_METRICS = ("statsd_datadog_enabled", "statsd_on", "otel_on")
"""What turns Airflow's metrics on; it takes the first of them."""

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def api_options() -> dict[str, Any]:
    """
    Read Airflow's ``[api]`` section as settings.

    As in Airflow's own server, ``worker_timeout`` is also the time for a drain and for idle connections.

    :raises SettingsError: for an option that is not of its type; the message names it.
    """
    try:
        return {**_server_options(), **_ssl_options(), **_arbiter_options()}
    except AirflowConfigException as error:
        raise SettingsError(f"Airflow's [api] section: {error}") from error


def arbiter_options() -> dict[str, Any]:
    """
    Read the part of Airflow's ``[api]`` section that its command does not hand to its server.

    :raises SettingsError: as :func:`api_options`.
    """
    try:
        return _arbiter_options()
    except AirflowConfigException as error:
        raise SettingsError(f"Airflow's [api] section: {error}") from error


def gunicorn_arbiter() -> str:
    """
    Read which arbiter serves ``airflow api-server`` when it uses gunicorn.

    :return: :data:`OURS` or :data:`THEIRS`.
    :raises SettingsError: for any other.
    """
    arbiter: str = conf.get("api", "gunicorn_arbiter", fallback=OURS)
    if arbiter not in (OURS, THEIRS):
        raise SettingsError(
            f"Airflow's [api] section: gunicorn_arbiter cannot be {arbiter!r}; allowed: {OURS}, {THEIRS}"
        )
    return arbiter


def airflow_version() -> str:
    """Airflow's version, e.g. ``3.3.2``."""
    installed: str = airflow.__version__
    return installed


def is_refusal(error: BaseException) -> bool:
    """Whether Airflow's command refuses, by this error, to serve with gunicorn as it is configured."""
    return isinstance(error, AirflowConfigException) and (
        conf.get("api", "server_type", fallback="uvicorn").lower() == "gunicorn"
    )


def _server_options() -> dict[str, Any]:
    timeout = conf.getint("api", "worker_timeout")
    return {
        "bind": f"{_bracketed(conf.get('api', 'host'))}:{conf.getint('api', 'port')}",
        "workers": conf.getint("api", "workers"),
        "timeout": timeout,
        "graceful_timeout": timeout,
        "keepalive": timeout,
        "loglevel": conf.get("logging", "uvicorn_logging_level", fallback="info").lower(),
        "preload_app": True,
        # The command trusts X-Forwarded-* only with --proxy-headers, which is a setting of gunicorn's here.
        "forwarded_allow_ips": os.environ.get("FORWARDED_ALLOW_IPS", ""),
    }


def _arbiter_options() -> dict[str, Any]:
    given = {name: conf.get("api", name, fallback="") for name in _OUR_OPTIONS}
    return {
        "worker_refresh_interval": conf.getint("api", "worker_refresh_interval", fallback=0),
        "worker_refresh_batch_size": conf.getint("api", "worker_refresh_batch_size", fallback=1),
        "reload_on_plugin_change": conf.getboolean("api", "reload_on_plugin_change", fallback=False),
        "immortal_preload": conf.getboolean("api", "immortal_preload", fallback=True),
        "memory_merge": conf.getboolean("api", "memory_merge", fallback=False),
        "health_check_path": conf.get("api", "health_check_path", fallback="") or _health_path(),
        "warmup_path": _warmup_paths(),
        **{name: value for name, value in given.items() if value != ""},
    }


def _ssl_options() -> dict[str, Any]:
    certificate = conf.get("api", "ssl_cert", fallback="")
    key = conf.get("api", "ssl_key", fallback="")
    if not certificate and not key:
        return {}
    if not certificate or not key:
        raise SettingsError("Airflow's [api] section: ssl_cert and ssl_key need each other, and one is empty")
    cert_reqs = conf.get("api", "ssl_cert_reqs", fallback="none")
    if cert_reqs not in _CERT_REQS:
        raise SettingsError(
            f"Airflow's [api] section: ssl_cert_reqs cannot be {cert_reqs!r}; "
            f"allowed: {', '.join(_CERT_REQS)}"
        )
    return {
        "certfile": certificate,
        "keyfile": key,
        "ca_certs": conf.get("api", "ssl_ca_file", fallback=None) or None,
        "cert_reqs": _CERT_REQS[cert_reqs],
    }


def logconfig(*, level: str) -> dict[str, Any]:
    """
    Build the log configuration that leaves Airflow's own in place and sends the server's lines through it.

    :param level: of gunicorn's and uvicorn's loggers; our own have Airflow's ``[logging] logging_level``.
    """
    ours = {"level": conf.get("logging", "logging_level").upper(), "handlers": ["events"], "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "root": None,  # Airflow's stays; gunicorn would put one of its own in the place of a missing one
        "formatters": {},
        "handlers": {"events": {"()": "airflow_arbiter.provider.EventHandler"}},
        "loggers": _at_namespace_levels({**server_loggers(level), "airflow_arbiter": ours}),
    }


def _at_namespace_levels(loggers: dict[str, Any]) -> dict[str, Any]:
    """Apply ``[logging] namespace_levels``, which Airflow itself applies to structlog's loggers only."""
    pairs = [
        pair.partition("=")
        for pair in re.split(r"[\s,]+", conf.get("logging", "namespace_levels", fallback="") or "")
    ]
    levels = {name: level.upper() for name, _, level in pairs if level.upper() in _LEVELS}
    return {
        name: {**config, "level": levels[name]} if name in levels else config
        for name, config in loggers.items()
    }


class EventHandler(logging.Handler):
    """
    Airflow's handlers, which do not look at a record's ``extra``, taught to show the values of our events.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handlers = [_with_extra(handler) for handler in logging.getLogger().handlers]

    def emit(self, record: logging.LogRecord) -> None:
        for handler in self._handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


def _with_extra(handler: logging.Handler) -> logging.Handler:
    if not isinstance(handler.formatter, ProcessorFormatter):
        return handler
    handler = copy.copy(handler)  # the same stream, lock and filters
    formatter = copy.copy(handler.formatter)
    assert isinstance(formatter, ProcessorFormatter)  # as above
    formatter.foreign_pre_chain = [*(formatter.foreign_pre_chain or ()), add_extra]
    handler.formatter = formatter
    return handler


def plugins_folder() -> Path:
    """Where Airflow looks for plugins."""
    return Path(conf.get("core", "plugins_folder"))


def metrics() -> Any:
    """
    Open Airflow's own client of metrics, for what the server itself has to say.

    As Airflow's ``[metrics]`` section has it, with its prefix, its lists of names and its custom client.

    :return: something with ``incr`` and ``gauge``; None where metrics are off.
    :raises IntegrationError: where they are on, and a master that forks cannot have them.
    """
    on = [name for name in _METRICS if conf.getboolean("metrics", name, fallback=False)]
    if not on:
        return None
    if on == ["otel_on"]:
        raise IntegrationError(
            "Airflow's [metrics] otel_on: OpenTelemetry sends from a thread, and the master forks; for the "
            "server's own metrics set statsd_host (a collector has a receiver for statsd), or scrape "
            "`airflow-arbiter status --output prometheus`"
        )
    try:
        from airflow.observability.metrics import stats_utils
        from airflow.observability.stats import Stats

        make = stats_utils.get_stats_factory
        factory = make(Stats) if signature(make).parameters else make()  # the former in 3.2
        return factory()
    except Exception as error:
        # Clients may be the operator's own, their packages be missing, and their hosts be unknown.
        raise IntegrationError(f"Airflow's [metrics] section: {type(error).__name__}: {error}") from error


def command_arguments() -> argparse.Namespace:
    """Read the command line of ``airflow api-server`` as the command has read it."""
    from airflow.cli.cli_parser import get_parser

    arguments: argparse.Namespace = get_parser().parse_args(sys.argv[1:])
    return arguments


def _health_path() -> str:
    """Where the apps that are served answer for their health."""
    apps = os.environ.get("AIRFLOW_API_APPS", "all").split(",")
    return _root_path() + (CORE_HEALTH_PATH if {"all", "core"} & set(apps) else EXECUTION_HEALTH_PATH)


def _warmup_paths() -> list[str]:
    """What the master asks for before it forks: little, and it touches database, schemas and security."""
    if _health_path() != _root_path() + CORE_HEALTH_PATH:
        return [_health_path()]
    return [_root_path() + path for path in (CORE_HEALTH_PATH, *_WARMUP_PATHS)]


def _root_path() -> str:
    """The path under which Airflow serves, from ``[api] base_url``, without a trailing slash."""
    base_url: str = conf.get("api", "base_url", fallback="")
    return urlsplit(base_url).path.rstrip("/")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


# -- the commands of ``airflow arbiter``
# -------------------------------------------------------------------------------------------------------


def commands() -> list[Any]:
    """
    Give Airflow's command line our commands. Called in every one of its processes.

    :return: Airflow's ``CLICommand``.
    """
    from airflow.cli.cli_config import GroupCommand

    from airflow_arbiter import cli

    return [
        GroupCommand(
            name="arbiter",
            help="Look at the API server that runs, and steer it",
            subcommands=tuple(map(_command, cli.COMMANDS)),
        )
    ]


def _command(command: Any) -> Any:
    """Say a command in Airflow's words."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    from airflow_arbiter import cli

    if isinstance(command, cli.Group):
        return GroupCommand(
            name=command.name, help=command.help, subcommands=tuple(map(_command, command.verbs))
        )
    return ActionCommand(
        name=command.name,
        help=command.help,
        func=lambda args: sys.exit(cli.perform(command.run, args, prog="airflow arbiter")),
        args=tuple(Arg(flags=argument.flags, **argument.settings) for argument in command.arguments),
    )
