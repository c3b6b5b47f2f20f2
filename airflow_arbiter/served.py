"""
The app that is served: where it comes from, and what it needs done around a fork and an event loop.

Owns what any ASGI app needs, which is nothing. :mod:`airflow_arbiter.api_server` has what Airflow's does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gunicorn import util


class Served:
    """
    An ASGI app that nothing is known of.

    :param uri: where it is, as ``module:app``.
    """

    is_airflow = False
    """Whether it is the Airflow API server, whose options are ours too, and whose log has our lines."""

    logs_requests = False
    """Whether it has an access log of its own."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    @property
    def name(self) -> str:
        """What it is called where people look."""
        return self._uri

    # -- in the master ---------------------------------------------------------------------------------------

    def load(self) -> Any:
        """
        Load it. Once for all workers in the master, where that preloads it.

        :raises Exception: whatever its import raises.
        """
        return util.import_app(self._uri)

    def keep(self) -> dict[str, Any]:
        """Tell what it needs, in JSON's types, to be the same in another process."""
        return {}

    def take_up(self, kept: dict[str, Any]) -> None:
        """
        Go on with what it was in an earlier image of this process, before it is loaded.

        :param kept: as :meth:`keep` has told it, perhaps in another version of this package.
        """

    def troubles(self) -> dict[str, str]:
        """What is wrong with it, though it serves, by name: e.g. a broken plugin. It has been loaded."""
        return {}

    def plugin_folders(self) -> list[Path]:
        """The folders with code of the operator's that it loads."""
        return []

    def exporters(self) -> dict[str, str]:
        """Why it has threads that send measurements from the beginning, by the package they run."""
        return {}

    def metrics(self) -> Any:
        """
        Open what it sends metrics to, for the server's own; None where it sends none.

        :raises IntegrationError: where that cannot be used by a master that forks.
        """
        return None

    def prepare_fork(self) -> None:
        """Let go of what a worker must not inherit."""

    # -- in a worker -----------------------------------------------------------------------------------------

    def enter_worker(self) -> None:
        """Forget, in a worker that was just forked, what belongs to threads of the master."""

    async def enter_loop(self) -> None:
        """Make, at the beginning of an event loop, its connections that a first request waits for."""

    async def connect_worker(self) -> None:
        """Make all connections that a worker's first request would wait for."""

    async def leave_loop(self) -> None:
        """Give back, at the end of an event loop, what belongs to it."""

    def leave_worker(self) -> None:
        """Give back, at the end of a worker, what it holds beyond its lifespan."""
