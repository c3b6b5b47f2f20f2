"""
The program of a master's new image, and of the preflight before it.

Run by path, with a handover's descriptor: ``resume.py FD`` goes on as the master that the handover describes,
``resume.py FD preflight PIPE`` only tries whether that would work. Must not be imported.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Our own folder: its modules must not be found by their short names.
    sys.path.pop(0)

import json
import os
import signal
from typing import Any

RETRY_S = 1.0
"""Pause before a configuration that could not be read is tried again."""


def main() -> None:
    fd = int(sys.argv[1])
    options = sys.argv[2:]
    with os.fdopen(os.dup(fd), "rb") as file:
        wanted = json.loads(file.read())["path"]
    os.lseek(fd, 0, os.SEEK_SET)
    # The caller's own order, and whatever has come since.
    sys.path[:] = [*wanted, *(entry for entry in sys.path if entry not in wanted)]

    from airflow_arbiter.handover import Handover

    if options:
        from airflow_arbiter import preflight

        preflight.run(Handover.read(fd), int(options[1]))
        return
    handover = Handover.read(fd)
    app = _make_app(handover)

    from airflow_arbiter import launch

    launch.resume(app, handover)


def _make_app(handover: Any) -> Any:
    """
    Read the configuration, which a moment ago, in the preflight, could be read.

    Should it have broken in that moment, the workers serve on, and it is tried again until it can be.
    """
    from airflow_arbiter import events

    while True:
        try:
            return handover.make_app()
        except (Exception, SystemExit):
            events.publish_exception("reload.failed")
        if asked := _wait():
            for worker in handover.workers:
                os.kill(worker["pid"], asked)
            for worker in handover.workers:
                os.waitpid(worker["pid"], 0)
            sys.exit(0)


def _wait() -> int:
    """Wait a little, and return the signal to end that came, or 0."""
    exits = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
    taken = signal.sigtimedwait(exits, RETRY_S)  # all signals are blocked since the exec
    return 0 if taken is None else taken.si_signo


if __name__ == "__main__":
    main()
