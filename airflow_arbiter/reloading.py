"""
When a master takes in new code: who asks for it, and what must go well before.

Owns the order: asked, preflight, new image; without preload: asked, the configuration tried, taken in. Both
are tried in errands. Asked again meanwhile, the errand begins anew, once; who asks still more often gets
another reload after this one. One that fails leaves everything as it was; where time may heal it (not ready
yet, no memory, no process), it is tried again. Never waits.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil

from airflow_arbiter import events, handover, history, limits, rereading, succession
from airflow_arbiter.children import WorkerKeeper
from airflow_arbiter.errand import Errand
from airflow_arbiter.errors import ArbiterError, IntegrationError
from airflow_arbiter.handover import Handover
from airflow_arbiter.memory import Container
from airflow_arbiter.report import ReloadReport
from airflow_arbiter.watch import FolderWatch

RETRY_FIRST_S = 1.0
RETRY_LAST_S = 60.0
"""Pauses before a reload is tried again; they double."""

NO_APP = "the app is missing"
"""Why a master asks itself for a reload."""


class Reloader:
    """
    The reloads of one master.

    :param master: whose code is replaced.
    :param container: where the preflight must have room.
    :ivar failure: why the last reload failed, in words; empty once one has gone well.
    :ivar retry_s: pause before the next time that it is tried again.
    """

    def __init__(self, master: WorkerKeeper, container: Container) -> None:
        self._master = master
        self._container = container
        self._wanted = ""
        self._again = ""  # why it will be tried again
        self._is_restarted = False
        self._errand: Errand | None = None
        self._is_preflight = False  # the errand; or else it only tries the configuration
        self._message = Handover()
        self._passed = ""
        self._warmup_s = 0.0  # what it took in the preflight that has passed
        self._watch: FolderWatch | None = None
        self._retry_at = 0.0
        self.retry_s = RETRY_FIRST_S
        self.failure = ""

    @property
    def is_running(self) -> bool:
        """Whether an errand is under way, or a preflight has gone well a moment ago."""
        return self._errand is not None or bool(self._passed)

    @property
    def _tried(self) -> str:
        """What is new, and tried by the errand."""
        return "code" if self._is_preflight else "configuration"

    @property
    def is_pending(self) -> bool:
        """Whether one is under way, or will be."""
        return self.is_running or bool(self._wanted or self._again)

    def report(self) -> ReloadReport:
        """Tell how it stands."""
        left_s = self._retry_at - time.monotonic()
        return ReloadReport(
            state="checking" if self.is_running else "waiting" if self.is_pending else "idle",
            failure=self.failure,
            asked=self._master.state.orders.reloads,
            awaiting=self._master.state.orders.awaiting,
            retry_in_s=None if self._wanted or not self._again else round(max(0.0, left_s), 3),
        )

    @property
    def wake_in_s(self) -> float:
        """Seconds until there is something to do, if nothing happens before."""
        if self._passed:
            return 0.0
        return math.inf if self._watch is None else self._watch.wake_in_s

    def want(self, reason: str) -> None:
        """Ask for a reload."""
        state = self._master.state
        self._master.state = replace(state, orders=state.orders.reload())
        self.carry_on(reason)

    def carry_on(self, reason: str) -> None:
        """Ask for a reload that was ordered before."""
        self._wanted = reason
        self.retry_s = RETRY_FIRST_S

    def fail(self, error: str) -> None:
        """Know that there is no app, and try again after a pause."""
        self.failure = error
        self._try_again(NO_APP)

    def _try_again(self, reason: str) -> None:
        """Try once more, after a pause; pauses double until somebody asks."""
        self._again = reason
        self._retry_at = time.monotonic() + self.retry_s
        self.retry_s = min(self.retry_s * 2, RETRY_LAST_S)

    def begin_watch(self) -> None:
        """Watch the folders that are to be watched by now; a watch that suits goes on."""
        folders = self._master.app.watched_folders()
        interval_s = self._master.cfg.reload_check_interval
        old = self._watch
        if old is not None and (old.folders, old.interval_s) == (folders, interval_s):
            return
        self._end_watch()
        self._watch = FolderWatch(folders, interval_s=interval_s) if folders else None

    def settle_watch(self) -> None:
        """Take what these folders hold now for what is loaded: call it before the app is."""
        self.begin_watch()
        if self._watch is not None:
            self._watch.settle()

    def turn(self, *, may_leave: bool) -> None:
        """
        Go one step on, if there is one.

        :param may_leave: whether all that this image has seen is counted, so that the next one may come.
        """
        if self._watch is not None:
            wakeup = self._master.wakeup
            if self._watch.turn(watch=wakeup.watch, forget=wakeup.forget):
                self.want("folder changed")
        if self._errand is not None:
            self._look_at_errand(self._errand)
        if self._again and not self.is_running and time.monotonic() >= self._retry_at:
            self._wanted, self._again = self._wanted or self._again, ""
        if self._passed:
            if not may_leave:
                return  # with the next turn, which comes at once
            self._succeed()  # also where there is a new wish: what is there at the exec is what comes in
        elif self._wanted and not (self._is_restarted and self._errand is not None):
            # What an errand has seen is old once somebody asks again, and perhaps mended. It begins anew,
            # but once: who asks more often than an errand takes would otherwise never get anything.
            self._is_restarted = self._errand is not None
            reason, self._wanted = self._wanted, ""
            self.cancel()
            self._begin(reason)
        self._settle()

    def _settle(self) -> None:
        """Notice that what was ordered is in, or will never be."""
        state = self._master.state
        if state.orders.awaiting and not self.is_pending:
            self._master.state = history.settle_reload(state, failure=limits.one_line(self.failure))

    def give_up(self) -> None:
        """
        Forget what was asked for, what is under way, and why it is; only a master without an app goes on.
        """
        if self.is_pending and self._master.load_error is None:
            self.failure = ""
        self.cancel()
        self._wanted = self._again = ""
        if self._master.load_error is not None:
            self._try_again(NO_APP)

    def cancel(self) -> None:
        """End what is under way."""
        self._passed = ""
        errand, self._errand = self._errand, None
        if errand is not None:
            self._master.wakeup.forget(errand.fd)
            errand.close()

    def close(self) -> None:
        """End everything: the server stops."""
        self.cancel()
        self._end_watch()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close(forget=self._master.wakeup.forget)
            self._watch = None

    def _begin(self, reason: str) -> None:
        """Start an errand."""
        self._again = ""
        events.publish("reload.started", reason=reason, generation=self._master.generation + 1)
        self._message.reason = reason
        if self._master.cfg.preload_app:
            self._begin_preflight(reason)
        else:
            self._send(lambda pipe: rereading.rehearse(self._master.app, pipe))

    def _begin_preflight(self, reason: str) -> None:
        if lack := self._lack_of_memory():
            self._refuse(lack, is_passing=True)
            return
        try:
            self._message = succession.hand_over(self._master, reason)
        except IntegrationError as error:
            events.publish("reload.without_code", level="warning", because=str(error))
            self.failure = self._master.reread()
            return
        self._send(self._fly, self._message)

    def _send(self, run: Callable[..., None], message: Handover | None = None) -> None:
        """
        Send an errand.

        :param run: what it does, given where to tell; before that where the message lies, if there is one.
        """
        self._is_preflight = message is not None
        kept: tuple[int, ...] = ()
        try:
            kept = () if message is None else (message.write(),)
            limit_s = self._master.cfg.worker_boot_timeout
            self._errand = Errand(lambda pipe: run(*kept, pipe), limit_s=limit_s, keep=kept)
        except OSError as error:
            self._refuse(f"no process could be had to try the new {self._tried}: {error}", is_passing=True)
        else:
            self._master.wakeup.watch(self._errand.fd)
        finally:
            for fd in kept:
                os.close(fd)

    def _lack_of_memory(self) -> str:
        """Say why the new code cannot be tried in this container, or nothing."""
        room = self._container.room_bytes()
        needed: int = psutil.Process().memory_info().rss  # another one of us, with nobody to share with
        if room is None or needed <= room:
            return ""
        return f"no memory to try the new code: {needed} bytes are needed, the container has {room}; restart"

    def _fly(self, fd: int, pipe: int) -> None:
        """Become the preflight. Runs in the errand."""
        handover.keep_over_exec(fd, pipe)
        with contextlib.suppress(OSError):
            os.chdir(self._message.cwd)
        line = handover.command(fd, "preflight", str(pipe))
        os.execve(line[0], line, self._master.app.environ)  # noqa: S606  # there is no shell to want

    def _look_at_errand(self, errand: Errand) -> None:
        """Take its verdict, if it has one."""
        told = errand.collect()
        if told is None and not errand.is_late:
            return
        self.cancel()
        if told is None:
            limit_s = self._master.cfg.worker_boot_timeout
            self._refuse(f"the new {self._tried} was not ready within {limit_s:g} s", is_passing=True)
            return
        try:
            verdict = json.loads(told)
        except ValueError:
            error = f"the new {self._tried} ended its process while it was tried, perhaps out of memory"
            self._refuse(error, is_passing=True)
            return
        if "error" in verdict:
            self._refuse(verdict["error"], stack=verdict.get("stack", ""))
        elif self._is_preflight:
            self._warmup_s = verdict["warmup_s"]
            self._passed = self._message.reason
        elif verdict["preload"]:
            # Not here and now: the import may hang, and half of what fails would stay in this process.
            self._begin_preflight(self._message.reason)
        else:
            self.failure = self._master.reread()

    def _succeed(self) -> None:
        """Become the new image; where a signal has come first, with the next turn."""
        try:
            self._master.app.served.prepare_fork()
            message = succession.hand_over(self._master, self._passed)  # workers may have come and gone
            message.retry_s = self.retry_s if self._master.load_error else RETRY_FIRST_S
            message.warmup_s = self._warmup_s
            message.wanted = self._wanted
            message.left_at = time.monotonic()
            succession.become(self._master, message)
        except (ArbiterError, OSError) as error:
            self._passed = ""
            self._refuse(str(error))

    def _refuse(self, error: str, *, stack: str = "", is_passing: bool = False) -> None:
        """
        Stay as we are, and say why; the stack only once, where the same is tried again and again.

        :param is_passing: whether time may heal it, so that it is tried again.
        """
        values: dict[str, Any] = {"stack": stack} if stack and error != self.failure else {}
        self.failure = error
        if self._master.load_error is not None:
            self._try_again(NO_APP)
        elif is_passing:
            self._try_again(self._message.reason)
        if self._again:
            values["retry_in_s"] = round(self._retry_at - time.monotonic(), 3)
        events.publish("reload.refused", level="error", error=error, **values)
