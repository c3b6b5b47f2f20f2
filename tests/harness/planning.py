"""Pools and plans in few words, for the tables of the planner."""

from __future__ import annotations

from dataclasses import replace

from airflow_arbiter.pool import (
    Action,
    Backoff,
    Departure,
    Drain,
    Event,
    Kill,
    Plan,
    PoolView,
    Progress,
    Reason,
    RolloutPolicy,
    RolloutState,
    Spawn,
    WorkerView,
)

NOW = 1000.0
POLICY = RolloutPolicy()
HOURLY = RolloutPolicy(refresh_interval_s=100.0, refresh_jitter=0.0)
SERVED = RolloutState(has_served=True, has_proved=True, turn_at=NOW - 1)
NEW = RolloutState()


# -- the world in few words
# --------------------------------------------------------------------------------------------------


def ready(
    age: int,
    *,
    generation: int = 1,
    since: float = 500.0,
    jitter: float = 0.0,
    beat_at: float = NOW,
    retire_reason: Reason | None = None,
) -> WorkerView:
    """A worker that has proved itself, serves and beats."""
    return WorkerView(
        pid=100 + age,
        age=age,
        generation=generation,
        spawned_at=since - 1,
        jitter=jitter,
        listening_at=since,
        ready_at=since,
        beat_at=beat_at,
        retire_reason=retire_reason,
    )


def booting(age: int, *, generation: int = 1, since: float = NOW - 5, trouble: str = "") -> WorkerView:
    """A worker that does not take connections yet."""
    return WorkerView(pid=100 + age, age=age, generation=generation, spawned_at=since, trouble=trouble)


def listening(age: int, *, generation: int = 1, beat_at: float = NOW) -> WorkerView:
    """A worker of the first generation that takes connections, and whose probe has not passed."""
    return WorkerView(
        pid=100 + age, age=age, generation=generation, spawned_at=499, listening_at=500, beat_at=beat_at
    )


def due(age: int) -> WorkerView:
    """A ready worker that has asked to be replaced."""
    return ready(age, retire_reason="requests")


def leaving(worker: WorkerView, *, since: float = NOW - 5) -> WorkerView:
    return replace(worker, draining_at=since)


def killed(worker: WorkerView, *, since: float = NOW - 5) -> WorkerView:
    return replace(worker, killed_at=since)


def look(
    *workers: WorkerView,
    target: int,
    state: RolloutState = SERVED,
    now: float = NOW,
    generation: int = 1,
    departures: tuple[Departure, ...] = (),
    spawn_errors: tuple[str, ...] = (),
) -> PoolView:
    return PoolView(
        now=now,
        target=target,
        generation=generation,
        workers=workers,
        state=state,
        departures=departures,
        spawn_errors=spawn_errors,
    )


# -- the expected in few words
# --------------------------------------------------------------------------------------------------


def decision(
    *actions: Action,
    events: tuple[Event, ...] = (),
    wake_in_s: float = 1.0,
    state: RolloutState = SERVED,
    now: float = NOW,
) -> Plan:
    return Plan(actions=actions, state=replace(state, turn_at=now), events=events, wake_in_s=wake_in_s)


def rolling(
    *actions: Action,
    since: float = NOW - 60,
    replaced: int = 0,
    events: tuple[Event, ...] = (),
    wake_in_s: float = 1.0,
) -> Plan:
    """The plan of a turn within a rollout."""
    return decision(*actions, events=events, wake_in_s=wake_in_s, state=under_way(since, replaced=replaced))


def under_way(since: float = NOW - 60, *, replaced: int = 0) -> RolloutState:
    return replace(SERVED, progress=Progress(started_at=since, replaced=replaced))


def spawn(count: int) -> Spawn:
    return Spawn(count=count, must_prove=True)


def drain(age: int, reason: Reason | str = "requests") -> Drain:
    return Drain(pid=100 + age, age=age, reason=reason)  # type: ignore[arg-type]  # the tables are short


def kill(age: int, cause: str) -> Kill:
    return Kill(pid=100 + age, age=age, cause=cause)


def started(count: int, reason: str, target: int) -> Event:
    return Event(name="rollout.started", values=(("due", count), ("reason", reason), ("target", target)))


def completed(replaced: int, duration_s: float) -> Event:
    return Event(name="rollout.completed", values=(("replaced", replaced), ("duration_s", duration_s)))


def stalled(cause: str, failures: int, retry_in_s: float) -> Event:
    values = (("cause", cause), ("failures", failures), ("retry_in_s", retry_in_s))
    return Event(name="rollout.stalled", level="error", values=values)


def delayed(cause: str, failures: int, retry_in_s: float) -> Event:
    return replace(stalled(cause, failures, retry_in_s), name="respawn.delayed")


def struck(strikes: int, wait_s: float, cause: str) -> Backoff:
    """A backoff that has counted a failure right now."""
    return Backoff(strikes=strikes, struck_at=NOW, retry_at=NOW + wait_s, cause=cause)


def exited(gone: Departure, *, reason: str = "", is_error: bool = True, now: float = NOW) -> Event:
    return Event(
        name="worker.exited",
        level="error" if is_error else "info",
        values=(
            ("pid", gone.worker.pid),
            ("age", gone.worker.age),
            ("generation", gone.worker.generation),
            ("cause", gone.cause),
            ("reason", reason),
            ("uptime_s", round(now - gone.worker.spawned_at, 3)),
        ),
    )
