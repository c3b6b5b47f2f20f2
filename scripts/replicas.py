"""
How many of a hundred replicas roll at once: with jitter, and without.

    python scripts/replicas.py                                print the figures
    python scripts/replicas.py --svg docs/images/replicas.svg    draw them as well

Each replica is a pool that the real planner (:mod:`airflow_arbiter.rollout`) decides about, in virtual time.
Nothing but the processes is made up: a boot and a drain take some seconds, and chance decides how many.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from airflow_arbiter.conditions import available, expires_at
from airflow_arbiter.pool import Departure, Drain, PoolView, RolloutPolicy, RolloutState, Spawn, WorkerView
from airflow_arbiter.rollout import IDLE_WAKE_S, plan

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

BOOT_S = (8.0, 12.0)
DRAIN_S = (2.5, 5.0)
"""Shortest and longest; more than the API server needs, so that rollouts rather meet too often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is simulated; the defaults are those of the manifest in deploy/kubernetes."""

    replicas: int = 100
    workers: int = 4
    interval_s: float = 12 * HOUR_S
    jitter: float = 0.1
    days: float = 14.0
    seed: int = 1


@dataclass(slots=True)
class Replica:
    """One server: its planner's memory, its processes, and when it rolled."""

    policy: RolloutPolicy
    target: int
    chance: random.Random
    now: float = 0.0
    state: RolloutState = field(default_factory=RolloutState)
    workers: dict[int, WorkerView] = field(default_factory=dict)
    ready_at: dict[int, float] = field(default_factory=dict)
    gone_at: dict[int, float] = field(default_factory=dict)
    spawned: int = 0
    rolled: list[tuple[float, float]] = field(default_factory=list)
    fewest_available: int = sys.maxsize

    def run(self, until_s: float) -> None:
        """Live until a moment."""
        while self.now < until_s:
            self.now = max(self.now, min(until_s, self._turn()))

    def _turn(self) -> float:
        """Take one turn, and return the moment of the next that changes anything."""
        departures = self._happen()
        for age, worker in self.workers.items():
            self.workers[age] = replace(worker, beat_at=self.now)
        was_rolling = self.state.progress
        view = PoolView(
            now=self.now,
            target=self.target,
            generation=1,
            workers=tuple(self.workers.values()),
            state=self.state,
            departures=departures,
        )
        decision = plan(view, self.policy)
        self.state = decision.state
        if was_rolling and self.state.progress is None:
            self.rolled.append((was_rolling.started_at, self.now))
        for action in decision.actions:
            match action:
                case Spawn():
                    self._spawn(action.count)
                case Drain():
                    self.workers[action.age] = replace(self.workers[action.age], draining_at=self.now)
                    self.gone_at[action.age] = self.now + self.chance.uniform(*DRAIN_S)
                case _:
                    raise AssertionError(f"{action} in a world where nothing goes wrong")
        if self.state.progress is not None:
            count = available(tuple(self.workers.values()), self.now, self.policy)
            self.fewest_available = min(self.fewest_available, count)
        return self._next(decision.wake_in_s)

    def _happen(self) -> tuple[Departure, ...]:
        """Let the processes do what is due by now."""
        for age in [age for age, at in self.ready_at.items() if at <= self.now]:
            at = self.ready_at.pop(age)
            self.workers[age] = replace(self.workers[age], listening_at=at, ready_at=at)
        gone = [age for age, at in self.gone_at.items() if at <= self.now]
        for age in gone:
            del self.gone_at[age]
        return tuple(Departure(worker=self.workers.pop(age), cause="exit code 0") for age in gone)

    def _spawn(self, count: int) -> None:
        for _ in range(count):
            self.spawned += 1
            age = self.spawned
            self.workers[age] = WorkerView(
                pid=age, age=age, generation=1, spawned_at=self.now, jitter=self.chance.random()
            )
            self.ready_at[age] = self.now + self.chance.uniform(*BOOT_S)

    def _next(self, wake_in_s: float) -> float:
        """
        Find the next moment that matters.

        The planner is level-triggered: a turn at which nothing has changed changes nothing. So the turns that
        only look are left out, up to the next thing that happens, or a moment that the planner waits for.
        """
        moments = [*self.ready_at.values(), *self.gone_at.values()]
        if wake_in_s < IDLE_WAKE_S:
            moments.append(self.now + wake_in_s)
        elif not moments:
            ends = (expires_at(worker, self.policy) for worker in self.workers.values())
            moments = [end for end in ends if end is not None]
        return min(moments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    What a fleet did.

    :param rolled: from when to when some replica rolled, in seconds, in the order of their beginnings.
    :param fewest_available: the fewest workers that any replica had available, once it was up.
    :param replaced: workers that were replaced.
    """

    fleet: Fleet
    rolled: tuple[tuple[float, float], ...]
    fewest_available: int
    replaced: int

    def most_at_once(self, begin_s: float = 0.0, end_s: float = float("inf")) -> int:
        """Count the most replicas that rolled at one moment of a span of time."""
        inside = [(begin, end) for begin, end in self.rolled if end > begin_s and begin < end_s]
        changes = sorted([(end, -1) for _, end in inside] + [(begin, 1) for begin, _ in inside])
        most = now = 0
        for _, change in changes:
            now += change
            most = max(most, now)
        return most

    def hours(self) -> list[float]:
        """Give, for each hour, the largest share of the replicas that rolled at one moment of it."""
        count = round(self.fleet.days * DAY_S / HOUR_S)
        return [
            self.most_at_once(hour * HOUR_S, (hour + 1) * HOUR_S) / self.fleet.replicas
            for hour in range(count)
        ]


def simulate(fleet: Fleet) -> Outcome:
    """Run a fleet of replicas that were all started at one moment, as by one deployment."""
    policy = RolloutPolicy(refresh_interval_s=fleet.interval_s, refresh_jitter=fleet.jitter)
    replicas = []
    for number in range(fleet.replicas):
        replica = Replica(policy, fleet.workers, random.Random(fleet.seed * 1_000_003 + number))
        replica.run(fleet.days * DAY_S)
        replicas.append(replica)
    return Outcome(
        fleet=fleet,
        rolled=tuple(sorted(span for replica in replicas for span in replica.rolled)),
        fewest_available=min(replica.fewest_available for replica in replicas),
        replaced=sum(replica.spawned - len(replica.workers) for replica in replicas),
    )


# -- show
# ------------------------------------------------------------------------------------------------------


HEADERS = (
    "`worker_refresh_jitter`",
    "most replicas rolling at once",
    "in the first day",
    "in the last day",
    "workers replaced",
    "fewest available of a replica",
)


def table(outcomes: Sequence[Outcome]) -> str:
    """Show outcomes as a Markdown table."""
    fleet = outcomes[0].fleet
    last_s = fleet.days * DAY_S
    lines = [
        f"| {' | '.join(HEADERS)} |",
        f"|{'---|' * len(HEADERS)}",
    ]
    for outcome in outcomes:
        cells = [
            f"{outcome.fleet.jitter:g}",
            str(outcome.most_at_once()),
            str(outcome.most_at_once(0, DAY_S)),
            str(outcome.most_at_once(last_s - DAY_S, last_s)),
            f"{outcome.replaced:,}",
            f"{outcome.fewest_available} of {fleet.workers}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


WIDTH, PANEL, LEFT, TOP, GAP = 760, 110, 60, 30, 44


def svg(outcomes: Sequence[Outcome]) -> str:
    """Draw, one panel for each outcome, the largest share of replicas that rolled at once in each hour."""
    height = TOP + len(outcomes) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' font-family="sans-serif" font-size="12" fill="#222222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, outcome in enumerate(outcomes):
        parts += _panel(outcome, TOP + number * (PANEL + GAP))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(outcome: Outcome, top: int) -> list[str]:
    hours = outcome.hours()
    step = (WIDTH - LEFT - 20) / len(hours)
    base = top + PANEL
    bars = "".join(
        f"M{LEFT + (hour + 0.5) * step:.1f} {base}V{base - share * PANEL:.1f}"
        for hour, share in enumerate(hours)
        if share
    )
    most = f"at most {outcome.most_at_once()} of {outcome.fleet.replicas} roll at once"
    parts = [
        f'<text x="{LEFT}" y="{top - 8}">jitter {outcome.fleet.jitter:g}: {most}</text>',
        f'<path d="{bars}" stroke="#c8442e" stroke-width="{max(step * 0.8, 0.8):.2f}" fill="none"/>',
        f'<path d="M{LEFT} {top}V{base}H{WIDTH - 20}" stroke="#222222" fill="none"/>',
    ]
    parts += [
        f'<text x="{LEFT - 6}" y="{base - share * PANEL + 4:.0f}" text-anchor="end">{share:.0%}</text>'
        for share in (0.0, 0.5, 1.0)
    ]
    parts += [
        f'<text x="{LEFT + day * 24 * step:.0f}" y="{base + 16}" text-anchor="middle">day {day}</text>'
        for day in range(0, round(outcome.fleet.days) + 1, 2)
    ]
    return parts


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print, draw."""
    default = Fleet()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=default.replicas)
    parser.add_argument("--workers", type=int, default=default.workers)
    parser.add_argument("--interval", type=float, default=default.interval_s, metavar="SECONDS")
    parser.add_argument("--days", type=float, default=default.days)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--jitter", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the shares, hour by hour")
    options = parser.parse_args(arguments)
    outcomes = [
        simulate(
            Fleet(
                replicas=options.replicas,
                workers=options.workers,
                interval_s=options.interval,
                jitter=jitter,
                days=options.days,
                seed=options.seed,
            )
        )
        for jitter in options.jitter
    ]
    sys.stdout.write(table(outcomes))
    if options.svg:
        options.svg.write_text(svg(outcomes))


if __name__ == "__main__":
    main()
