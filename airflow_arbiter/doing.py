"""
How a plan is done: one small method for each kind of action.

Owns the way from a decision to the process that it is about, and what is told of it. Has no rule: the planner
has decided, and :mod:`airflow_arbiter.children` knows how processes are made and ended.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from typing import Any

from gunicorn.errors import HaltServer

from airflow_arbiter import events
from airflow_arbiter.children import WorkerKeeper
from airflow_arbiter.pool import Action, Drain, Dump, Halt, Kill, Quit, Spawn
from airflow_arbiter.rollout import IDLE_WAKE_S
from airflow_arbiter.turns import SPAWN_BUDGET_S, Turns

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never


class PlanDoer(WorkerKeeper):
    """
    A keeper of workers that does what a plan says.

    :param app: the application; its ``cfg`` holds gunicorn's settings and ours.
    :ivar turns: how long the loop's turns take.
    :ivar wake_in_s: the longest time until the next turn.
    :ivar spawn_errors: why no process could be made since somebody last looked, for want of something.
    :ivar lasting_errors: the same where time alone does not help.
    """

    def __init__(self, app: Any) -> None:
        # Before super(): its __init__ runs setup().
        self.turns = Turns()
        self.wake_in_s = IDLE_WAKE_S
        self.spawn_errors: list[str] = []
        self.lasting_errors: list[str] = []
        super().__init__(app)

    def do(self, actions: Iterable[Action]) -> None:
        """
        Act on a plan.

        :raises HaltServer: where the plan is to give up.
        """
        for action in actions:
            self._try(action)

    def _try(self, action: Action) -> None:
        """Act, and let what goes wrong not keep the rest of the plan from being done."""
        try:
            self._act(action)
        except Exception as error:
            if isinstance(error, HaltServer):
                raise
            events.publish_exception("arbiter.action_failed", action=type(action).__name__)

    def _act(self, action: Action) -> None:
        match action:
            case Spawn():
                self._do_spawn(action)
            case Drain():
                self._do_drain(action)
            case Quit():
                self.kill_worker(action.pid, signal.SIGQUIT)
            case Dump():
                self.ask_stacks(action.pid)
            case Kill():
                self._do_kill(action)
            case Halt():
                self._do_halt(action)
            case _:
                assert_never(action)

    def _do_spawn(self, action: Spawn) -> None:
        for _ in range(action.count):
            if self.turns.elapsed_s > SPAWN_BUDGET_S:
                self.wake_in_s = 0.0  # the next turn plans the rest anew
                return
            try:
                pid = self.spawn_worker(must_prove=action.must_prove)
            except Exception as error:
                # No process, descriptor or memory is left; or what time does not heal, as a hook that raises.
                events.publish_exception("worker.spawn_failed")
                errors = self.spawn_errors if isinstance(error, OSError) else self.lasting_errors
                errors.append(f"{type(error).__name__}: {error}")
                return
            worker = self.WORKERS[pid]
            events.publish("worker.spawned", pid=pid, age=worker.age, generation=worker.book.generation)

    def _do_drain(self, action: Drain) -> None:
        events.publish("worker.drain_requested", pid=action.pid, age=action.age, reason=action.reason)
        self.WORKERS[action.pid].book.drain_reason = action.reason
        self.kill_worker(action.pid, signal.SIGTERM)

    def _do_kill(self, action: Kill) -> None:
        worker = self.WORKERS[action.pid]
        worker.book.kill_cause = action.cause
        self.kill_worker(action.pid, signal.SIGKILL)
        self.tell_stacks(action.pid)
        events.publish("worker.killed", level="error", pid=action.pid, age=action.age, cause=action.cause)

    def _do_halt(self, action: Halt) -> None:
        raise HaltServer(f"the app cannot boot: {action.cause}", self.WORKER_BOOT_ERROR)
