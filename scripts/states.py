"""
Draw the states of a worker and of the rollout, as the planner really moves them.

    python scripts/states.py            write them into docs/design.md
    python scripts/states.py --check    only say whether they are current

Nothing here knows which state may follow which. A small pool is given to the real planner
(:mod:`airflow_arbiter.rollout`), everything that a process can do is done to it, in every order, and what
is seen to change is drawn. What a change is named after is the planner's own word: the action, the event.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import pages

from airflow_arbiter.conditions import is_available
from airflow_arbiter.history import abort
from airflow_arbiter.pool import (
    Action,
    Departure,
    Drain,
    Dump,
    Halt,
    Kill,
    Phase,
    Plan,
    PoolView,
    Quit,
    Reason,
    RolloutPolicy,
    RolloutState,
    Spawn,
    Stop,
    WorkerView,
)
from airflow_arbiter.report import WorkerState
from airflow_arbiter.rollout import plan

PAGE = pages.DOCS / "design.md"

State = WorkerState | Literal["[*]"]
OUTSIDE: State = "[*]"
"""Before the birth of a worker, and after its end, as Mermaid writes it."""

TIME_PASSES = "time passes"
PROVES = "proves itself"

MOVES: dict[Phase, str] = {
    "idle": "rollout.completed",
    "progressing": "rollout.started",
    "stalled": "rollout.stalled",
    "paused": "rollout.paused",  # told by who pauses
}
"""The event that tells of the move into a phase, where it is told of."""

POLICY = RolloutPolicy(boot_timeout_s=3, min_ready_s=1, heartbeat_timeout_s=2, drain_timeout_s=2)
TARGET = 2
DEPTH = 5
"""How many things happen in a row; with more, nothing new is seen."""

PATIENCE_S = 4
"""Longer than any deadline of the policy."""


@dataclass(slots=True)
class Process:
    """A worker: what the planner sees of it, and whether it does anything any more."""

    view: WorkerView
    must_prove: bool
    hangs: bool = False


@dataclass(slots=True)
class World:
    """A pool, its processes, and the memory of its planner."""

    now: float = 100.0
    target: int = TARGET
    stop: Stop | None = None
    state: RolloutState = field(default_factory=RolloutState)
    processes: dict[int, Process] = field(default_factory=dict)
    departures: tuple[Departure, ...] = ()
    born: int = 0

    def copy(self) -> World:
        """Make another world that is as this one."""
        processes = {age: replace(process) for age, process in self.processes.items()}
        return replace(self, processes=processes)

    def kinds(self) -> tuple[tuple[object, ...], ...]:
        """What each worker is to the planner, oldest first, times left out."""
        return tuple(
            (self.state_of(age), p.must_prove, p.hangs, p.view.retire_reason)
            for age, p in sorted(self.processes.items())
        )

    def key(self) -> object:
        """What makes two worlds alike for the planner."""
        strikes = min(self.state.boot_backoff.strikes, 1), min(self.state.crash_backoff.strikes, 1)
        ends = bool(self.stop), bool(self.stop and self.stop.quick_at)
        return self.kinds(), self.target, self.state.phase, strikes, self.state.has_served, ends

    def state_of(self, age: int) -> State:
        """The state of a worker, in the words in which it is reported."""
        if age not in self.processes:
            return OUTSIDE
        worker = self.processes[age].view
        if worker.killed_at is not None:
            return "killed"
        if worker.draining_at is not None or worker.quit_at is not None:
            return "draining"
        if worker.listening_at is None:
            return "booting"
        if worker.ready_at is None:
            return "listening"
        return "available" if is_available(worker, self.now, POLICY) else "ready"

    def states(self) -> dict[int, State]:
        """The state of each worker that there has been."""
        return {age: self.state_of(age) for age in range(1, self.born + 1)}

    def turn(self) -> Plan:
        """Let the planner look once, and do what it says."""
        for process in self.processes.values():
            if not process.hangs and process.view.listening_at is not None:
                process.view = replace(process.view, beat_at=self.now)
        view = PoolView(
            now=self.now,
            target=self.target,
            generation=1,
            workers=tuple(process.view for process in self.processes.values()),
            state=self.state,
            departures=self.departures,
            stop=self.stop,
        )
        self.departures = ()
        decision = plan(view, POLICY)
        self.state = decision.state
        for action in decision.actions:
            self._act(action)
        return decision

    def _act(self, action: Action) -> None:
        match action:
            case Spawn():
                for _ in range(action.count):
                    self.born += 1
                    view = WorkerView(pid=self.born, age=self.born, generation=1, spawned_at=self.now)
                    self.processes[self.born] = Process(view=view, must_prove=action.must_prove)
            case Drain():
                self._note(action.age, draining_at=self.now)
            case Quit():
                self._note(action.age, quit_at=self.now)
            case Dump():
                self._note(action.age, dumped_at=self.now)
            case Kill():
                self._note(action.age, killed_at=self.now)
            case Halt():
                pass

    def _note(self, age: int, **moments: Any) -> None:
        self.processes[age].view = replace(self.processes[age].view, **moments)

    def stops(self, *, quick: bool) -> None:
        """Let the server be told to end."""
        self.stop = Stop(began_at=self.now, quick_at=self.now if quick else None)

    def is_scaled_down(self) -> None:
        """Let one worker less be wanted."""
        self.target -= 1

    def passes_time(self) -> None:
        """Let a second pass."""
        self.now += 1.0

    def is_paused(self) -> None:
        """Let an operator pause the replacing."""
        self.state = replace(self.state, orders=self.state.orders.pause())

    def is_resumed(self) -> None:
        """Let an operator resume it."""
        self.state = replace(self.state, orders=self.state.orders.resume())

    def is_aborted(self) -> None:
        """Let an operator give up what was ordered."""
        self.state = abort(self.state, 1)

    def exits(self, age: int) -> None:
        """Let a process be gone."""
        gone = Departure(worker=self.processes.pop(age).view, cause="exit code 1")
        self.departures = (*self.departures, gone)

    def hangs(self, age: int) -> None:
        """Let a process do nothing any more."""
        self.processes[age].hangs = True

    def listens(self, age: int) -> None:
        """Let a process take connections."""
        self._note(age, listening_at=self.now, beat_at=self.now)

    def proves(self, age: int) -> None:
        """Let a process pass its health check; it listens from then on, if it did not before."""
        listening_at = self.processes[age].view.listening_at
        self._note(age, listening_at=listening_at or self.now, ready_at=self.now, beat_at=self.now)

    def is_due(self, age: int) -> None:
        """Let a process ask to be replaced."""
        self._note(age, retire_reason="requests")


@dataclass(slots=True)
class Seen:
    """
    What was seen to change: from which state to which, and under which names.
    """

    workers: dict[tuple[State, State], set[str]] = field(default_factory=lambda: defaultdict(set))
    phases: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))

    def note(self, before: World, after: World, cause: str, decision: Plan | None = None) -> None:
        """Compare two moments that lie one fact, or one turn, apart."""
        said = {} if decision is None else dict(_words(decision))
        old = before.states()
        for age, state in after.states().items():
            was = old.get(age, OUTSIDE)
            if was != state:
                word = "spawn" if was == OUTSIDE else said.get(age, cause)
                if word == TIME_PASSES:
                    word = "min_ready_seconds" if state == "available" else "falls silent"
                self.workers[was, state].add(word)
        if before.state.phase == after.state.phase or after.stop is not None:
            return
        if decision is None:
            self.phases[before.state.phase, after.state.phase].add(cause)
        else:
            names = {event.name for event in decision.events} & {MOVES[after.state.phase]}
            healed = cause if cause == PROVES else "nobody is due or missed"
            self.phases[before.state.phase, after.state.phase] |= names or {healed}


def _words(decision: Plan) -> Iterator[tuple[int, str]]:
    """Name what a plan does to each worker."""
    for action in decision.actions:
        match action:
            case Drain():
                yield action.age, f"drain ({'due' if action.reason in get_args(Reason) else action.reason})"
            case Quit():
                yield action.age, "quit"
            case Kill():
                yield action.age, f"kill ({re.sub(r' of [0-9.]+ s|:.*', '', action.cause)})"
            case _:
                pass


# -- what can happen
# ------------------------------------------------------------------------------------------------------

Fact = tuple[str, Callable[[World], None]]


def facts(world: World) -> Iterator[Fact]:
    """Everything that the world can do next."""
    yield TIME_PASSES, World.passes_time
    yield from orders(world)
    oldest_of_a_kind = dict(reversed(list(zip(world.kinds(), sorted(world.processes), strict=True))))
    for age in oldest_of_a_kind.values():
        process, state = world.processes[age], world.state_of(age)
        yield "exits", partial(World.exits, age=age)
        if process.hangs or state == "killed" or world.stop is not None:
            continue
        yield "hangs", partial(World.hangs, age=age)
        if state == "booting" and not process.must_prove:
            yield "listens", partial(World.listens, age=age)
        if state in {"booting", "listening"}:
            yield PROVES, partial(World.proves, age=age)
        if state != "draining" and process.view.retire_reason is None:
            yield "is due", partial(World.is_due, age=age)


def orders(world: World) -> Iterator[Fact]:
    """Everything that somebody can order next."""
    if world.stop is None or world.stop.quick_at is None:
        yield "quick stop", partial(World.stops, quick=True)
    if world.stop is not None:
        return
    yield "stop", partial(World.stops, quick=False)
    if world.target > 1:
        yield "scaled down", World.is_scaled_down
    if world.state.orders.is_paused:
        yield "resumed", World.is_resumed
    else:
        yield "paused", World.is_paused
        yield "aborted", World.is_aborted


# -- look everywhere
# ------------------------------------------------------------------------------------------------------


def explore() -> Seen:
    """Do everything that can happen, in every order, from a start and from a pool that serves."""
    seen = Seen()
    first = World()
    _step(seen, first, "start", lambda _: None)
    serving = first.copy()
    for age in range(1, TARGET + 1):
        _step(seen, serving, PROVES, partial(World.proves, age=age))
    _step(seen, serving, TIME_PASSES, World.passes_time)
    layer, known = [first, serving], {first.key(), serving.key()}
    for _ in range(DEPTH):
        following = []
        for world in layer:
            for name, happen in facts(world):
                new = world.copy()
                if _step(seen, new, name, happen) and new.key() not in known:
                    known.add(new.key())
                    following.append(new)
        layer = following
    return seen


def _step(seen: Seen, world: World, name: str, happen: Callable[[World], None]) -> bool:
    """Let one thing happen, and the planner answer; whether the world goes on after it."""
    happened = [happen]
    happened += (
        [World.passes_time] * PATIENCE_S if name == TIME_PASSES else [lambda _: None]
    )  # what follows at once
    for change in happened:
        before = world.copy()
        change(world)
        seen.note(before, world, name)
        before = world.copy()
        decision = world.turn()
        if any(isinstance(action, Halt) for action in decision.actions):
            return False
        seen.note(before, world, name, decision)
    return True


# -- draw
# ------------------------------------------------------------------------------------------------------


def drawings(seen: Seen) -> dict[str, str]:
    """Write both diagrams in the language of Mermaid, by the name that they have in the page."""
    return {
        "worker": _diagram(seen.workers),
        "rollout": _diagram({("[*]", "idle"): {"start"}, **seen.phases}),
    }


def _diagram(edges: Mapping[tuple[Any, Any], set[str]]) -> str:
    lines = [
        f"    {before} --> {after} : {_label(names)}" for (before, after), names in sorted(edges.items())
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def _label(names: set[str]) -> str:
    """Join names, those of one verb in one bracket: ``drain (due, stop), quit``. A colon would end it."""
    verbs: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        verb, _, rest = name.partition(" (")
        verbs[verb].append(rest.removesuffix(")"))
    return ", ".join(f"{verb} ({', '.join(rest)})" if any(rest) else verb for verb, rest in verbs.items())


if __name__ == "__main__":
    pages.main(PAGE, lambda: drawings(explore()), Path(__file__).name, sys.argv[1:])
