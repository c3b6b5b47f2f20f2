"""
What an operator has ordered of the replacing of workers, beyond the options.

Owns the orders as one value, and how each new one changes it. What follows from them for workers is in
:mod:`airflow_arbiter.conditions` and :mod:`airflow_arbiter.rollout`. Pure; knows nobody.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

OPEN_KEPT = 100
"""Restarts and reloads that may be open at once; where there are more, the oldest are given up."""

GIVEN_UP_KEPT = 8
"""How many times of giving up are remembered: who waits asks twice a second."""

TOO_MANY = "too many orders came after it"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """
    Restarts and reloads that ended together, and not well.

    :param revisions: their numbers.
    :param because: what has failed, in words; empty where a person has given them up.
    """

    revisions: tuple[int, ...]
    because: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """
    All orders up to now. They outlive a reload.

    Who is to be replaced follows from marks, not from lists: whoever is older than a restart, or of an older
    generation. Only single workers are named, by age, which never comes again.

    :param revision: how many restarts and reloads were ordered: the number of the last one.
    :param reloads: how many of these were reloads.
    :param open: the revisions that are neither complete nor given up.
    :param awaiting: those of them that are reloads whose code or configuration is not in yet.
    :param given_up: what was given up last.
    :param is_paused: nobody is replaced.
    :param is_given_up: the last order of all was to give up, so that newcomers are those who are too many.
    :param restart_age: workers up to this age are to be replaced.
    :param stopped: ages of single workers that are to be replaced.
    :param spared_generation: as long as this is the pool's generation, older workers may stay.
    """

    revision: int = 0
    reloads: int = 0
    open: tuple[int, ...] = ()
    awaiting: tuple[int, ...] = ()
    given_up: tuple[GivenUp, ...] = ()
    is_paused: bool = False
    is_given_up: bool = False
    restart_age: int = 0
    stopped: tuple[int, ...] = ()
    spared_generation: int = 0

    @property
    def aborted(self) -> int:
        """The last revision that was given up; 0 if there is none."""
        return max((revision for item in self.given_up for revision in item.revisions), default=0)

    @property
    def rolling(self) -> tuple[int, ...]:
        """The open revisions for which workers are to be replaced now."""
        return tuple(revision for revision in self.open if revision not in self.awaiting)

    def restart(self, newest_age: int) -> Orders:
        """
        Have everybody replaced who is there.

        :param newest_age: the age of the last worker that was spawned.
        """
        return replace(self._open(), restart_age=newest_age)

    def reload(self) -> Orders:
        """Have new code and configuration taken in, which will open the next generation."""
        orders = self._open()
        return replace(orders, reloads=self.reloads + 1, awaiting=(*orders.awaiting, orders.revision))

    def _open(self) -> Orders:
        """Give the next order its number."""
        orders = self._end(self.open[: 1 - OPEN_KEPT], because=TOO_MANY)
        revision = self.revision + 1
        return replace(orders, revision=revision, open=(*orders.open, revision), is_given_up=False)

    def settle_reload(self, *, failure: str = "") -> Orders:
        """
        Know that the reloads that were awaited are in, or will never be.

        :param failure: why they will not, in words.
        """
        orders = self._end(self.awaiting, because=failure) if failure else self
        return replace(orders, awaiting=())

    def complete(self) -> Orders:
        """Know that everybody is replaced whom an order was meant for; an awaited reload stays open."""
        return replace(self, open=self.awaiting)

    def pause(self) -> Orders:
        """Have nobody replaced for now."""
        return replace(self, is_paused=True)

    def resume(self) -> Orders:
        """Have replacing go on."""
        return replace(self, is_paused=False)

    def abort(self, generation: int) -> Orders:
        """
        Have nobody replaced any more for what was ordered up to now.

        :param generation: the pool's.
        """
        return replace(
            self._end(self.open), is_given_up=True, restart_age=0, stopped=(), spared_generation=generation
        )

    def give_up(self, because: str) -> Orders:
        """
        Know that nobody will be replaced for what was ordered, as far as no reload is awaited.

        :param because: what it fails of, in words.
        """
        return self._end(self.rolling, because=because)

    def _end(self, revisions: tuple[int, ...], *, because: str = "") -> Orders:
        """Give some revisions up."""
        if not revisions:
            return self
        given_up = (*self.given_up, GivenUp(revisions=revisions, because=because))[-GIVEN_UP_KEPT:]
        return replace(
            self,
            open=tuple(revision for revision in self.open if revision not in revisions),
            awaiting=tuple(revision for revision in self.awaiting if revision not in revisions),
            given_up=given_up,
        )

    def stop(self, age: int) -> Orders:
        """Have one worker replaced."""
        return self if age in self.stopped else replace(self, stopped=(*self.stopped, age))

    def forget(self, living: Collection[int]) -> Orders:
        """Keep the names of those only that are still there."""
        stopped = tuple(age for age in self.stopped if age in living)
        return self if stopped == self.stopped else replace(self, stopped=stopped)
