"""What was measured, as the tables, goals and plots ask for it. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bench.stats import paired_ratio, price

OURS = "ours"

Figures = Mapping[str, Any]
"""What one measurement found: names that end in their unit, and numbers. ``note`` says what is missing."""

Cases = Mapping[str, Mapping[str, Sequence[Figures]]]
"""For each case ("roll 24"), for each server, its repetitions."""


class Results:
    """
    All repetitions of all cases.

    :param cases: as in the JSON file.
    """

    def __init__(self, cases: Cases) -> None:
        self.cases = cases

    def names(self, measure: str = "") -> list[str]:
        """The cases, or those of one measure, in order."""
        return [name for name in self.cases if measure in ("", name.split()[0])]

    def sizes(self, measure: str) -> list[int]:
        """The numbers of workers at which something was measured."""
        return sorted(int(name.split()[1]) for name in self.names(measure))

    def figures(self, case: str, server: str) -> list[Figures]:
        """The repetitions, none if there are none."""
        return list(self.cases.get(case, {}).get(server, []))

    def values(self, case: str, server: str, key: str) -> list[float]:
        """One figure of all repetitions that have it; a figure that is a list gives each of its members."""
        found: list[float] = []
        for figures in self.figures(case, server):
            value = figures.get(key)
            if value is not None:
                found += value if isinstance(value, list) else [value]
        return found

    def median(self, case: str, server: str, key: str) -> float | None:
        """The middle of a figure; None if it was not measured."""
        values = self.values(case, server, key)
        return statistics.median(values) if values else None

    def total(self, case: str, server: str, key: str) -> Counter[str]:
        """Sum up a figure that counts by kind, over all repetitions."""
        counts: Counter[str] = Counter()
        for figures in self.figures(case, server):
            counts.update(figures.get(key) or {})
        return counts

    def ratio(self, case: str, server: str, key: str, to: str = OURS) -> float | None:
        """
        Compare the medians of two servers.

        Figures that are lists were taken in turns, and are compared pair by pair.
        """
        values, base = self.values(case, server, key), self.values(case, to, key)
        if not values or not base or not statistics.median(base):
            return None
        if self._is_paired(case, key) and len(values) == len(base):
            return paired_ratio(values, base)
        return statistics.median(values) / statistics.median(base)

    def price(self, measure: str, server: str, key: str) -> float | None:
        """What one more worker adds to a figure; None without two sizes."""
        points = [
            (float(size), middle)
            for size in self.sizes(measure)
            if (middle := self.median(f"{measure} {size}", server, key)) is not None
        ]
        return price(*zip(*points, strict=True)) if len(points) > 1 else None

    def notes(self) -> list[str]:
        """One line for each figure that could not be taken."""
        return [
            f"{case}, {server}, repetition {number}: {found['note']}"
            for case, by_server in self.cases.items()
            for server, repetitions in by_server.items()
            for number, found in enumerate(repetitions, 1)
            if found.get("note")
        ]

    def _is_paired(self, case: str, key: str) -> bool:
        repetitions = [one for each in self.cases.get(case, {}).values() for one in each]
        return all(isinstance(one[key], list) for one in repetitions if one.get(key) is not None)
