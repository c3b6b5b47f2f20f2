"""
The application that ``airflow api-server`` serves with.

Owns what the command's options mean for us: those that Airflow has translated for gunicorn, those that its
own gunicorn server is not given, and what ``--daemon`` leaves behind, also over a reload.
"""

from __future__ import annotations

import atexit
import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gunicorn.config import ForwardedAllowIPS
from gunicorn.glogging import CONFIG_DEFAULTS
from lockfile.pidlockfile import PIDLockFile

from airflow_arbiter import provider
from airflow_arbiter.app import AirflowGunicornApp
from airflow_arbiter.errors import SettingsError

_AIRFLOWS_OWN = ("worker_class", "logger_class", "config")
"""Parts of Airflow's server; the last names its hooks, which set titles and dispose of the ORM as we do."""

_LOG_PARTS = ("formatters", "handlers", "loggers")


class ApiServerApp(AirflowGunicornApp):
    """
    Serve the Airflow API server as its command wants it.

    :param options: gunicorn's options, as Airflow has made them of the command's arguments.
    :param prog: the command, for messages.
    :raises SettingsError: as :class:`AirflowGunicornApp`.
    """

    def __init__(self, options: Mapping[str, Any], *, prog: str) -> None:
        arguments = provider.command_arguments()
        self._pid_file = ""
        if arguments.daemon:
            # All descriptors have just been closed, but not the objects that hold them, such as connections
            # to SQLite: collected later, they would close files of ours that have got their numbers.
            gc.collect()
            self._pid_file = _held_pid_file()
        self._command = {
            # Where Airflow leaves it to gunicorn (3.2.0 without --proxy-headers), so do we.
            "forwarded_allow_ips": ForwardedAllowIPS.default,
            **{
                name: value
                for name, value in options.items()
                if value is not None and name not in _AIRFLOWS_OWN
            },
            **_log_options(arguments.log_config),
        }
        # Airflow leaves out the brackets of an IPv6 address.
        if arguments.host and ":" in arguments.host and "bind" in self._command:
            self._command["bind"] = f"[{arguments.host.strip('[]')}]:{arguments.port}"
        super().__init__(prog=prog)

    def airflow_options(self) -> tuple[str, Mapping[str, Any]]:
        """Put the command's options in the place of those that it has read from the ``[api]`` section."""
        return "airflow api-server", {**provider.arbiter_options(), **self._command}

    def keep(self) -> dict[str, Any]:
        return {**super().keep(), "pid_file": self._pid_file}

    def take_up(self, kept: dict[str, Any]) -> None:
        super().take_up(kept)
        self._pid_file = kept.get("pid_file", "")
        if self._pid_file:
            # As python-daemon's context does, which the earlier image has left without an end.
            atexit.register(_release, self._pid_file)

    def leave_worker(self) -> None:
        if self._pid_file:
            # The command serves inside python-daemon's context, which releases the pid file in every process
            # that leaves it, and raises where that is not the process that has taken it.
            PIDLockFile.release = lambda _lock: None
        super().leave_worker()


def _held_pid_file() -> str:
    """
    Find the pid file of python-daemon's context, if there is one.

    The command line may name it relative to a folder that the daemon has left.
    """
    # Not isinstance(), which asks the objects, some of which are proxies of what does not exist.
    locks = [lock for lock in gc.get_objects() if issubclass(type(lock), PIDLockFile)]
    return next((lock.path for lock in locks if lock.i_am_locking()), "")


def _release(pid_file: str) -> None:
    """Remove the pid file, unless it is another process's: workers leave by here as well."""
    lock = PIDLockFile(pid_file)
    if lock.i_am_locking():
        lock.release()


def _log_options(log_config: str | None) -> dict[str, Any]:
    """
    Translate ``--log-config``, which Airflow's own gunicorn server is not given.

    :param log_config: INI, JSON or YAML, by its suffix, as for uvicorn; ``-`` means none.
    :raises SettingsError: for a configuration that cannot be read.
    """
    if not log_config or log_config == "-":
        return {}
    path = Path(log_config)
    if not path.is_file():
        raise SettingsError(f"--log-config cannot be {log_config!r}: there is no such file")
    if path.suffix not in _LOADERS:
        return {"logconfig": log_config}
    try:
        config = _LOADERS[path.suffix](path.read_text())
        # gunicorn puts in defaults for parts that are missing, and those name handlers of its own.
        parts = {part: {**CONFIG_DEFAULTS[part], **config.get(part, {})} for part in _LOG_PARTS}
    except Exception as error:
        # A parser raises whatever it likes for what is in a file.
        raise SettingsError(f"--log-config cannot be {log_config!r}: {error}") from error
    return {"logconfig_dict": {"root": None, **config, **parts}}


def _load_yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


_LOADERS: dict[str, Callable[[str], Any]] = {".json": json.loads, ".yaml": _load_yaml, ".yml": _load_yaml}
