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


def main() -> None:
    fd = int(sys.argv[1])
    options = sys.argv[2:]
    with os.fdopen(os.dup(fd), "rb") as file:
        wanted = json.loads(file.read())["path"]
    os.lseek(fd, 0, os.SEEK_SET)
    # The caller's own order, and whatever has come since.
    sys.path[:] = [*wanted, *(entry for entry in sys.path if entry not in wanted)]

    from airflow_arbiter.handover import Handover, close_on_exec

    handover = Handover.read(fd)
    if options:
        from airflow_arbiter import preflight

        preflight.run(handover, int(options[1]))
        return

    # Before foreign code runs, whose programs must not hold our sockets open.
    close_on_exec(*handover.descriptors())

    from airflow_arbiter import launch, stranded
    from airflow_arbiter.arbiter import AirflowArbiter

    arbiter = stranded.insist(lambda: AirflowArbiter(handover.make_app()), handover)
    launch.resume(arbiter, handover)


if __name__ == "__main__":
    main()
