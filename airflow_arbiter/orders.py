"""
What an operator has ordered of the replacing of workers, beyond the options.

Owns the orders as one value, and how each new one changes it. What follows from them for workers is in
:mod:`airflow_arbiter.conditions` and :mod:`airflow_arbiter.rollout`. Pure; knows nobody.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """
    All orders up to now. They outlive a reload.

    Who is to be replaced follows from marks, not from lists: whoever is older than a restart, or of an older
    generation. Only single workers are named, by age, which never comes again.

    :param revision: how many restarts and reloads were ordered: the number of the last one.
    :param reloads: how many of these were reloads.
    :param awaiting: the last reload whose code or configuration is not in yet; 0 if there is none.
    :param aborted: the last revision that was given up.
    :param is_paused: nobody is replaced.
    :param is_given_up: the last order of all was to give up, so that newcomers are those who are too many.
    :param restart_age: workers up to this age are to be replaced.
    :param stopped: ages of single workers that are to be replaced.
    :param spared_generation: as long as this is the pool's generation, older workers may stay.
    """

    revision: int = 0
    reloads: int = 0
    awaiting: int = 0
    aborted: int = 0
    is_paused: bool = False
    is_given_up: bool = False
    restart_age: int = 0
    stopped: tuple[int, ...] = ()
    spared_generation: int = 0

    def restart(self, newest_age: int) -> Orders:
        """
        Have everybody replaced who is there.

        :param newest_age: the age of the last worker that was spawned.
        """
        return replace(self, revision=self.revision + 1, is_given_up=False, restart_age=newest_age)

    def reload(self) -> Orders:
        """Have new code and configuration taken in, which will open the next generation."""
        revision = self.revision + 1
        return replace(
            self, revision=revision, reloads=self.reloads + 1, awaiting=revision, is_given_up=False
        )

    def settle_reload(self, *, has_failed: bool) -> Orders:
        """Know that the reload that was awaited is in, or will never be."""
        aborted = max(self.aborted, self.awaiting) if has_failed else self.aborted
        return replace(self, awaiting=0, aborted=aborted)

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
            self.give_up(), is_given_up=True, restart_age=0, stopped=(), spared_generation=generation
        )

    def give_up(self) -> Orders:
        """Know that what was ordered cannot be done."""
        return replace(self, awaiting=0, aborted=self.revision)

    def stop(self, age: int) -> Orders:
        """Have one worker replaced."""
        return self if age in self.stopped else replace(self, stopped=(*self.stopped, age))

    def forget(self, living: Collection[int]) -> Orders:
        """Keep the names of those only that are still there."""
        stopped = tuple(age for age in self.stopped if age in living)
        return self if stopped == self.stopped else replace(self, stopped=stopped)
