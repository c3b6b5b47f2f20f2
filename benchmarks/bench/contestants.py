"""Who is compared: the same tiny app, from this Python, each server with the defaults of its own."""

from __future__ import annotations

import re

from bench.server import SERVED, Server

APP = "tiny:app"


class Ours(Server):
    name = "ours"
    label = "airflow_arbiter"

    def command(self) -> list[str]:
        return ["-m", "airflow_arbiter", *bind(self), APP]

    def longest_turn_ms(self) -> float | None:
        """The longest turn of the master's loop, as it said when it ended."""
        return longest_turn_ms(self.log())


class AirflowGunicorn(Server):
    """
    Airflow's own arbiter, which has no command: a roll begins when its timer is up.

    gunicorn's SIGHUP would replace all workers at once, ungated, which is not its roll.
    """

    name = "airflow"
    label = "Airflow gunicorn mode"
    needs = "airflow"
    begins_by_age = True

    def command(self) -> list[str]:
        script = str(SERVED / "airflow_gunicorn.py")
        return [script, "--port", str(self.port), "--workers", str(self.workers)]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "AIRFLOW__API__GUNICORN_ARBITER": "airflow"}


class Uvicorn(Server):
    """uvicorn's own master, which is also what Airflow's uvicorn mode runs."""

    name = "uvicorn"
    label = "uvicorn (Airflow's uvicorn mode)"
    alone_with_one = True

    def command(self) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        return ["-m", "uvicorn", *where, "--workers", str(self.workers), "--no-access-log", APP]


class Gunicorn(Server):
    name = "gunicorn"
    label = "gunicorn + uvicorn-worker"

    def command(self) -> list[str]:
        return ["-m", "gunicorn", *bind(self), "-k", "uvicorn_worker.UvicornWorker", APP]


class Granian(Server):
    name = "granian"
    label = "granian"
    needs = "granian"

    def command(self) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        return ["-m", "granian", *where, "--workers", str(self.workers), "--interface", "asgi", APP]


SERVERS: tuple[type[Server], ...] = (Ours, AirflowGunicorn, Uvicorn, Gunicorn, Granian)
LABELS = {kind.name: kind.label for kind in SERVERS}
LABELS["ours-merging"] = "airflow_arbiter, memory_merge"
LABELS["ours-no-schema"] = "airflow_arbiter, warm-up without the schema"

COLOURS = {
    "ours": "#0b6e4f",
    "ours-merging": "#7fb685",
    "ours-no-schema": "#3da35d",
    "airflow": "#c8553d",
    "uvicorn": "#e0a458",
    "gunicorn": "#588b8b",
    "granian": "#8f7e9c",
}
"""In the plots."""


def longest_turn_ms(log: str) -> float | None:
    """Read the longest turn from a log of ours, the event ``arbiter.stopped``; None if it is not there."""
    ends = [line for line in log.splitlines() if "arbiter.stopped" in line]
    found = re.search(r"longest_turn_ms\W+([0-9.]+)", ends[-1]) if ends else None
    return float(found[1]) if found else None


def bind(server: Server) -> list[str]:
    """gunicorn's options for the place and the size."""
    return ["--bind", f"127.0.0.1:{server.port}", "--workers", str(server.workers)]
