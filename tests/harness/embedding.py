"""A program that embeds the server, with hooks that write down their calls."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from airflow_arbiter import AirflowGunicornApp


def _noted(name: str, arity: int) -> Any:
    def note() -> None:
        with Path(os.environ["NOTES"]).open("a") as notes:
            notes.write(f"{name} {os.getpid()}\n")

    return {
        1: lambda _: note(),
        2: lambda _, __: note(),
        3: lambda _, __, ___: note(),
    }[arity]


HOOKS = {
    "on_starting": 1,
    "when_ready": 1,
    "pre_fork": 2,
    "post_fork": 2,
    "post_worker_init": 1,
    "worker_exit": 2,
    "child_exit": 2,
    "nworkers_changed": 3,
    "on_reload": 1,
    "on_exit": 1,
}

if __name__ == "__main__":
    cfg = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    hooks = {name: _noted(name, arity) for name, arity in HOOKS.items()}
    AirflowGunicornApp({**cfg, "wsgi_app": "faulty:app", "proc_name": "embedded", **hooks}).run()
