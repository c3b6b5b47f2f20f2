"""
The command line: ``python -m airflow_arbiter [OPTIONS] [APP_MODULE]`` serves.

So does ``airflow-arbiter``, unless its first word is one of the commands for a server that runs.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from types import FrameType

from airflow_arbiter.compat import check_platform
from airflow_arbiter.errors import ArbiterError

PROG = "airflow-arbiter"
USAGE_ERROR = 2

COMMANDS = frozenset({"status", "rollout", "reload", "scale", "worker", "doctor"})
"""What is no app; an app in a module of such a name has a colon: ``status:app``."""


def console() -> None:
    """
    Serve, or look at a server that runs and steer it.

    :raises SystemExit: always in the end: as :func:`main`, or :func:`airflow_arbiter.cli.main`.
    """
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        from airflow_arbiter import cli

        sys.exit(cli.main())
    if near := _misspelt(sys.argv[1:]):
        sys.stderr.write(
            f"{PROG}: error: {sys.argv[1]!r} is no command, and there is no such module to serve: "
            f"did you mean {near!r}?\n"
        )
        sys.exit(USAGE_ERROR)
    main()


_ELSEWHERE = ("--chdir", "--pythonpath", "-c", "--config")
"""Options by which an app may be where we do not look."""


def _misspelt(words: Sequence[str]) -> str:
    """
    Find the command that the first word was meant to be.

    :return: empty where the word may be an app.
    """
    if not words or not words[0].isidentifier():
        return ""
    near = difflib.get_close_matches(words[0], sorted(COMMANDS), n=1)
    is_elsewhere = "GUNICORN_CMD_ARGS" in os.environ or any(word.startswith(_ELSEWHERE) for word in words)
    if not near or is_elsewhere or PathFinder.find_spec(words[0], ["", *sys.path]) is not None:
        return ""
    return near[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Serve until told to stop.

    :param arguments: the command line without the program's name; None takes this process's.
    :raises SystemExit: always in the end: 0 after a stop, 2 for a wrong option or an unsupported machine, 3
        for an app that cannot boot.
    """
    for sig in (signal.SIGTERM, signal.SIGINT):
        # Before seconds of imports: process 1 of a container has no default action that would end it.
        signal.signal(sig, _leave)
    try:
        check_platform()
        from airflow_arbiter.app import AirflowGunicornApp

        app = AirflowGunicornApp(arguments=sys.argv[1:] if arguments is None else arguments, prog=PROG)
    except ArbiterError as error:
        sys.stderr.write(f"{PROG}: error: {error}\n")
        sys.exit(USAGE_ERROR)
    app.run()


def _leave(_sig: int, _frame: FrameType | None) -> None:
    os._exit(0)  # there is nothing to give back yet, and an import may swallow an exception


if __name__ == "__main__":
    main()
