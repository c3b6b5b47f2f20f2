"""Sums of figures: medians, ranges, percentiles, ratios, prices. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], form: str) -> str:
    """
    Write a median, and the smallest and the largest if they differ from it.

    :param form: of one number, as for :meth:`str.format`.
    """
    low, middle, high = (form.format(of(values)) for of in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def percentile(values: Sequence[float], percent: float) -> float:
    """
    Tell the value that this share of all does not exceed: one that was really seen, by the nearest rank.

    :param values: in any order, one at least.
    :param percent: above 0, up to 100.
    """
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """
    Compare two series that were taken in turns: the median of the ratios of neighbours.

    A machine that slows down between one pair and the next changes both of a pair alike, and so no ratio.
    """
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def price(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Tell what one more costs: the slope of the straight line nearest to the points (least squares)."""
    return statistics.linear_regression(sizes, costs).slope
