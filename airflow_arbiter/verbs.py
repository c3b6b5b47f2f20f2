"""
What the commands for a server that runs do, once their arguments are known.

Owns what is asked of the server, what is printed of its answer, and whether that is a success. How to ask is
in :mod:`airflow_arbiter.client`, how it is drawn in :mod:`airflow_arbiter.screen`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from airflow_arbiter import answers, client, screen
from airflow_arbiter.client import LostError
from airflow_arbiter.errors import ArbiterError, CommandError

FAILED = 1
"""Exit code of what is not done, not complete, or held up."""

WATCH_S = 1.0


class WrongArgumentError(ArbiterError):
    """
    Arguments do not go together; the message says which.
    """


def _find(args: argparse.Namespace) -> Path:
    return client.find(pid=args.pid, path=args.socket)


def status(args: argparse.Namespace) -> int:
    """Print how everything stands, once or again and again."""
    if not args.watch:
        screen.OUTPUTS[args.output](client.report(_find(args)))
        return 0
    if args.output not in screen.WATCHES:
        raise WrongArgumentError(f"--watch goes with --output {' or '.join(screen.WATCHES)}")
    screen.WATCHES[args.output](client.follow(_find(args), interval_s=WATCH_S))
    return 0


def rollout_status(args: argparse.Namespace) -> int:
    """Print how far the replacing of workers is, or wait for its end."""
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


def restart(args: argparse.Namespace) -> int:
    """Order that all workers are replaced."""
    return _begin("rollout restart", args)


def reload(args: argparse.Namespace) -> int:
    """Order that code and configuration are taken in."""
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


def plainly(command: str) -> Callable[[argparse.Namespace], int]:
    """Make the function that gives an order which the server only takes."""

    def run(args: argparse.Namespace) -> int:
        _order(_find(args), command.format(**vars(args)), client.Patience())
        _say("taken")
        return 0

    return run


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def examine(args: argparse.Namespace) -> int:
    """Print what to set here."""
    from airflow_arbiter import doctor, examination

    words = args.server[1:] if args.server[:1] == ["--"] else args.server
    advice = doctor.advise(examination.examine(words))
    width = max(len(name) for name, _ in advice)
    for name, text in advice:
        _say(f"{name:<{width}}  {text}")
    return 0
