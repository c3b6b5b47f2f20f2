"""
The worker: boots, proves itself, beats, drains.

Owns one worker's life from the fork to its exit, and tells of it through its status page. Decides nothing
about the pool. Built in the master, before the fork, so ``__init__`` must not touch anything process-wide.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import time
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

# Imported for the master: what uvicorn loads by name after the fork, loaded before it, is shared by all
# workers and need not be read from disk by each.
import uvicorn.lifespan.on
import uvicorn.protocols.http.auto  # noqa: F401
from gunicorn.arbiter import Arbiter
from gunicorn.errors import AppImportError
from gunicorn.workers.base import Worker
from uvicorn.config import Config
from uvicorn.loops.auto import auto_loop_factory
from uvicorn_worker import UvicornWorker

from airflow_arbiter import events, logfiles, orphan, stacks
from airflow_arbiter.accesslog import AccessLog
from airflow_arbiter.books import Book
from airflow_arbiter.drain import DrainingServer
from airflow_arbiter.health import Prober, ProbeResult
from airflow_arbiter.loops import calm_accept_errors
from airflow_arbiter.probation import PROOF_S
from airflow_arbiter.proctitle import set_title
from airflow_arbiter.stacks import HeldRequest
from airflow_arbiter.status import Field, StatusPage
from airflow_arbiter.tracking import Tracker

auto_loop_factory()  # the same for uvloop: 4 MB of each worker's own otherwise

BEAT_S = 1.0
"""Longest pause between two heartbeats; a short ``timeout`` makes it shorter."""

YOUNG_BEAT_S = 0.25
"""The same, while a worker is young: a rollout waits to see that it does not hang."""

YOUNG_S = 2 * PROOF_S
"""How long it is young: longer than a rollout waits for it, which could not end without it."""

PROBE_PAUSE_FIRST_S = 0.1
PROBE_PAUSE_LAST_S = 1.0
"""Pause between two probes of a worker that is not healthy yet; it doubles from the first to the last."""

EXIT_MARGIN_S = 1.0
"""Part of ``graceful_timeout`` that is kept for the lifespan's shutdown and the exit hooks."""

LEAVE_LOOP_S = 1.0
"""What the app gets to give back what belongs to the event loop, e.g. connections to a database."""

BOOT_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
"""Asked to leave. Blocked by the master around the fork, so that none is lost before there is a handler."""

MASTER_SIGNALS = frozenset({signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU})
"""Meant for the master. Terminals and ``kill -- -PGID`` send them to workers too, which would end by them."""


