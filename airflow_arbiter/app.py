"""
The gunicorn application: which app is served, and with which options.

Owns the order in which options win and the loading of the app. Lowest first: defaults, Airflow's ``[api]``
section (when Airflow is what we serve), the mapping given to :class:`AirflowGunicornApp`,
``gunicorn.conf.py``, ``GUNICORN_CMD_ARGS``, the command line.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from gunicorn.app.base import Application, BaseApplication
from gunicorn.config import get_default_config_file
from gunicorn.errors import ConfigError

from airflow_arbiter import checks, commandline, handover, launch, limits, logconfig, settings
from airflow_arbiter.errors import IntegrationError, SettingsError
from airflow_arbiter.served import Served

USAGE = "%(prog)s [OPTIONS] [APP_MODULE]"
USAGE_ERROR = 2
_DEFAULTS: dict[str, Any] = {
    "worker_class": settings.WORKER_CLASS,
    "control_socket": "",  # in a private folder, see airflow_arbiter.meeting
}
_OWN_LOGGING = ("logconfig", "logconfig_json", "logconfig_dict", "syslog")


class _ArbiterApplication(BaseApplication):
    """
    What :meth:`Application.run` hands over to once it has done its part (daemon, python path, config check).

    Comes between gunicorn's ``Application`` and ``BaseApplication`` in the order of inheritance, so that its
    ``super().run()`` finds our arbiter instead of gunicorn's.
    """

    cfg: Any
    environ: dict[str, str]
    _configured_environ: dict[str, str]

    def run(self) -> None:
        """
        Serve until told to stop.

        :raises SystemExit: always in the end.
        :raises IntegrationError: in a program that is loaded once more, for a reload.
        """
        if handover.is_loading_main():
            raise IntegrationError(
                "the program that serves is loaded anew for a reload, and would start a second server; put "
                "its run() under `if __name__ == '__main__':`"
            )
        self.environ = _with_changes(self.environ, since=self._configured_environ)
        try:
            launch.start(self)
        except SettingsError as error:
            sys.stderr.write(f"{self.cfg.prog}: error: {error}\n")
            sys.exit(USAGE_ERROR)


class AirflowGunicornApp(Application, _ArbiterApplication):
    """
    Serve the Airflow API server, or the ASGI app named by ``wsgi_app``.

    :param cfg: gunicorn's settings and ours, by name; hooks are given as callables.
    :param arguments: a command line to read as well, without the program's name; None reads none.
    :param prog: the program's name, for the usage message.
    :raises SettingsError: for an unknown option or a value that it cannot have.
    :raises IntegrationError: when neither an app is named nor Airflow is installed.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> AirflowGunicornApp:  # noqa: PYI034  # 3.10 has no Self
        made: AirflowGunicornApp = super().__new__(cls)
        made._made_of = (args, kwargs)
        return made

    def __init__(
        self,
        cfg: Mapping[str, Any] | None = None,
        *,
        arguments: Sequence[str] | None = None,
        prog: str | None = None,
    ) -> None:
        # Before the configuration runs, and after: what it sets is not for later images, whose own says anew.
        self.environ = dict(os.environ)
        self._options = dict(cfg or {})
        self._arguments = arguments
        self.served = Served("")
        super().__init__(USAGE, prog=prog)
        self._configured_environ = dict(os.environ)

    # -- options ---------------------------------------------------------------------------------------------

    def do_load_config(self) -> None:
        """
        Read all options anew; the old ones stay in force if any is wrong.

        :raises SettingsError: as the class.
        """
        previous = self.cfg, self.served
        try:
            super().load_default_config()
            self.load_config()
            validate = getattr(self.cfg, "validate", None)  # gunicorn 27
            if validate is not None:
                validate()
        except Exception as error:
            if previous[0] is not None:
                self.restore(*previous)
            if isinstance(error, ConfigError):
                raise SettingsError(str(error)) from error
            raise

    def restore(self, cfg: Any, served: Served) -> None:
        """
        Go back to older options, and to where they stand.

        :param cfg: the options before those that turned out to be wrong.
        :param served: what was served then.
        """
        self.cfg, self.served = cfg, served
        with contextlib.suppress(SettingsError):  # its directory may be gone
            self.chdir()

    def chdir(self) -> None:
        try:
            super().chdir()
        except OSError as error:
            raise SettingsError(
                limits.refusal("chdir", self.cfg.chdir, error, limits.GUNICORNS["chdir"].allowed)
            ) from error

    def load_config(self) -> None:
        parser = self.cfg.parser()
        commandline.make_ours(parser)
        command_line = commandline.parse(parser, self._arguments or (), source="command line")
        environment = commandline.parse(parser, self._words_of_environment(), source="GUNICORN_CMD_ARGS")
        self.chdir()
        self._apply_names(self._options, source="cfg")
        config_file = command_line["config"] or environment["config"] or self._options.get("config")
        if config_file is None and self._arguments is not None:
            config_file = get_default_config_file()
        from_file = self._read_config_file(config_file) if config_file else {}
        self._apply_names(from_file, source=str(config_file))

        layers: list[tuple[str, Mapping[str, Any]]] = [
            ("cfg", self._options),
            (str(config_file), from_file),
            ("GUNICORN_CMD_ARGS", commandline.given(environment)),
            ("command line", commandline.given(command_line)),
        ]
        positional = command_line["args"]
        uris = [layer["wsgi_app"] for _, layer in layers if layer.get("wsgi_app")] + positional[:1]
        self.served = Served(uris[-1]) if uris else _api_server()
        defaults: list[tuple[str, Mapping[str, Any]]] = [
            ("default", {**_DEFAULTS, "default_proc_name": self.served.name})
        ]
        if self.served.is_airflow:
            defaults.append(self.airflow_options())
        for source, options in defaults + layers:
            settings.apply(self.cfg, options, source=source)
        self.chdir()
        checks.check(self.cfg)
        if not any(self.cfg.settings[name].get() for name in _OWN_LOGGING):
            self.cfg.set("logconfig_dict", self._logconfig())

    def _apply_names(self, options: Mapping[str, Any], *, source: str) -> None:
        """Look at those options early that the others depend on."""
        names = {name: options[name] for name in ("config", "wsgi_app") if name in options}
        settings.apply(self.cfg, names, source=source)

    def _words_of_environment(self) -> Sequence[str]:
        try:
            words: list[str] = self.cfg.get_cmd_args_from_env()
        except ValueError as error:
            raise SettingsError(
                limits.refusal("GUNICORN_CMD_ARGS", self.cfg.env_orig["GUNICORN_CMD_ARGS"], error, "options")
            ) from error
        return words

    def _logconfig(self) -> dict[str, Any]:
        """The log configuration where the operator has none of his own."""
        if self.served.is_airflow:
            found: dict[str, Any] = _airflow().logconfig(level=self.cfg.loglevel)
            return found
        is_terminal = self.cfg.errorlog == "-" and sys.stderr.isatty()
        return logconfig.build(
            level=self.cfg.loglevel,
            log_format=self.cfg.log_format or ("console" if is_terminal else "json"),
            colors=is_terminal,
            errorlog=self.cfg.errorlog,
            accesslog=self.cfg.accesslog,
        )

    def airflow_options(self) -> tuple[str, Mapping[str, Any]]:
        """The options that Airflow gives us when it is what we serve, after where they come from."""
        return "Airflow's [api] section", _airflow().api_options()

    def _read_config_file(self, location: str) -> dict[str, Any]:
        """Run a configuration file; names in it that are no settings are its own affair."""
        try:
            if location.startswith("python:"):
                names = self.get_config_from_module_name(location[len("python:") :])
            else:
                names = self.get_config_from_filename(location.removeprefix("file:"))
        except (Exception, SystemExit) as error:
            reason = limits.one_line(f"{type(error).__name__}: {error}")
            raise SettingsError(f"config: {location} could not be read ({reason})") from error
        return {name: value for name, value in names.items() if name in self.cfg.settings}

    def get_config_from_filename(self, filename: str) -> dict[str, Any]:
        """
        Run a configuration file and return its names.

        :raises Exception: whatever the file raises; gunicorn's own prints it and exits, which no reload may.
        """
        spec = importlib.util.spec_from_loader("__config__", SourceFileLoader("__config__", filename))
        if spec is None or spec.loader is None:
            raise SettingsError(f"config: {filename} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules["__config__"] = module
        spec.loader.exec_module(module)
        return vars(module)

    # -- the app ---------------------------------------------------------------------------------------------

    def load(self) -> Any:
        return self.served.load()

    def origin(self) -> tuple[str, str]:
        """
        Tell how another process makes this application anew.

        :return: as :func:`airflow_arbiter.handover.carry`.
        :raises IntegrationError: for options that cannot be carried.
        """
        args, kwargs = self._made_of
        return handover.carry(type(self), args, kwargs)

    def keep(self) -> dict[str, Any]:
        """
        Tell what another process needs to be this application beside its arguments, in JSON's types.

        It may hold secrets: it lies in memory only, and no environment nor command line shows it.
        """
        return self.served.keep()

    def take_up(self, kept: dict[str, Any]) -> None:
        """
        Go on with what an earlier image of this application has kept.

        :param kept: as :meth:`keep` has told it, perhaps in another version of this package.
        """
        self.served.take_up(kept)

    def watched_folders(self) -> list[Path]:
        """The folders whose change asks for a reload."""
        plugins = [_airflow().plugins_folder()] if self.cfg.reload_on_plugin_change else []
        return [*plugins, *(Path(path).absolute() for path in self.cfg.reload_path)]

    def leave_worker(self) -> None:
        """Give back, at the end of a worker, what outlives the app's lifespan."""
        self.served.leave_worker()


def _with_changes(environment: Mapping[str, str], *, since: Mapping[str, str]) -> dict[str, str]:
    """
    Bring in what was set and unset in our environment by the program that serves.

    :param environment: where to bring it in.
    :param since: our environment as it was before.
    """
    changed = dict(environment)
    for name in {*since, *os.environ}:
        value = os.environ.get(name)
        if value == since.get(name):
            continue
        if value is None:
            changed.pop(name, None)
        else:
            changed[name] = value
    return changed


def _api_server() -> Served:
    """
    The Airflow API server, as what is served.

    :raises IntegrationError: when Airflow is not installed.
    """
    _airflow()
    from airflow_arbiter.api_server import ApiServer

    return ApiServer()


def _airflow() -> Any:
    """
    The module that knows Airflow.

    :raises IntegrationError: when Airflow is not installed.
    """
    try:
        from airflow_arbiter import provider
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "airflow":
            raise
        raise IntegrationError(
            "Airflow is not installed and no APP_MODULE is given; install it "
            "(pip install 'airflow-arbiter[airflow]') or name an ASGI app (module:app)"
        ) from None
    return provider
