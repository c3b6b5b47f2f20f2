"""
The one surface by which the outside looks at the server and steers it.

Owns what may be asked of a master from outside, and how a wish that makes no sense is refused. The control
socket, systemd and metrics know this module and :mod:`airflow_arbiter.report`, and nothing else of the
master. What follows from a wish is the planner's.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Protocol

import gunicorn

from airflow_arbiter import __version__, events, history, limits
from airflow_arbiter.books import Kept
from airflow_arbiter.conditions import OFF, in_force, is_ordered_away, is_outdated
from airflow_arbiter.errors import CommandError
from airflow_arbiter.orders import Orders
from airflow_arbiter.pool import PoolView, RolloutPolicy, RolloutState
from airflow_arbiter.reloading import Reloader
from airflow_arbiter.report import Report, ServerReport
from airflow_arbiter.summary import summarize
from airflow_arbiter.tally import Tally, counters
from airflow_arbiter.turns import Turns


class Master(Protocol):
    """
    What of a master is looked at and steered.

    :ivar cfg: gunicorn's settings and ours.
    :ivar worker_age: the age of the last worker that was spawned.
    :ivar num_workers: the target.
    :ivar master_pid: the master beside which this one was started, if it lives; ``reexec_pid`` the other way
        round.
    """

    WORKERS: dict[int, Kept]
    LISTENERS: list[Any]
    app: Any
    cfg: Any
    pid: int
    proc_name: str
    master_pid: int
    reexec_pid: int
    worker_age: int
    num_workers: int
    generation: int
    started_at: float
    state: RolloutState
    policy: RolloutPolicy
    tally: Tally
    turns: Turns
    reloader: Reloader

    @property
    def is_stopping(self) -> bool:
        """Whether the server is to end."""

    def look(self) -> PoolView:
        """See how everything stands, without taking notice of it."""

    def sample_memory(self) -> None:
        """See what workers hold, as far as that was not done lately."""

    def reload(self, reason: str) -> None:
        """Ask for a reload."""


class Steering:
    """
    What may be asked of one master. Call it from its loop only, between two turns.

    Each command returns at once: what it asks for happens in the turns that follow, and the report tells how
    far that is.

    :param master: the arbiter.
    :ivar control_socket: the path of the control socket, for whoever asks; set by who opens it.
    """

    def __init__(self, master: Master) -> None:
        self._master = master
        self.control_socket = ""

    # -- looking ---------------------------------------------------------------------------------------------

    def report(self) -> Report:
        """Tell how everything stands now."""
        master = self._master
        master.sample_memory()
        view = master.look()
        return summarize(
            view,
            in_force(master.policy, view, view.state),
            server=self._server(),
            reload=master.reloader.report(),
            counters=counters(master.tally, view),
        )

    def _server(self) -> ServerReport:
        master = self._master
        return ServerReport(
            pid=master.pid,
            title=f"master [{master.proc_name}]",
            app=master.app.served.name,
            version=__version__,
            gunicorn_version=gunicorn.__version__,
            listeners=tuple(map(str, master.LISTENERS)),
            uptime_s=round(time.monotonic() - master.started_at, 3),
            generation=master.generation,
            preload=master.cfg.preload_app,
            stopping=master.is_stopping,
            longest_turn_ms=round(master.turns.longest_s * 1000, 1),
            slow_turns=master.turns.slow,
            control_socket=self.control_socket,
            predecessor_pid=master.master_pid,
            successor_pid=max(0, master.reexec_pid),
        )

    # -- steering --------------------------------------------------------------------------------------------

    def restart(self) -> int:
        """
        Replace all workers that exist now, one by one.

        :return: the revision, by which the report tells when it is over.
        :raises CommandError: where replacing is off, or the server is stopping, as are the others.
        """
        self._refuse_where_off()
        state = history.restart(self._master.state, self._master.worker_age)
        self._master.state, revision = state, state.orders.revision
        self._tell("rollout.requested", revision=revision, workers=len(self._master.WORKERS))
        return revision

    def reload(self) -> int:
        """
        Take in the configuration and the code anew, as SIGHUP does.

        :return: the revision, by which the report tells when it is over.
        """
        self._refuse_at_the_end()
        self._master.reload("command")
        return self._master.state.orders.revision

    def pause(self) -> None:
        """
        Replace nobody until :meth:`resume`; what is missing is still spawned.

        :raises CommandError: also when it is paused already.
        """
        self._refuse_at_the_end()
        if self._master.state.orders.is_paused:
            raise CommandError("replacing is paused already")
        self._order(self._master.state.orders.pause(), "rollout.paused")

    def resume(self) -> None:
        """
        Go on with replacing.

        :raises CommandError: also when it is not paused.
        """
        self._refuse_at_the_end()
        if not self._master.state.orders.is_paused:
            raise CommandError("replacing is not paused")
        self._order(self._master.state.orders.resume(), "rollout.resumed")

    def abort(self) -> None:
        """
        Give up the restarts and reloads that are under way; what they have replaced stays replaced.

        :raises CommandError: also when there are none.
        """
        self._refuse_at_the_end()
        master, state = self._master, self._master.state
        view = master.look()
        is_due = any(is_outdated(worker, view) or is_ordered_away(worker, view) for worker in view.workers)
        if not is_due and not master.reloader.is_pending:
            raise CommandError(
                "there is no restart or reload to give up; who is due for another reason is held by a pause"
            )
        replaced = state.progress.replaced if state.progress else 0
        master.reloader.give_up()
        master.state = history.abort(state, master.generation)
        self._tell("rollout.aborted", revision=state.orders.revision, replaced=replaced)

    def scale(self, workers: int) -> None:
        """
        Want another number of workers, as SIGTTIN and SIGTTOU do one by one.

        :raises CommandError: also for a number that cannot be.
        """
        self._refuse_at_the_end()
        try:
            wanted = limits.WORKERS(workers)
        except ValueError as error:
            raise CommandError(limits.refusal("workers", workers, error, limits.WORKERS.allowed)) from error
        previous, self._master.num_workers = self._master.num_workers, wanted
        self._tell("pool.scaled", workers=wanted, previous=previous)

    def stop_worker(self, pid: int) -> None:
        """
        Replace one worker.

        :raises CommandError: also when no worker has this pid.
        """
        self._refuse_where_off()
        worker = self._master.WORKERS.get(pid)
        if worker is None:
            raise CommandError(f"no worker has the pid {pid}")
        orders = self._master.state.orders.stop(worker.age)
        self._order(orders, "worker.stop_requested", pid=pid, age=worker.age)

    def _order(self, orders: Orders, event: str, **values: object) -> None:
        self._master.state = replace(self._master.state, orders=orders)
        self._tell(event, **values)

    def _tell(self, event: str, **values: object) -> None:
        events.publish(event, level="info", by="command", **values)

    def _refuse_where_off(self) -> None:
        self._refuse_at_the_end()
        if not self._master.policy.surge:
            raise CommandError(f"{OFF}, so that no worker gets a successor; set it to 1 or more, and reload")

    def _refuse_at_the_end(self) -> None:
        if self._master.is_stopping:
            raise CommandError("the server is stopping")