class AirflowUvicornWorker(UvicornWorker):
    """
    A uvicorn worker that takes its first request when it has proved itself, and answers its last.

    :ivar book: the master's notes on it. The worker reads its generation there, and when it was made.
    :ivar must_prove: whether it listens only once it is ready; set by the arbiter, as is the next.
    :ivar notify_fd: where one byte wakes the master.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Not UvicornWorker's: it moves the handlers of uvicorn's loggers about, in the master.
        Worker.__init__(self, *args, **kwargs)
        self.status = StatusPage()
        self.book = Book()
        self.must_prove = False
        self.notify_fd = -1
        self._server: DrainingServer | None = None
        self._tracker: Tracker | None = None
        self._has_proved = False
        self._is_orphan = False
        self._is_young_until = math.inf
        self._beat_task: asyncio.Task[None] | None = None
        self._probe_task: asyncio.Task[None] | None = None

    # -- boot ------------------------------------------------------------------------------------------------

    def init_process(self) -> None:
        """
        Boot and serve until asked to leave.

        :raises SystemExit: always in the end, with gunicorn's ``WORKER_BOOT_ERROR`` where the app did not
            start.
        """
        self.set_title("boot")
        events.bind(pid=self.pid, generation=self.book.generation)
        try:
            super().init_process()
        except AppImportError as error:
            events.publish("worker.boot_failed", level="error", error=str(error))
        except Exception:
            # Caught here because gunicorn would log the traceback and print its last line again.
            events.publish_exception("worker.boot_failed")
        else:
            return
        sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def init_signals(self) -> None:
        # First of all, and here: gunicorn calls this once more after a change of the user.
        orphan.die_with(self.ppid)
        signal.set_wakeup_fd(-1)  # inherited: it would wake the master for our signals
        # gunicorn calls this once more, with nothing blocked, and super() sets defaults, which end a process.
        signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)
        super().init_signals()
        for sig in BOOT_SIGNALS:
            signal.signal(sig, self._leave_boot)
        for sig in MASTER_SIGNALS:
            # A handler and not SIG_IGN, which the programs that the app starts would inherit.
            signal.signal(sig, lambda *_: None)
        stacks.answer_with(self.status.fd, self._held)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)

    def handle_usr1(self, _sig: int, _frame: FrameType | None) -> None:
        logfiles.reopen()

    def run(self) -> None:
        if not self.alive:
            raise SystemExit(0)  # once more: the import of the app may have swallowed the first
        self.config = self._uvicorn_config()
        # Raised before the event loop runs, the exit would leave a coroutine behind that was never awaited.
        signal.pthread_sigmask(signal.SIG_BLOCK, BOOT_SIGNALS)
        super().run()

    def _leave_boot(self, _sig: int, _frame: FrameType | None) -> None:
        """Leave at once: a worker that boots has served nobody."""
        self.alive = False
        raise SystemExit(0)

    def _uvicorn_config(self) -> Config:
        """
        Translate gunicorn's settings.

        Source: ``uvicorn_worker.UvicornWorker.__init__``, less what we do ourselves: heartbeats,
        ``max_requests`` and the loggers' handlers.
        """
        kwargs: dict[str, Any] = {
            "app": self._app_with_access_log() if self.cfg.accesslog else self.wsgi,
            "log_config": None,
            "access_log": False,  # ours is a middleware
            "timeout_keep_alive": self.cfg.keepalive,
            "forwarded_allow_ips": self.cfg.forwarded_allow_ips,
            "backlog": self.cfg.backlog or Config(app="").backlog,
        }
        if self.cfg.is_ssl:
            options = self.cfg.ssl_options
            kwargs.update(
                ssl_keyfile=options.get("keyfile"),
                ssl_certfile=options.get("certfile"),
                ssl_keyfile_password=options.get("password"),
                ssl_cert_reqs=options.get("cert_reqs"),
                ssl_ca_certs=options.get("ca_certs"),
                ssl_ciphers=options.get("ciphers"),
            )
        return Config(**{**kwargs, **self.CONFIG_KWARGS})

    def _app_with_access_log(self) -> Any:
        if self.app.served.logs_requests:
            return self.wsgi
        return AccessLog(
            self.wsgi,
            pid=self.pid,
            generation=self.book.generation,
            silent_path=self._health_path,
        )

    @property
    def _health_path(self) -> str | None:
        """The path of health checks, as requests from outside have it: without a query."""
        path = self.cfg.health_check_path
        return None if path is None else urlsplit(path).path

    async def _serve(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BOOT_SIGNALS)
        calm_accept_errors(asyncio.get_running_loop())
        self._beat_task = asyncio.ensure_future(self._beat())
        self.config.load()
        self._tracker = Tracker(self.config.loaded_app, health_path=self._health_path)
        self.config.loaded_app = self._tracker
        limit_s = self.cfg.graceful_timeout
        self._server = DrainingServer(
            self.config,
            drain_limit_s=limit_s - min(EXIT_MARGIN_S, limit_s / 10),
            on_listening=self._on_listening,
            on_draining=self._on_draining,
        )
        self.config.lifespan_class = self._proving(self.config.lifespan_class, self._server)
        for sig in BOOT_SIGNALS:
            signal.signal(sig, self._server.handle_exit)
        if not self.alive:
            sys.exit(0)  # once more: Python ignores an exit that is raised in, say, a finalizer
        # The sockets themselves, not gunicorn's wrappers: event loops know how to give those back.
        await self._server.serve(sockets=[listener.sock for listener in self.sockets])
        self._tell_requests()  # those after the last beat
        if not self._server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)  # older versions of uvicorn only return
        try:
            await asyncio.wait_for(self.app.served.leave_loop(), LEAVE_LOOP_S)
        except Exception:
            events.publish_exception("worker.exit_hook_failed", level="warning")

    # -- prove -----------------------------------------------------------------------------------------------

    def _proving(worker, lifespan_class: type[Any], server: DrainingServer) -> type[Any]:  # noqa: N805
        """Make a lifespan whose startup ends with the proof: after the app's, before the sockets."""
        # `worker`, because `self` is the lifespan below.

        class ProvingLifespan(lifespan_class):
            async def startup(self) -> None:
                await super().startup()
                if not self.should_exit:
                    await worker._prove(getattr(self, "state", {}))
                    orphan.outlive()
                    server.end_boot()

        return ProvingLifespan

    async def _prove(self, state: dict[str, Any]) -> None:
        """
        Probe the app until it passes.

        A worker that need not prove itself first listens after one probe, and goes on asking in the
        background.
        """
        trouble = await self._connect()
        path = self.cfg.health_check_path
        if path is None:
            await self._insist_on_connections(trouble)
            self._has_proved = True
            return
        assert self._tracker is not None
        prober = Prober(self._tracker.app, path, state=state, timeout_s=self.cfg.health_check_timeout)
        if (await self._probe(prober)).passed:
            await self._insist_on_connections(trouble)
            self._has_proved = True
        elif self.must_prove:
            await self._probe_until_passed(prober)
            await self._insist_on_connections(trouble)
        else:
            self._probe_task = asyncio.ensure_future(self._probe_until_passed(prober))

    async def _connect(self, known: str = "") -> str:
        """
        Do what the first request would wait for.

        :param known: trouble that was told already.
        :return: what is wrong with it; empty where nothing is.
        """
        try:
            await asyncio.wait_for(self.app.served.connect_worker(), self.cfg.health_check_timeout)
        except Exception as error:
            because = f"{type(error).__name__}: {error}"
            if because != known:
                events.publish("worker.connect_failed", level="warning", age=self.age, because=because)
            return because
        return ""

    async def _insist_on_connections(self, trouble: str) -> None:
        """
        Try until they are there, where the worker has to prove itself.

        A health check may pass without them, and clients would wait for them. The very first workers listen
        all the same, so that an outage can be seen.
        """
        while trouble and self.must_prove:
            await asyncio.sleep(PROBE_PAUSE_LAST_S)
            trouble = await self._connect(trouble)

    async def _probe_until_passed(self, prober: Prober) -> None:
        pause_s = PROBE_PAUSE_FIRST_S
        while not self._has_proved:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PROBE_PAUSE_LAST_S)
            self._has_proved = (await self._probe(prober)).passed
        if self._server is not None and self._server.started:
            self._on_ready()

    async def _probe(self, prober: Prober) -> ProbeResult:
        result = await prober.ask()
        self.status.write(Field.PROBE_CODE, result.code)
        self.status.write(Field.PROBE_AT, time.monotonic())
        return result

    # -- tell ------------------------------------------------------------------------------------------------

    def set_title(self, state: str) -> None:
        """Show in the process list what the worker is doing."""
        set_title(f"worker {self.age} gen {self.book.generation} [{self.cfg.proc_name}]", state=state)

    async def _beat(self) -> None:
        """Beat until the process ends. Runs on the event loop: a loop that is blocked must fall silent."""
        pause_s = min(BEAT_S, self.cfg.timeout / 4) if self.cfg.timeout else BEAT_S
        while True:
            now = time.monotonic()
            is_young = now < self._is_young_until
            if self._server is not None:
                self._tell_requests()
                # Not while it is young: a number that is reached at once would never let a rollout end.
                if not is_young and self._requests() >= self.max_requests:
                    self.status.retire("requests", now)
            self.status.write(Field.BEAT_AT, now)
            with contextlib.suppress(OSError):
                self.notify()  # gunicorn's own heartbeat file, for tools that read it
            if os.getppid() != self.ppid and self._server is not None and not self._is_orphan:
                self._is_orphan = True
                orphan.leave_within(self.cfg.graceful_timeout)  # the master died: nobody else will end us
                self._server.handle_exit(signal.SIGTERM, None)
            await asyncio.sleep(min(pause_s, YOUNG_BEAT_S) if is_young else pause_s)

    def _tell_requests(self) -> None:
        assert self._server is not None
        self.status.write(Field.REQUESTS, self._requests())
        self.status.write(Field.IN_FLIGHT, self._server.in_flight)

    def _requests(self) -> int:
        """Count the requests that were answered, less the health checks: they are no wear."""
        assert self._server is not None
        assert self._tracker is not None
        return max(0, self._server.requests - self._tracker.health_checks)

    def _held(self) -> list[HeldRequest]:
        return [] if self._server is None else self._server.held_requests()

    def _on_listening(self) -> None:
        self.status.write_once(Field.LISTENING_AT, time.monotonic())
        if self._has_proved:
            self._on_ready()
        else:
            events.publish(
                "worker.unhealthy",
                level="warning",
                age=self.age,
            )
            self._wake_master()

    def _on_ready(self) -> None:
        now = time.monotonic()
        self._is_young_until = now + YOUNG_S
        self.status.write_once(Field.READY_AT, now)
        self.set_title("ready")
        events.publish(
            "worker.ready",
            age=self.age,
            boot_s=round(now - self.book.spawned_at, 3),
        )
        self._wake_master()

    def _on_draining(self) -> None:
        if self._probe_task is not None:
            self._probe_task.cancel()
        self.status.write_once(Field.DRAINING_AT, time.monotonic())
        self.set_title("drain")
        events.publish("worker.draining", age=self.age)
        self._wake_master()

    def _wake_master(self) -> None:
        # A full pipe means that the master is going to wake anyway, a closed one that it is gone.
        with contextlib.suppress(OSError):
            os.write(self.notify_fd, b".")
