"""The types of the fixtures that start servers and switch faults."""

from __future__ import annotations

from typing import Protocol

from harness.server import Server


class Start(Protocol):
    """Starts a server."""

    def __call__(
        self,
        *arguments: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        workers: int | None = 4,
    ) -> Server: ...


class SetFault(Protocol):
    """Switches a fault of the app on, for processes that look from now on; an empty one switches it off."""

    def __call__(self, where: str, what: str) -> None: ...
