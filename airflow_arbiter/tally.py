"""
What is counted over the life of a server, learned from looks at its workers.

Owns what counts as what: a crash, a boot that failed, a replacement and its outcome. Pure, and no part of the
planner: nothing is decided by it. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from airflow_arbiter.history import stalls_anew
from airflow_arbiter.pool import Departure, PoolView, Reason, RolloutState, WorkerView
from airflow_arbiter.report import Counters, Durations, Outcome, Replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """
    The counters, and what must be known to count nothing twice.

    :param departed: the counters, in which the requests are those of workers that are gone.
    :param newest_age: workers up to this age have been counted as spawned.
    :param proved: ages of those living workers whose boot has been counted.
    """

    departed: Counters = field(default_factory=Counters)
    newest_age: int = 0
    proved: tuple[int, ...] = ()


def count(tally: Tally, view: PoolView, after: RolloutState) -> Tally:
    """
    Take one look in.

    :param view: what was seen; its departures have not been counted before.
    :param after: what the planner has learned of it.
    """
    gone = [departure.worker for departure in view.departures]
    seen = (*view.workers, *gone)
    newly_proved = [w for w in seen if w.ready_at is not None and w.age not in tally.proved]
    known = tally.departed
    counters = replace(
        known,
        spawned=known.spawned + sum(w.age > tally.newest_age for w in seen),
        crashes=known.crashes + sum(_has_crashed(w) for w in gone),
        boots_failed=known.boots_failed + sum(_has_failed_to_boot(w) for w in gone),
        stalls=known.stalls + _stalls(view.state, after),
        requests=known.requests + sum(w.requests for w in gone),
        replaced=_replaced(known.replaced, view.departures),
        boot=_longer(known.boot, [w.ready_at - w.spawned_at for w in newly_proved if w.ready_at is not None]),
        drain=_longer(known.drain, [view.now - w.draining_at for w in gone if w.draining_at is not None]),
    )
    return Tally(
        departed=counters,
        newest_age=max([tally.newest_age, *(w.age for w in seen)]),
        proved=tuple(w.age for w in view.workers if w.ready_at is not None),
    )


def counters(tally: Tally, view: PoolView) -> Counters:
    """The counters as they are told, with what living workers have done up to now."""
    told = count(tally, view, view.state).departed
    return replace(told, requests=told.requests + sum(w.requests for w in view.workers))


def _has_crashed(worker: WorkerView) -> bool:
    return not _was_asked(worker) and worker.ready_at is not None


def _has_failed_to_boot(worker: WorkerView) -> bool:
    return not _was_asked(worker) and worker.ready_at is None


def _was_asked(worker: WorkerView) -> bool:
    return worker.draining_at is not None or worker.quit_at is not None


def _stalls(before: RolloutState, after: RolloutState) -> int:
    """How often newcomers have failed more; where nothing has ever served there is nothing to hold up."""
    has_failed = after.boot_backoff.struck_at > before.boot_backoff.struck_at
    return int(after.has_served and has_failed) + int(stalls_anew(before, after))


def _replaced(known: tuple[Replaced, ...], departures: Iterable[Departure]) -> tuple[Replaced, ...]:
    """Count those who were asked to leave for a reason; who hung or crashed unasked is no replacement."""
    found = {(item.reason, item.outcome): item.count for item in known}
    for gone in departures:
        if reason := _reason(gone.worker):
            key = reason, _outcome(gone)
            found[key] = found.get(key, 0) + 1
    return tuple(
        Replaced(reason=reason, outcome=outcome, count=number)
        for (reason, outcome), number in sorted(found.items())
    )


def _reason(worker: WorkerView) -> Reason | None:
    """Why the worker was to be replaced, if that is why it was asked to leave."""
    match worker.drain_reason:
        case "age" | "requests" | "memory" | "generation" | "command" as reason:
            return reason
        case _:
            return None


def _outcome(gone: Departure) -> Outcome:
    if gone.worker.killed_at is not None:
        return "killed"
    return "failed" if gone.exit_code else "drained"


def _longer(known: Durations, durations: list[float]) -> Durations:
    """Add some durations, in seconds."""
    return Durations(
        count=known.count + len(durations),
        sum_s=known.sum_s + sum(durations),
        max_s=max([known.max_s, *durations]),
    )
