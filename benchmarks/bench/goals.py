"""The goals: what each asks, what was measured, and whether it is met. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bench.load import OK
from bench.results import OURS, Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """
    One goal, on the figures of one run.

    :param asks: in words, without the limit.
    :param limit: that the figure must keep.
    :param figure: makes it of the results; None if something it needs was not measured.
    :param is_least: the figure must be the limit at least, instead of at most.
    :param form: of the figure, as for :meth:`str.format`.
    """

    asks: str
    limit: float
    figure: Callable[[Results], float | None]
    is_least: bool = False
    form: str = "{:.3f}"

    def is_met(self, figure: float) -> bool:
        """Whether a figure keeps the limit."""
        return figure >= self.limit if self.is_least else figure <= self.limit

    def row(self, results: Results) -> tuple[str, str, str, str]:
        """The goal, its limit, what was measured, and the verdict."""
        figure = self.figure(results)
        limit = f"at {'least' if self.is_least else 'most'} {self.limit:g}"
        if figure is None:
            return self.asks, limit, "-", "not measured"
        return self.asks, limit, self.form.format(figure), "met" if self.is_met(figure) else "**not met**"


def _ratio(case: str, key: str, to: str) -> Callable[[Results], float | None]:
    return lambda results: results.ratio(case, OURS, key, to)


def _slowest_rolling_to_steady(results: Results) -> float | None:
    case = "airflow-latency 4"
    steady, rolling = (results.values(case, OURS, key) for key in ("steady_max_ms", "rolling_max_ms"))
    if not (steady and rolling and _all_were_whole(results, case)):
        return None
    answered = results.total(case, OURS, "rolling_outcomes")
    # A request that failed was as slow as can be.
    return max(rolling) / max(steady) if answered.total() == answered[OK] else math.inf


def _lost(results: Results) -> float | None:
    failed = results.values("lost 4", OURS, "failed")
    return sum(failed) if failed and _all_were_whole(results, "lost 4") else None


def _away(results: Results) -> float | None:
    fewest = results.values("held 4", OURS, "fewest_listening")
    return min(fewest) if fewest and _all_were_whole(results, "held 4") else None


def _all_were_whole(results: Results, case: str) -> bool:
    """Whether every roll was seen to its end, under the conditions that were wanted."""
    return all(
        figures.get("seconds") is not None and not figures.get("note")
        for figures in results.figures(case, OURS)
    )


def _memory(mode: str, limit: float, to: str) -> tuple[Goal, ...]:
    asks = f"memory of 4 Airflow workers after requests, of Airflow's {mode} mode"
    return (
        Goal(asks=asks, limit=limit, figure=_ratio("memory 4", "asked_tree_mib", to)),
        Goal(asks=f"{asks}, with the schema", limit=limit,
             figure=_ratio("memory 4", "schema_tree_mib", to)),
    )  # fmt: skip


GOALS = (
    *_memory("gunicorn", 0.70, "airflow"),
    *_memory("uvicorn", 0.36, "uvicorn"),
    Goal(asks="each further Airflow worker after requests, MiB",
         limit=35, figure=lambda results: results.price("memory", OURS, "asked_tree_mib"), form="{:.0f}"),
    Goal(asks="each further Airflow worker after requests, with the schema, MiB",
         limit=35, figure=lambda results: results.price("memory", OURS, "schema_tree_mib"), form="{:.0f}"),
    Goal(asks="request rate of the tiny app, of gunicorn with uvicorn-worker",
         limit=0.98, figure=_ratio("rate 1", "per_s", "gunicorn"), is_least=True),
    Goal(asks="roll of 24 workers, of Airflow's gunicorn mode",
         limit=0.15, figure=_ratio("roll 24", "seconds", "airflow")),
    Goal(asks="time to the first answer, 4 Airflow workers, of Airflow's gunicorn mode",
         limit=1.0, figure=_ratio("memory 4", "first_answer_s", "airflow")),
    Goal(asks="slowest request of Airflow while rolling, of the slowest in steady state",
         limit=1.0, figure=_slowest_rolling_to_steady),
    Goal(asks="requests lost in rolls under load", limit=0, figure=_lost, form="{:.0f}"),
    Goal(asks="fewest of 4 workers listening while old ones hold requests and are rolled",
         limit=4, figure=_away, is_least=True, form="{:.0f}"),
)  # fmt: skip
"""Those of the issue, and two promises that have a figure."""
