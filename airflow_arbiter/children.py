"""
The processes that a master has: how they are made, told, reaped.

Owns fork, signals to workers and their exits, and what must not leak from a master into a worker or back.
Decides nothing: what is called here, and when, is for :mod:`airflow_arbiter.arbiter`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any

from gunicorn.arbiter import Arbiter

from airflow_arbiter import events, stacks
from airflow_arbiter.books import Kept
from airflow_arbiter.control import Control
from airflow_arbiter.errors import IntegrationError
from airflow_arbiter.monitors import Monitors
from airflow_arbiter.observation import exit_cause, view_of
from airflow_arbiter.pool import Departure, RolloutState
from airflow_arbiter.tally import Tally
from airflow_arbiter.wakeup import Wakeup
from airflow_arbiter.workers import AirflowUvicornWorker


class WorkerKeeper(Arbiter):
    """
    gunicorn's arbiter, with our way to make, signal and reap workers.

    :param app: the application; its ``cfg`` holds gunicorn's settings and ours.
    :ivar started_at: when the server was started, in seconds of the monotonic clock.
    :ivar generation: the generation that new workers get.
    :ivar departures: workers that went since somebody last looked.
    :ivar wakeup: what the loop sleeps on, once it runs.
    :ivar control: where the outside asks and steers.
    :ivar inherited_notify_fds: the pipe of workers that were there before this image of the master.
    :ivar known_troubles: what was wrong with the app when it was loaded, without keeping it from serving.
    :ivar load_error: why there is no app to make workers with, if there is none.
    :ivar state: what the planner remembers.
    :ivar tally: what is counted.
    :ivar monitors: who is told of all this without asking.
    :ivar metrics_told: what an earlier image of this master has told them.
    """

    # Narrower than gunicorn's: only our workers have a status page.
    WORKERS: dict[int, Kept]
    cfg: Any
    log: Any
    monitors: Monitors
    reexec_pid: int
    systemd: bool
    _num_workers: int
    control: Control

    def __init__(self, app: Any) -> None:
        # Before super(): its __init__ runs setup(), and WORKERS and LISTENERS are shared by the whole class.
        self.WORKERS = {}
        self.LISTENERS: list[Any] = []
        self.generation = 1
        self.started_at = time.monotonic()
        self.pid: int | None = None
        self.departures: list[Departure] = []
        self.wakeup: Wakeup
        self.inherited_notify_fds: tuple[int, int] | None = None
        self.known_troubles: tuple[str, ...] = ()
        self.load_error: BaseException | None = None
        self.state = RolloutState()
        self.tally = Tally()
        self.metrics_told: dict[str, int] = {}
        super().__init__(app)
        # sys.argv has the path of __main__.py where the command was `python -m`; SIGUSR2 must start the same.
        self.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]

    @property
    def num_workers(self) -> int:
        """Workers wanted: the target."""
        return self._num_workers

    @num_workers.setter
    def num_workers(self, value: int) -> None:
        old, self._num_workers = self._num_workers, value
        self.call_hook("nworkers_changed", self, value, old)

    def keep_target(self, target: int) -> None:
        """Go on with a number of workers that was wanted before, which is no change to tell a hook of."""
        self._num_workers = target

    @property
    def stats(self) -> dict[str, Any]:
        """What gunicorn counts, by name."""
        kept: dict[str, Any] = self._stats
        return kept

    def owns_socket_files(self) -> bool:
        """Whether the files of Unix sockets are ours to remove: not during an upgrade, not systemd's."""
        return self.reexec_pid == 0 and self.master_pid == 0 and not self.systemd

    def call_hook(self, name: str, *arguments: Any) -> None:
        """Call an operator's hook, which must not end the server, whatever it does."""
        try:
            getattr(self.cfg, name)(*arguments)
        except (Exception, SystemExit):
            events.publish_exception("arbiter.hook_failed", hook=name)

    def spawn_worker(self, *, must_prove: bool = False) -> int:
        """
        Fork a worker.

        :param must_prove: whether it listens only once it is ready.
        :return: its pid, in the master; the child leaves by ``SystemExit`` through its caller's frames.
        :raises OSError: when the system has no process, descriptor or memory for it.
        :raises IntegrationError: while there is no app.
        :raises Exception: whatever the hook ``pre_fork`` raises.
        """
        if self.load_error is not None:
            raise IntegrationError(f"the app could not be loaded: {self.load_error}") from self.load_error
        self.worker_age += 1
        worker = self.worker_class(
            self.worker_age, self.pid, self.LISTENERS, self.app, self.timeout / 2.0, self.cfg, self.log
        )
        worker.book.generation = self.generation
        worker.book.jitter = random.random()
        worker.must_prove = must_prove
        worker.notify_fd = self.wakeup.notify_fds[1]
        try:
            self._prepare_fork(worker)
            # A signal between the fork and the worker's own handlers would go into a copy of our queue.
            signal.pthread_sigmask(signal.SIG_BLOCK, worker.SIGNALS)
            pid = os.fork()
        except BaseException:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, worker.SIGNALS)
            worker.tmp.close()
            worker.status.close()
            raise
        if pid == 0:
            try:
                self._be_worker(worker)
            except SystemExit:
                raise
            except BaseException:
                # Whatever else left this frame would go on as a second master, with a copy of our books.
                traceback.print_exc()
                os._exit(self.WORKER_BOOT_ERROR)
        worker.pid = pid
        self.WORKERS[pid] = worker
        self._stats["workers_spawned"] += 1
        signal.pthread_sigmask(signal.SIG_UNBLOCK, worker.SIGNALS)
        return pid

    def _prepare_fork(self, worker: AirflowUvicornWorker) -> None:
        """
        Leave nothing to a child that is the master's alone.

        :raises IntegrationError: for a hook ``pre_fork`` that would end the process.
        :raises Exception: whatever else it raises.
        """
        try:
            self.cfg.pre_fork(self, worker)
        except SystemExit as error:
            # Let through, it would end the server and not only the making of this worker.
            raise IntegrationError(f"the hook pre_fork raised SystemExit: {error}") from error
        try:
            self.app.served.prepare_fork()
        except (Exception, SystemExit):
            # What cannot be given back must not keep the service from its workers.
            events.publish_exception("worker.prepare_failed", level="warning", age=worker.age)
        # What is still in the buffers would be written once more by every child. They may be closed, or full.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()

    def _be_worker(self, worker: AirflowUvicornWorker) -> None:
        """
        Live the worker's life. Runs in the child.

        Source: the second half of ``gunicorn.arbiter.Arbiter.spawn_worker``, without its prints.

        :raises SystemExit: always.
        """
        worker.pid = os.getpid()
        code = 0
        try:
            worker.init_signals()
            self.control.abandon()
            self.monitors.close()
            for sibling in self.WORKERS.values():
                sibling.tmp.close()
                sibling.status.close()
            self._forget_inherited(worker)
            self.cfg.post_fork(self, worker)
            worker.init_process()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else bool(error.code)
        except BaseException:
            events.publish_exception("worker.failed", pid=worker.pid)
            code = 1 if worker.booted else self.WORKER_BOOT_ERROR
        for leave in (self.app.leave_worker, lambda: self.cfg.worker_exit(self, worker), worker.tmp.close):
            try:
                leave()
            except BaseException:
                events.publish_exception("worker.exit_hook_failed", level="warning", pid=worker.pid)
        # A signal in the last moments of the interpreter would end the process, or crash it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {stacks.SIGNAL})
        stacks.answer_to_the_end(worker.status.fd)
        # The interpreter's last collection would walk, and so copy, every page that is shared with the
        # master, for memory that the kernel takes back anyway: 1.4 s instead of 0.1 s for Airflow.
        gc.disable()
        gc.freeze()
        sys.exit(code)

    def _forget_inherited(self, worker: AirflowUvicornWorker) -> None:
        """Leave alone what is the master's. Runs in the child."""
        try:
            self.app.served.enter_worker()
        except Exception:
            events.publish_exception("worker.prepare_failed", level="warning", age=worker.age)

    def kill_worker(self, pid: int, sig: int) -> None:
        """
        Send a worker a signal; the request to leave only once, whoever asks.

        A process that is gone is reaped by the next turn.
        """
        worker = self.WORKERS.get(pid)
        if worker is None:
            return
        if sig == signal.SIGTERM:
            if worker.book.draining_at is not None:
                return
            worker.book.draining_at = time.monotonic()
        if sig == signal.SIGQUIT:
            worker.book.quit_at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)
        if sig == signal.SIGKILL:
            worker.book.killed_at = time.monotonic()  # after it: what the system refuses is due again
        if sig in (signal.SIGTERM, signal.SIGKILL):
            self._stats["workers_killed"] += 1

    def ask_stacks(self, pid: int) -> None:
        """Ask a worker what it is doing, for :meth:`tell_stacks`."""
        worker = self.WORKERS[pid]
        worker.book.dumped_at = time.monotonic()
        stacks.clear(worker.status.fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, stacks.SIGNAL)

    def tell_stacks(self, pid: int) -> None:
        """Log what a worker has told of what it is doing."""
        worker = self.WORKERS[pid]
        answer = stacks.read(worker.status.fd)
        requests = "unknown" if answer.requests is None else [asdict(held) for held in answer.requests]
        events.publish(
            "worker.stacks",
            level="error",
            pid=pid,
            age=worker.age,
            requests=requests,
            stack=answer.stacks or "(nothing came: the process is stopped, or had not begun)",
        )

    def reap_workers(self) -> None:
        """Take the exit of every child that is gone, and keep it for the next look."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.reexec_pid:
                self.reexec_pid = 0
                continue
            worker = self.WORKERS.pop(pid, None)
            if worker is None:
                continue  # an orphan that became ours because we are PID 1
            self.departures.append(
                Departure(
                    worker=view_of(worker),
                    cause=exit_cause(status, worker),
                    exit_code=os.waitstatus_to_exitcode(status),
                )
            )
            worker.tmp.close()
            worker.status.close()
            self.call_hook("child_exit", self, worker)

    def reexec(self) -> None:
        """
        Start a second master beside this one, on the same sockets.

        Source: ``gunicorn.arbiter.Arbiter.reexec``, which runs the child's part in our loop: where that
        fails, the child would stop our workers on its way out.
        """
        master, is_systemds = os.getpid(), self.systemd
        # Where it hands sockets over they are at descriptors 3, 4 ...; ours have moved since.
        self.systemd = False
        try:
            super().reexec()
        except BaseException:
            events.publish_exception("arbiter.reexec_failed")
            if os.getpid() != master:
                os._exit(1)
        finally:
            self.systemd = is_systemds
