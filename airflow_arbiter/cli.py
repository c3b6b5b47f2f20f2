"""
The commands for a server that runs: ``airflow-arbiter status`` and its like, and ``airflow arbiter status``.

Owns their names, arguments and exit codes: 0 done, 1 not done or nobody there, 2 a wrong argument. The tree
of commands is a plain value, so that our own command line and Airflow's are made of the same.
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

from airflow_arbiter import answers, client, screen
from airflow_arbiter.client import LostError
from airflow_arbiter.errors import ArbiterError, CommandError

PROG = "airflow-arbiter"
FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130
WATCH_S = 1.0


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


class WrongArgumentError(ArbiterError):
    """
    Arguments do not go together; the message says which.
    """


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


# -- what they do
# -------------------------------------------------------------------------------------------------------


def _find(args: argparse.Namespace) -> Path:
    return client.find(pid=args.pid, path=args.socket)


def _status(args: argparse.Namespace) -> int:
    if not args.watch:
        screen.OUTPUTS[args.output](client.report(_find(args)))
        return 0
    if args.output not in screen.WATCHES:
        raise WrongArgumentError(f"--watch goes with --output {' or '.join(screen.WATCHES)}")
    screen.WATCHES[args.output](client.follow(_find(args), interval_s=WATCH_S))
    return 0


def _rollout_status(args: argparse.Namespace) -> int:
    patience = _patience(args)
    path = _find(args)
    if args.wait:
        first = next(client.follow(path, limit_s=patience.left_s), None)
        return _wait(path, None if first is None else _under_way(first), patience)
    seen = client.report(path)
    _say(screen.rollout_words(seen))
    return FAILED if seen["rollout"]["stalled"] else 0


def _under_way(seen: client.AsJson) -> int | None:
    """The number of the last restart or reload, if that is not over."""
    revision: int = seen["rollout"]["revision"]
    return revision if revision in seen["rollout"]["open"] else None


def _restart(args: argparse.Namespace) -> int:
    return _begin("rollout restart", args)


def _reload(args: argparse.Namespace) -> int:
    return _begin("reload", args)


def _begin(command: str, args: argparse.Namespace) -> int:
    patience = _patience(args)
    path = _find(args)
    revision = answers.revision(_order(path, command, patience))
    if args.wait:
        return _wait(path, revision, patience)
    _say(f"taken, as revision {revision}")
    return 0


def _patience(args: argparse.Namespace) -> client.Patience:
    if args.timeout is not None and not args.wait:
        raise WrongArgumentError("--timeout is how long --wait waits: it goes with that")
    return client.Patience(args.timeout)


def _order(path: Path, command: str, patience: client.Patience) -> object:
    """
    Give an order, and say what is not known where no answer has come.

    :raises LostError: then, or another error as :func:`client.ask`.
    """
    try:
        return client.ask(path, command, timeout_s=patience.for_an_answer_s)
    except LostError as error:
        raise LostError(f"{error}; it may still do what it was told") from error


def _wait(path: Path, revision: int | None, patience: client.Patience) -> int:
    """
    Wait until a rollout is complete.

    :raises CommandError: when it is not to be, or not within the time.
    """
    stands = "the server has not answered"
    with screen.progress() as tell:
        for seen in client.follow(path, limit_s=patience.left_s):
            because = client.verdict(seen, revision)
            tell(seen, is_complete=because == "")
            if because is not None:
                break
            stands = screen.rollout_words(seen)
        else:
            raise CommandError(f"not complete within {patience.limit_s:g} s: {stands}")
    if because:
        raise CommandError(f"not complete: {because}")
    _say(f"complete: {seen['pool']['available']} of {seen['pool']['target']} workers available")
    return 0


def _plainly(command: str) -> Callable[[argparse.Namespace], int]:
    """A command that the server only takes."""

    def run(args: argparse.Namespace) -> int:
        _order(_find(args), command.format(**vars(args)), client.Patience())
        _say("taken")
        return 0

    return run


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _doctor(args: argparse.Namespace) -> int:
    from airflow_arbiter import doctor, examination

    words = args.server[1:] if args.server[:1] == ["--"] else args.server
    advice = doctor.advise(examination.examine(words))
    width = max(len(name) for name, _ in advice)
    for name, text in advice:
        _say(f"{name:<{width}}  {text}")
    return 0


_DOCTOR = "doctor"

COMMANDS: tuple[Command, ...] = (
    Verb(
        name="status",
        help="Tell how the server and its workers are",
        run=_status,
        arguments=(*_SERVER, _OUTPUT, _WATCH),
    ),
    Group(
        name="rollout",
        help="The replacing of workers",
        verbs=(
            Verb(name="restart", help="Replace all workers, one by one", run=_restart, arguments=_WAITING),
            Verb(
                name="status",
                help="Tell how far the replacing of workers is; exit code 1 where it is held up",
                run=_rollout_status,
                arguments=_WAITING,
            ),
            Verb(
                name="pause",
                help="Replace no worker until resume; those that are lost still are",
                run=_plainly("rollout pause"),
                arguments=_SERVER,
            ),
            Verb(
                name="resume",
                help="Go on with the replacing of workers",
                run=_plainly("rollout resume"),
                arguments=_SERVER,
            ),
            Verb(
                name="abort",
                help="Give up the restarts and reloads that are under way",
                run=_plainly("rollout abort"),
                arguments=_SERVER,
            ),
        ),
    ),
    Verb(
        name="reload",
        help="Take in the configuration and the code anew, and replace all workers",
        run=_reload,
        arguments=_WAITING,
    ),
    Verb(
        name="scale",
        help="Want another number of workers",
        run=_plainly("scale {workers}"),
        arguments=(Argument(flags=("workers",), settings={"type": int, "metavar": "N"}), *_SERVER),
    ),
    Group(
        name="worker",
        help="One worker",
        verbs=(
            Verb(
                name="stop",
                help="Replace a worker: it leaves once its successor serves",
                run=_plainly("worker stop {worker}"),
                arguments=(Argument(flags=("worker",), settings={"type": int, "metavar": "PID"}), *_SERVER),
            ),
        ),
    ),
    Verb(
        name=_DOCTOR,
        help="Boot a worker for a moment, beside what runs, and say what to set. Master hooks, log files and "
        "metrics of the configuration are left out; hooks of a worker, and what the app does, are not",
        run=_doctor,
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
