"""The JSON file: it is whole after each figure, so that a run which is cut short has not been in vain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.results import Figures


class Record:
    """
    What one run has found so far.

    :param path: where it is kept; None keeps it in memory only.
    :param facts: the machine's, and what else the figures depend on.
    :param command: that made it.
    """

    def __init__(self, path: Path | None, *, facts: dict[str, Any], command: str) -> None:
        self._path = path
        self.data: dict[str, Any] = {"command": command, "machine": facts, "took_s": {}, "cases": {}}

    def add(self, case: str, found: dict[str, Figures]) -> None:
        """Take in one repetition of some servers."""
        for server, figures in found.items():
            self.data["cases"].setdefault(case, {}).setdefault(server, []).append(figures)
        self._write()

    def spent(self, case: str, seconds: float) -> None:
        """Add to the time that a case has taken."""
        took: dict[str, float] = self.data["took_s"]
        took[case] = round(took.get(case, 0.0) + seconds, 1)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(f"{self._path.suffix}.part")
        draft.write_text(json.dumps(self.data, indent=1) + "\n")
        draft.replace(self._path)


def read(path: Path) -> dict[str, Any]:
    """Read what a run has written."""
    data: dict[str, Any] = json.loads(path.read_text())
    return data
