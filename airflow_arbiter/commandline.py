"""
The command line of the server: gunicorn's own, with our words around it.

Owns how it is read, and what is said of a word that is no option. What the options may be is the settings' to
say.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from airflow_arbiter import limits
from airflow_arbiter.errors import SettingsError

COMMANDS_HELP = (
    "In place of all this, airflow-arbiter takes commands for a server that runs: doctor, reload, rollout, "
    "scale, status, worker. airflow-arbiter COMMAND --help tells of one."
)
ABOUT = (
    f"Serve APP_MODULE, or without it, and without any word at all, the Airflow API server. {COMMANDS_HELP}"
)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str], *, source: str) -> dict[str, Any]:
    """
    Read a command line.

    :raises SettingsError: for what is no option.
    """

    def refuse(message: str) -> NoReturn:
        raise SettingsError(f"{source}: {limits.one_line(message)}; see --help")

    parser.error = refuse  # type: ignore[method-assign]
    return vars(parser.parse_args(list(arguments)))


def make_ours(parser: argparse.ArgumentParser) -> None:
    """Leave values to the settings, and let ``--version`` tell ours too, not gunicorn's under our name."""
    parser.description = ABOUT
    for action in parser._actions:
        action.type = None
        if isinstance(action, argparse._VersionAction):
            action.version = f"%(prog)s {version('airflow-arbiter')} (gunicorn {version('gunicorn')})"


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were named on a command line."""
    return {name: value for name, value in options.items() if value is not None and name != "args"}
