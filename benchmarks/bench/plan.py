"""
What is measured on whom, how often, and in which order.

Repetitions alternate between the servers, and each begins with another one, so that a machine that gets
slower by the hour, or a neighbour who starts a build, is felt by all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import boots, rolls, serving
from bench.airflow import MODES, OursMerging, OursWithoutSchema
from bench.contestants import SERVERS
from bench.results import Figures
from bench.server import Server

Kind = type[Server]
Kinds = Sequence[Kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """
    One thing to measure.

    :param sizes: numbers of workers.
    :param kinds: of servers.
    :param take: measures some servers; each that failed is left out of what it gives, or raises.
    :param at_once: whether all servers are measured together, in turns.
    :param at_most: how often the dear ones are measured, by their name and the number of workers; 0 leaves
        them out.
    """

    name: str
    sizes: tuple[int, ...]
    kinds: Kinds
    take: Callable[..., dict[str, Figures]]
    at_once: bool = False
    at_most: tuple[tuple[str, int, int], ...] = ()

    def repetitions(self, server: str, workers: int, wanted: int) -> int:
        """How often one server is measured at one size."""
        caps = [cap for name, size, cap in self.at_most if name == server and size == workers]
        return min([wanted, *caps])


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    One thing to do: a repetition of one case, on one server or on those that are measured at once.

    :param case: the key in the results.
    :param kinds: of the servers.
    """

    case: str
    repetition: int
    workers: int
    measure: Measure
    kinds: Kinds

    def take(self) -> dict[str, Figures]:
        """Do it."""
        return self.measure.take(self.kinds, self.workers)


KINDS: Kinds = (*SERVERS, OursMerging, OursWithoutSchema)
"""All names that can be chosen. Those of ``MODES`` are among them."""


def one(measure: Callable[..., dict[str, Any]], **options: Any) -> Callable[..., dict[str, Figures]]:
    """Make of a measurement of one server one of several, as a :class:`Measure` wants it."""

    def take(kinds: Kinds, workers: int) -> dict[str, Figures]:
        return {kind.name: measure(kind, workers, **options) for kind in kinds}

    return take


def measures(*, quick: bool) -> tuple[Measure, ...]:
    """
    All measurements, in the order of a run.

    A roll of granian takes 3.5 s per worker by its default, whatever the machine, and one of Airflow's
    arbiter a second: the large ones are taken once or, at 64 workers, of granian not at all.
    """
    tiny, airflow = SERVERS, MODES
    return (
        Measure(name="idle", sizes=(4,), kinds=tiny, at_once=True,
                take=partial(serving.measure_idle, window_s=5.0 if quick else 20.0),
                at_most=tuple((kind.name, 4, 2) for kind in tiny)),
        Measure(name="rate", sizes=(1,), kinds=tiny, at_once=True,
                take=partial(serving.measure_rate, window_s=0.5 if quick else 1.0)),
        Measure(name="roll", sizes=(4,) if quick else (4, 24, 64), kinds=tiny, take=one(rolls.measure_roll),
                at_most=(("granian", 4, 1),
                         ("airflow", 24, 1), ("uvicorn", 24, 1), ("granian", 24, 1),
                         ("ours", 64, 2), ("airflow", 64, 1), ("uvicorn", 64, 1), ("gunicorn", 64, 1),
                         ("granian", 64, 0))),
        Measure(name="lost", sizes=(4,), kinds=tiny, take=one(rolls.measure_lost),
                at_most=(("granian", 4, 1),)),
        Measure(name="latency", sizes=(4,), kinds=tiny, take=one(serving.measure_latency),
                at_most=(("granian", 4, 1), *((kind.name, 4, 2) for kind in tiny))),
        Measure(name="held", sizes=(4,), kinds=tiny,
                take=one(rolls.measure_held, hold_s=7.0 if quick else rolls.HOLD_S),
                at_most=tuple((kind.name, 4, 1) for kind in tiny)),
        Measure(name="memory", sizes=(4,) if quick else (1, 4, 8),
                kinds=(*airflow, OursMerging, OursWithoutSchema),
                take=one(boots.measure_memory),
                at_most=(*((kind.name, size, 1) for kind in airflow for size in (1, 8)),
                         (OursMerging.name, 1, 0), (OursMerging.name, 4, 1), (OursMerging.name, 8, 1),
                         (OursWithoutSchema.name, 1, 0), (OursWithoutSchema.name, 8, 0))),
        Measure(name="airflow-latency", sizes=(4,), kinds=airflow, take=one(serving.measure_airflow_latency),
                at_most=(("ours", 4, 2), ("airflow", 4, 1), ("uvicorn", 4, 1))),
    )  # fmt: skip


def steps(chosen: Iterable[Measure], servers: Iterable[str], repetitions: int) -> Iterator[Step]:
    """
    Order a run.

    :param chosen: the measures.
    :param servers: the names of those that take part.
    """
    chosen, servers = list(chosen), set(servers)
    for repetition in range(repetitions):
        for number, measure in enumerate(chosen):
            for place, workers in enumerate(measure.sizes):
                kinds = [
                    kind
                    for kind in measure.kinds
                    if kind.name in servers
                    and repetition < measure.repetitions(kind.name, workers, repetitions)
                ]
                # Not only by the repetition: what is measured once would always begin with ours.
                turn = (repetition + number + place) % max(1, len(kinds))
                kinds = kinds[turn:] + kinds[:turn]
                for group in [kinds] if measure.at_once and kinds else [[kind] for kind in kinds]:
                    yield Step(
                        case=f"{measure.name} {workers}",
                        repetition=repetition,
                        workers=workers,
                        measure=measure,
                        kinds=group,
                    )
