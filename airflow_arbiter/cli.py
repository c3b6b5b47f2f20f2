"""
The commands for a server that runs: ``airflow-arbiter status`` and its like, and ``airflow arbiter status``.

Owns their names, arguments and exit codes: 0 done, 1 not done or nobody there, 2 a wrong argument. The tree
of commands is a plain value, so that our own command line and Airflow's are made of the same. What they do is
in :mod:`airflow_arbiter.verbs`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from airflow_arbiter import screen, verbs
from airflow_arbiter.errors import ArbiterError
from airflow_arbiter.verbs import FAILED, WrongArgumentError

PROG = "airflow-arbiter"
USAGE_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """
    An argument of a command.

    :param flags: its name, or its options.
    :param settings: as :meth:`argparse.ArgumentParser.add_argument` takes them.
    """

    flags: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """
    A command.

    :param run: does it, and returns the exit code.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Commands that belong together."""

    name: str
    help: str
    verbs: tuple[Verb, ...]


Command: TypeAlias = Verb | Group


# -- arguments
# -------------------------------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 < value < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


_PID = Argument(
    flags=("--pid",), settings={"type": int, "help": "The master's pid, where several servers run"}
)
_SOCKET = Argument(
    flags=("--socket",), settings={"metavar": "PATH", "help": "The control socket, where it is elsewhere"}
)
_SERVER = (_PID, _SOCKET)
_OUTPUT = Argument(
    flags=("-o", "--output"),
    settings={
        "choices": tuple(screen.OUTPUTS),
        "default": "table",
        "metavar": f"({', '.join(screen.OUTPUTS)})",
        "help": f"Output format: {', '.join(screen.OUTPUTS)} (default: table)",
    },
)
_WATCH = Argument(
    flags=("--watch",),
    settings={"action": "store_true", "help": "Look again every second; as JSON, one line for each look"},
)
_WAIT = Argument(
    flags=("--wait",), settings={"action": "store_true", "help": "Wait until it is complete, or is not to be"}
)
_TIMEOUT = Argument(
    flags=("--timeout",),
    settings={
        "type": _seconds,
        "metavar": "SECONDS",
        "help": "With --wait: wait no longer than this (default: for ever)",
    },
)
_WAITING = (*_SERVER, _WAIT, _TIMEOUT)


# -- the tree
# -------------------------------------------------------------------------------------------------------

_DOCTOR = "doctor"

COMMANDS: tuple[Command, ...] = (
    Verb(
        name="status",
        help="Tell how the server and its workers are",
        run=verbs.status,
        arguments=(*_SERVER, _OUTPUT, _WATCH),
    ),
    Group(
        name="rollout",
        help="The replacing of workers",
        verbs=(
            Verb(
                name="restart", help="Replace all workers, one by one", run=verbs.restart, arguments=_WAITING
            ),
            Verb(
                name="status",
                help="Tell how far the replacing of workers is; exit code 1 where it is held up",
                run=verbs.rollout_status,
                arguments=_WAITING,
            ),
            Verb(
                name="pause",
                help="Replace no worker until resume; those that are lost still are",
                run=verbs.plainly("rollout pause"),
                arguments=_SERVER,
            ),
            Verb(
                name="resume",
                help="Go on with the replacing of workers",
                run=verbs.plainly("rollout resume"),
                arguments=_SERVER,
            ),
            Verb(
                name="abort",
                help="Give up the restarts and reloads that are under way",
                run=verbs.plainly("rollout abort"),
                arguments=_SERVER,
            ),
        ),
    ),
    Verb(
        name="reload",
        help="Take in the configuration and the code anew, and replace all workers",
        run=verbs.reload,
        arguments=_WAITING,
    ),
    Verb(
        name="scale",
        help="Want another number of workers",
        run=verbs.plainly("scale {workers}"),
        arguments=(Argument(flags=("workers",), settings={"type": int, "metavar": "N"}), *_SERVER),
    ),
    Group(
        name="worker",
        help="One worker",
        verbs=(
            Verb(
                name="stop",
                help="Replace a worker: it leaves once its successor serves",
                run=verbs.plainly("worker stop {worker}"),
                arguments=(Argument(flags=("worker",), settings={"type": int, "metavar": "PID"}), *_SERVER),
            ),
        ),
    ),
    Verb(
        name=_DOCTOR,
        help="Boot a worker for a moment, beside what runs, and say what to set. Master hooks, log files and "
        "metrics of the configuration are left out; hooks of a worker, and what the app does, are not",
        run=verbs.examine,
        arguments=(
            Argument(
                flags=("server",),
                settings={
                    "nargs": argparse.REMAINDER,
                    "metavar": "...",
                    "help": "What it is to serve, and options, as one starts the server; after --, where the "
                    "first is an option",
                },
            ),
        ),
    ),
)
"""All commands."""


# -- the command line
# -------------------------------------------------------------------------------------------------------


def perform(run: Callable[[argparse.Namespace], int], args: argparse.Namespace, *, prog: str = PROG) -> int:
    """
    Do what a command says, and tell in one line why it could not be done.

    :param prog: the program's name, for that line.
    :return: the exit code.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # for as long as we live
    if sys.stdout is None:
        return _fail(prog, "there is no standard output to write to")
    try:
        code = run(args)
        sys.stdout.flush()
        return code
    except WrongArgumentError as error:
        _fail(prog, str(error))
        return USAGE_ERROR
    except ArbiterError as error:
        return _fail(prog, str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # The interpreter must not find that out once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else whoever reads has enough, as head(1)
            _fail(prog, f"it could not be written: {error.strerror or error}")
        return FAILED


def _fail(prog: str, because: str) -> int:
    sys.stderr.write(f"{prog}: error: {' '.join(because.split())}\n")
    return FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Read a command line, and do what it says.

    :param arguments: without the program's name; None takes this process's.
    :return: the exit code.
    :raises SystemExit: with 2 for a wrong argument.
    """
    parser = argparse.ArgumentParser(prog=PROG, description="Look at a server that runs, and steer it.")
    _add(parser, COMMANDS)
    args = parser.parse_args(_set_apart(sys.argv[1:] if arguments is None else arguments))
    return perform(args.run, args)


def _set_apart(words: Sequence[str]) -> list[str]:
    """Have argparse leave alone what is the server's: it takes a first option for one of ours."""
    if words[:1] == [_DOCTOR] and words[1:] not in (["-h"], ["--help"]) and words[1:2] != ["--"]:
        return [_DOCTOR, "--", *words[1:]]
    return list(words)


def _add(parser: argparse.ArgumentParser, commands: Sequence[Command]) -> None:
    parsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        added = parsers.add_parser(command.name, help=command.help, description=command.help)
        if isinstance(command, Group):
            _add(added, command.verbs)
            continue
        for argument in command.arguments:
            added.add_argument(*argument.flags, **argument.settings)
        added.set_defaults(run=command.run)
