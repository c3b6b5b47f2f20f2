"""
The pool in one value: what a person, a monitor or another program is told of a server.

Owns the form in which everybody outside sees the server, and nothing of how it is worked out. Everything is a
plain value, so that :func:`dataclasses.asdict` makes JSON of it; a client may be of another version than the
server, so names stay, and new fields have a default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from airflow_arbiter.orders import GivenUp
from airflow_arbiter.pool import Phase, Reason

WorkerState = Literal["booting", "listening", "ready", "available", "draining", "killed"]
ReloadState = Literal["idle", "checking", "waiting"]
Outcome = Literal["drained", "killed", "failed"]
Speaker = Literal["self", "predecessor", "successor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReport:
    """
    The server as a whole.

    :param pid: the master's.
    :param title: its name in the process list.
    :param app: what is served: ``module:app``, or ``airflow-api-server``.
    :param version: of this package.
    :param listeners: the addresses that it listens on, as ``http://127.0.0.1:8080``.
    :param uptime_s: seconds since it was started; a reload does not count.
    :param generation: the generation that new workers get.
    :param preload: whether the master loads the app for its workers.
    :param stopping: whether it is to end.
    :param longest_turn_ms: the longest turn of the master's loop.
    :param slow_turns: turns that were too long.
    :param control_socket: the path of the socket that this came through; empty without one.
    :param predecessor_pid: the master beside which SIGUSR2 has started this one; 0 once it has gone.
    :param successor_pid: the master that SIGUSR2 has started beside this one, while it lives; else 0.
    """

    pid: int
    title: str
    app: str
    version: str
    gunicorn_version: str
    listeners: tuple[str, ...]
    uptime_s: float
    generation: int
    preload: bool
    stopping: bool
    longest_turn_ms: float
    slow_turns: int
    control_socket: str
    predecessor_pid: int = 0
    successor_pid: int = 0

    @property
    def speaker(self) -> Speaker:
        """
        Tell which master says how the service is: of two, only one may.

        The one that was there first, until it is to end.
        """
        if self.predecessor_pid:
            return "predecessor"
        return "successor" if self.stopping and self.successor_pid else "self"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """
    How many workers there are, and should be.

    :param target: workers wanted.
    :param available: workers that carry capacity.
    :param live: processes, those counted that boot or leave.
    :param surge: extra processes allowed while replacing; 0 means that nobody is replaced.
    :param memory_room_bytes: what the container may still take; None without a limit.
    """

    target: int
    available: int
    live: int
    surge: int
    booting: int
    draining: int
    memory_room_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReport:
    """
    The replacing of workers, as it stands.

    A restart or reload has a number, its revision. How it ended is asked in this order: it was given up if it
    is among ``given_up``, is under way while it is among ``open``, and else complete, up to ``completed``.

    :param reasons: why workers are to be replaced, each reason once.
    :param replaced: due workers that have left since it began.
    :param due: workers that are still to be replaced, those counted that are leaving.
    :param running_s: seconds since it began; None while nothing is replaced.
    :param retry_in_s: seconds until newcomers are tried again; None where nobody waits for that.
    :param because: why it is held up, in words; empty where it is not.
    :param stalled: whether it does not get on until that is mended; also in a pause.
    :param revision: how many restarts and reloads were asked for.
    :param completed: the last of them of which every worker was replaced.
    :param aborted: the last of them that was given up, by a person or for want of good code.
    :param open: those that are neither complete nor given up.
    :param given_up: those that were given up last, and why.
    """

    phase: Phase
    reasons: tuple[Reason, ...]
    replaced: int
    due: int
    running_s: float | None
    retry_in_s: float | None
    because: str
    revision: int
    completed: int
    aborted: int
    stalled: bool = False
    open: tuple[int, ...] = ()
    given_up: tuple[GivenUp, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadReport:
    """
    The taking in of new code.

    :param state: ``checking`` while it is tried, ``waiting`` until it is tried (again).
    :param failure: why the last one failed, in words; empty once one has gone well.
    :param asked: how often somebody has asked for one, or a watched folder has changed.
    :param awaiting: the revisions of the reloads whose code or configuration is not in yet.
    :param retry_in_s: seconds until one that has failed is tried again; None where nothing waits for that.
    """

    state: ReloadState
    failure: str
    asked: int = 0
    awaiting: tuple[int, ...] = ()
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """
    One worker process.

    :param age: its number, by the order of spawning.
    :param state: ``listening`` takes requests without having proved itself, ``ready`` has proved itself and
        does not count yet (or falls silent), ``available`` counts.
    :param booted: whether it has ever listened, whatever has become of it since.
    :param requests: requests answered since birth, as of its last heartbeat.
    :param in_flight: requests that were being answered at its last heartbeat.
    :param private_bytes: memory that it shares with nobody; None before the first sample.
    :param beat_ago_s: seconds since its last heartbeat; None before the first.
    :param probe: how its last health check went, in words; empty before the first.
    :param due: why it is to be replaced; None if it is not.
    """

    pid: int
    age: int
    generation: int
    state: WorkerState
    booted: bool
    uptime_s: float
    requests: int
    in_flight: int
    private_bytes: int | None
    beat_ago_s: float | None
    probe: str
    probe_ago_s: float | None
    due: Reason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Many durations in one: how many, their sum, and the longest."""

    count: int = 0
    sum_s: float = 0.0
    max_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """
    How many workers were replaced for one reason with one outcome.

    :param outcome: ``drained`` has left by itself, ``killed`` missed a deadline, ``failed`` has died while it
        was leaving.
    """

    reason: Reason
    outcome: Outcome
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """
    What has happened since the server was started, over all reloads. None of it ever falls.

    :param spawned: worker processes.
    :param replaced: one entry for each reason and outcome that there has been, in a stable order.
    :param crashes: workers that had served and were lost unasked, those counted that hung and were killed.
    :param boots_failed: newcomers that were lost before they had proved themselves.
    :param stalls: how often newcomers that failed have held the replacing up.
    :param requests: requests answered, by all workers that there ever were.
    :param boot: from the spawn of a worker until it was ready.
    :param drain: from asking a worker to leave until it was gone.
    """

    spawned: int = 0
    replaced: tuple[Replaced, ...] = ()
    crashes: int = 0
    boots_failed: int = 0
    stalls: int = 0
    requests: int = 0
    boot: Durations = field(default_factory=Durations)
    drain: Durations = field(default_factory=Durations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    Everything that is told of a server, as it was at one moment.

    :param workers: oldest first.
    """

    server: ServerReport
    pool: PoolReport
    rollout: RolloutReport
    reload: ReloadReport
    workers: tuple[WorkerReport, ...]
    counters: Counters
