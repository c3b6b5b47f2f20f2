"""
The seam: how ``airflow api-server`` comes to serve with our arbiter.

Owns the place where Airflow's own server is exchanged for ours, in the one process that runs the command, at
the moment when it imports its gunicorn server. Until then it costs nothing and changes nothing: without
``[api] server_type = gunicorn`` that moment never comes.

Airflow's ``create_gunicorn_app`` stays: it translates the command's arguments into gunicorn's options, each
version in its own way, and hands them to the class that we put in the place of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType, TracebackType
from typing import Any, NoReturn

import structlog

from airflow_arbiter.compat import check_environment, check_platform
from airflow_arbiter.errors import ArbiterError, IntegrationError

MODULE = "airflow.api_fastapi.gunicorn_app"
FUNCTION = "create_gunicorn_app"
CLASS = "AirflowGunicornApp"

PROG = "airflow api-server"
USAGE_ERROR = 2

_Tell = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def watch() -> None:
    """Wait for the import of Airflow's gunicorn server in this process. Doing it again changes nothing."""
    if MODULE in sys.modules or any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Watcher())
    sys.excepthook = partial(_tell, sys.excepthook)


class _Watcher:
    """A finder of modules that waits for one, finds it as it would be found without us, and is gone."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            _end(_unknown_airflow())
        spec.loader = _TakingLoader(spec.loader)
        return spec


class _TakingLoader(Loader):
    """
    A module's own loader, which also takes the seam once the module is complete.

    :param loader: the one that would load it without us.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        try:
            check_environment()
            self._loader.exec_module(module)
            take(module)
        except ArbiterError as error:
            _end(error)


def take(module: Any) -> None:
    """
    Put our server in the place of Airflow's own, unless ``[api] gunicorn_arbiter`` wants Airflow's.

    :param module: Airflow's gunicorn server, :data:`MODULE`.
    :raises SettingsError: for an arbiter that does not exist.
    :raises IntegrationError: when this is not a machine or an Airflow that we know; nothing is changed then.
    """
    from airflow_arbiter import provider

    arbiter = provider.gunicorn_arbiter()
    if arbiter == provider.OURS:
        check_platform()
        # Notes connections from here on: a configuration file runs before the app is known, and may make one.
        importlib.import_module("airflow_arbiter.metadata_database")
        create = getattr(module, FUNCTION, None)
        if (
            not isinstance(create, FunctionType)
            or create.__globals__ is not vars(module)
            or CLASS not in create.__code__.co_names
            or not isinstance(getattr(module, CLASS, None), type)
        ):
            raise _unknown_airflow()
        setattr(module, CLASS, _create)
    # Through Airflow's own logging, which would leave out the values of events.publish(): ours is set up
    # later, and not at all for Airflow's arbiter.
    structlog.get_logger("airflow_arbiter").info("arbiter.chosen", arbiter=arbiter)


def _create(options: Mapping[str, Any] | None = None) -> Any:
    """
    Make our application, where Airflow's ``create_gunicorn_app`` makes its own.

    :param options: what the command's arguments mean for gunicorn.
    """
    from airflow_arbiter.command import ApiServerApp

    try:
        app = ApiServerApp(options or {}, prog=PROG)
    except ArbiterError as error:
        _end(error)
    hook = sys.excepthook
    if isinstance(hook, partial) and hook.func is _tell:
        sys.excepthook = hook.args[0]  # from here on Airflow refuses nothing
    return app


def _unknown_airflow() -> IntegrationError:
    from airflow_arbiter import provider

    return IntegrationError(
        f"airflow-arbiter {provider.SUPPORTED_AIRFLOW}, and {provider.airflow_version()} is installed, whose "
        f"{MODULE}.{FUNCTION} is not one that we know; install a supported version, or run Airflow's own "
        f"arbiter: [api] gunicorn_arbiter = {provider.THEIRS}"
    )


def _end(error: ArbiterError) -> NoReturn:
    """End the command with what the operator must know."""
    sys.stderr.write(f"{PROG}: error: {error}\n")
    sys.exit(USAGE_ERROR)


def _tell(
    otherwise: _Tell, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """
    Show an uncaught exception: in one line, where Airflow refuses a value that the operator has given.

    :param otherwise: shows all others.
    """
    try:
        from airflow_arbiter import provider

        refused = provider.is_refusal(error)
    except Exception:
        refused = False  # Airflow itself cannot be imported, and `error` says why
    if refused:
        sys.stderr.write(f"{PROG}: error: {error}\n")
    else:
        otherwise(kind, error, trace)
