"""
The master: observes the pool, asks the planner, and does what it says.

Owns the loop and what it reacts to: signals, reloads, the stop. Has no rule of its own: who is replaced, when
and why is decided in :mod:`airflow_arbiter.rollout`; that is done in :mod:`airflow_arbiter.doing`, and how
processes are made and ended is in :mod:`airflow_arbiter.children`. No thread may live in this process,
because it forks.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from gunicorn import sock
from gunicorn.errors import HaltServer

from airflow_arbiter import (
    checks,
    events,
    logfiles,
    memory,
    merging,
    preload,
    rereading,
    settings,
    succession,
    systemd,
)
from airflow_arbiter.control import Control
from airflow_arbiter.dispatch import Dispatcher
from airflow_arbiter.doing import PlanDoer
from airflow_arbiter.errors import ForkSafetyError
from airflow_arbiter.fork_safety import Audit
from airflow_arbiter.memory import Container
from airflow_arbiter.monitors import Monitors
from airflow_arbiter.observation import view_of
from airflow_arbiter.pool import Event, PoolView, RolloutPolicy, Stop
from airflow_arbiter.proctitle import set_title
from airflow_arbiter.reloading import Reloader
from airflow_arbiter.rollout import IDLE_WAKE_S, plan
from airflow_arbiter.steering import Steering
from airflow_arbiter.tally import count
from airflow_arbiter.troubles import refuse_new
from airflow_arbiter.wakeup import Wakeup

EXIT_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
"""Each makes a graceful stop that is under way a quick one."""


class AirflowArbiter(PlanDoer):
    """
    gunicorn's arbiter, with replacement of workers one by one.

    :param app: the application; its ``cfg`` holds gunicorn's settings and ours.
    :ivar policy: what the options say of the pool.
    :ivar steering: by which everybody outside looks at it and steers it.
    """

    def __init__(self, app: Any) -> None:
        # Before super(): its __init__ runs setup().
        self.steering = Steering(self)
        self.control = Control(Dispatcher(self, self.steering).answer)
        self.policy = RolloutPolicy()
        self.monitors = Monitors(self)
        self._stop: Stop | None = None
        self._container = Container()
        self._title = ("", "")
        self._audit = Audit()
        self.reloader = Reloader(self, self._container)
        self._told: tuple[Event, ...] = ()
        super().__init__(app)

    def setup(self, app: Any) -> None:
        """
        Take in a configuration, at the start and at each reload.

        :raises SettingsError: for a log that cannot be set up.
        """
        if self.log is None:
            self.log = logfiles.set_up(app.cfg)
        preload = app.cfg.settings["preload_app"]
        is_preloaded, preload.value = preload.get(), False  # load() does that, when signals are heard
        try:
            super().setup(app)
        finally:
            preload.value = is_preloaded
        corrections = checks.corrections(self.cfg)
        for name, value in corrections.values.items():
            self.cfg.set(name, value)
        self.policy = settings.policy(self.cfg)
        told, self._told = self._told, (*corrections.events, *merging.ask(wanted=self.cfg.memory_merge))
        self._publish(event for event in self._told if event not in told)

    def load(self, *, warmup_limit_s: float = preload.LIMIT_S) -> None:
        """
        Load the app, where it is preloaded, and warm it up.

        :param warmup_limit_s: time for the warm-up; with 0 there is none.
        :raises ForkSafetyError: where it is not safe to fork, and that is not allowed.
        :raises Exception: whatever the app raises; in a later image also UnfitError, for new troubles.
        """
        if self.cfg.preload_app:
            preload.load(self.app, self._audit, limit_s=warmup_limit_s)
            troubles = self.app.served.troubles()
            if self.pid is not None:
                refuse_new(troubles, known=self.known_troubles)  # it may have come since
            self.known_troubles = tuple(troubles)
            preload.settle(self.app)

    def start(self) -> None:
        """
        Bind, and tell whoever waits for it; where an earlier image did, only listen to signals.

        :raises SystemExit: with 1 where that fails, with 3 where a hook has left what is not safe to fork,
            and that is not allowed; nothing of us is left behind then.
        """
        if self.pid is not None:
            succession.take_pid_file(self)
            self.init_signals()
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if self.load_error is None:
                self.call_hook("on_reload", self)
            self._look_again(may_refuse=False)
            self._tell_if_off()
            self.monitors.open(is_resumed=True, told=self.metrics_told)
            return
        try:
            with systemd.hushed():
                super().start()
            self._look_again(may_refuse=True)
            if self.master_pid and "LISTEN_FDS" in os.environ:
                self.systemd = True  # the other one's sockets were, and files of them are not ours to remove
            self.monitors.open(is_resumed=False, told={})
        except BaseException as error:
            sock.close_sockets(self.LISTENERS, unlink=self.owns_socket_files())
            if self.pidfile is not None:
                self.pidfile.unlink()
            if isinstance(error, ForkSafetyError):
                events.publish("app.load_failed", level="error", error=str(error))
                sys.exit(self.WORKER_BOOT_ERROR)
            if isinstance(error, Exception):
                events.publish_exception("arbiter.start_failed", error=str(error))
                sys.exit(1)
            raise

    def _look_again(self, *, may_refuse: bool) -> None:
        """
        Tell what hooks have left that is not safe to fork.

        :raises ForkSafetyError: as :meth:`load`.
        """
        ours = [listener.fileno() for listener in self.LISTENERS]
        preload.look_again(self.app, self._audit, ours=ours, may_refuse=may_refuse)

    def _publish(self, happened: Iterable[Event]) -> None:
        for event in happened:
            events.publish(event.name, level=event.level, **dict(event.values))

    # -- observe, decide, act --------------------------------------------------------------------------------

    def manage_workers(self) -> None:
        """Take one turn."""
        self.wake_in_s = IDLE_WAKE_S
        try:
            self._go_on_with_reload()
            view = self._observe()
            decision = plan(view, self.policy)
            self.state = decision.state
            self.wake_in_s = min(decision.wake_in_s, self.reloader.wake_in_s)
            self._publish(decision.events)
            self.do(decision.actions)
            self.tally = count(self.tally, view, decision.state)
            is_paused = self.state.orders.is_paused
            self.show_title("reload failed" if self.reloader.failure else "paused" if is_paused else "")
            self.monitors.turn(is_last=self._stop is not None and not self.WORKERS)
            self.wake_in_s = min(self.wake_in_s, self.monitors.wake_in_s)
        except HaltServer:
            raise
        except Exception:
            # The turn must not end the server; the next one looks at the world anew.
            events.publish_exception("arbiter.turn_failed")

    def _go_on_with_reload(self) -> None:
        if self._stop is not None:
            return
        try:
            # The exec would forget who has gone: they are in no book any more, and in no number yet.
            self.reloader.turn(may_leave=not (self.departures or self.spawn_errors or self.lasting_errors))
        except Exception as error:
            # It runs foreign code; whatever that does, the workers must be looked after.
            events.publish_exception("reload.refused")
            self.reloader.failure = f"{type(error).__name__}: {error}"
            self.reloader.cancel()

    def _observe(self) -> PoolView:
        self.reap_workers()  # also without a SIGCHLD: the next turn heals a signal that was missed
        if self._container.is_limited or self.policy.memory_limit_bytes:
            self.sample_memory()
        view = self.look()
        self.departures, self.spawn_errors, self.lasting_errors = [], [], []
        return view

    def sample_memory(self) -> None:
        """See what workers hold, as far as that was not done lately."""
        memory.sample(
            ((worker.pid, worker.book.memory) for worker in self.WORKERS.values()),
            interval_s=self.cfg.worker_memory_interval,
            limit_bytes=self.policy.memory_limit_bytes,
        )

    def look(self) -> PoolView:
        """See how everything stands, without taking notice of it."""
        workers = tuple(map(view_of, self.WORKERS.values()))
        return PoolView(
            now=time.monotonic(),
            target=self.num_workers,
            generation=self.generation,
            workers=workers,
            state=self.state,
            departures=tuple(self.departures),
            spawn_errors=tuple(self.spawn_errors),
            lasting_errors=tuple(self.lasting_errors),
            memory_room_bytes=self._container.room_bytes(),
            stop=self._stop,
        )

    def show_title(self, state: str = "") -> None:
        """
        Tell in the process list who we are.

        :param state: what we do, where that is worth telling.
        """
        title = f"master [{self.proc_name}]"
        if (title, state) != self._title:
            self._title = title, state
            set_title(title, state=state)

    # -- signals and waiting ---------------------------------------------------------------------------------

    def init_signals(self) -> None:
        """Set the handlers up, and what wakes the loop: a signal, or a worker's byte."""
        self.wakeup = Wakeup(self.inherited_notify_fds)
        signal.set_wakeup_fd(self.wakeup.signal_fd, warn_on_full_buffer=False)
        self.control.attach(self.wakeup)
        super().init_signals()

    def wait_for_signals(self, timeout: float = IDLE_WAKE_S) -> list[int]:
        """
        Sleep until a signal, a worker's news or the planner's next moment.

        :param timeout: longest sleep, in seconds.
        :return: the signals that came, in order.
        """
        self.turns.end()
        if self.SIG_QUEUE.empty():
            self.wakeup.wait(min(timeout, self.wake_in_s, self.control.wake_in_s))
        self.turns.begin()
        self._note_control_socket()
        self.control.turn()  # before the pool's: what is asked for here is done at once
        signals: list[int] = []
        while not self.SIG_QUEUE.empty():
            sig = self.SIG_QUEUE.get_nowait()
            if sig != self.WAKEUP_REQUEST:
                signals.append(sig)
        return signals

    def murder_workers(self) -> None:
        """Do nothing: deadlines are the planner's."""

    def handle_usr1(self) -> None:
        """Reopen the log files, here and in the workers."""
        logfiles.reopen()
        self.kill_workers(signal.SIGUSR1)

    def handle_winch(self) -> None:
        """Let all workers go, where we are a daemon; SIGTTIN or SIGHUP brings them back."""
        if self.cfg.daemon:
            self.num_workers = 0

    def reload(self, reason: str = "SIGHUP") -> None:
        """
        Take in the configuration and the code anew, in a new image of this process. Returns at once.

        Where workers load the app themselves, the new configuration and the next generation are all it takes.

        :param reason: who wants it.
        """
        self.stats["reloads"] += 1
        self.reloader.want(reason)

    def reread(self) -> str:
        """
        Take in the configuration anew, with the code that this process has.

        :return: as :func:`airflow_arbiter.rereading.reread`.
        """
        error = rereading.reread(self)
        self._tell_if_off()
        return error

    # gunicorn calls these two when the first workers are forked, and before it halts.

    def _start_control_server(self) -> None:
        """Open the control socket, unless an earlier image has it already."""
        if self.cfg.control_socket_disable:
            return
        self.control.open(
            self.cfg.control_socket or "",
            is_airflow=self.app.served.is_airflow,
            is_second=self.master_pid != 0,
        )
        self._note_control_socket()

    def _note_control_socket(self) -> None:
        self.steering.control_socket = "" if self.control.file is None else self.control.file.path

    def _stop_control_server(self) -> None:
        """Leave it open: how far the stop is can be asked as well. :meth:`stop` closes it."""

    def maybe_promote_master(self) -> None:
        """Notice that the predecessor is gone, and have its names."""
        was_second = self.master_pid != 0
        super().maybe_promote_master()
        if was_second and self.master_pid == 0:
            self.control.take_name(self.cfg.control_socket or "")

    def _tell_if_off(self) -> None:
        if not self.policy.surge:
            events.publish("rollout.off", level="warning", because="worker_refresh_batch_size is 0")

    @property
    def is_stopping(self) -> bool:
        """Whether the server is to end."""
        return self._stop is not None

    # -- stop ------------------------------------------------------------------------------------------------

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """
        Stop, and end with an exit code that the operator's last hook, ``on_exit``, does not change.

        :raises SystemExit: always.
        """
        try:
            super().halt(reason, exit_status)
        except Exception:
            events.publish_exception("arbiter.halt_failed")
        sys.exit(exit_status)

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002  # gunicorn's signature
        """
        End all workers.

        :param graceful: let them drain, for ``graceful_timeout``; a further SIGTERM, SIGINT or SIGQUIT cuts
            that short. Otherwise they get two seconds.
        """
        if self._stop is not None:
            return
        self.reloader.close()
        sock.close_sockets(self.LISTENERS, unlink=self.owns_socket_files())
        self.LISTENERS = []
        now = time.monotonic()
        self._stop = Stop(began_at=now, quick_at=None if graceful else now)
        while self.WORKERS:
            self.manage_workers()
            signals = self.wait_for_signals() if self.WORKERS else []
            if EXIT_SIGNALS.intersection(signals) and self._stop.quick_at is None:
                self.log.info("Quick shutdown requested")
                self._stop = replace(self._stop, quick_at=time.monotonic())
        self.manage_workers()  # tells of the last that went
        self.turns.end()
        events.publish(
            "arbiter.stopped",
            uptime_s=round(time.monotonic() - self.started_at, 3),
            workers_spawned=self.stats["workers_spawned"],
            longest_turn_ms=round(self.turns.longest_s * 1000, 1),
        )
        self.control.close()
