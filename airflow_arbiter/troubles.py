"""
Troubles of an app that serves all the same, such as plugins that could not be loaded.

Owns what becomes of them at a reload: those that were there before are nobody's fault, new ones are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


class UnfitError(Exception):
    """The app was loaded, and would not serve as it should."""


def refuse_new(troubles: Mapping[str, str], *, known: Collection[str]) -> None:
    """
    Refuse an app with troubles that it did not have. By name: what they tell may differ with each process.

    :param troubles: as :meth:`airflow_arbiter.served.Served.troubles`.
    :param known: the names of those that it had.
    :raises UnfitError: when there are such.
    """
    new = [f"{name}: {error}" for name, error in troubles.items() if name not in known]
    if new:
        raise UnfitError("; ".join(new))
