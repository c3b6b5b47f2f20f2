"""
How a master goes on as a new image of itself: same process, same sockets, same workers, new code.

Owns the two sides of the exec: what the old image leaves, and how the new one takes it up. When that happens
is decided in :mod:`airflow_arbiter.reloading`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any, NoReturn

from gunicorn import sock
from gunicorn.pidfile import Pidfile

from airflow_arbiter import events, handover
from airflow_arbiter.books import Adopted, Book
from airflow_arbiter.children import WorkerKeeper
from airflow_arbiter.handover import Handover
from airflow_arbiter.pool import RolloutState
from airflow_arbiter.restoring import restore
from airflow_arbiter.status import StatusPage
from airflow_arbiter.tally import Tally

FIXED_SETTINGS = (
    "bind",
    "pidfile",
    "user",
    "group",
    "daemon",
    "umask",
    "control_socket",
    "control_socket_disable",
)
"""What only a restart can change; a reload keeps the old values and says so."""

_BOOK = tuple(item.name for item in fields(Book) if item.name != "memory")
"""What is handed over of a worker's book; its memory is sampled anew."""

# -- the old image
# ---------------------------------------------------------------------------------------------


def hand_over(master: WorkerKeeper, reason: str) -> Handover:
    """
    Write down all that the new image needs.

    :raises IntegrationError: when the application cannot be made anew from what it was given.
    """
    app, main_path = master.app.origin()
    return Handover(
        app=app,
        main_path=main_path,
        argv=list(sys.argv),
        orig_argv=master.START_CTX["args"],
        path=list(sys.path),
        cwd=master.START_CTX["cwd"],
        reason=reason,
        generation=master.generation + 1,
        worker_age=master.worker_age,
        target=master.num_workers,
        configured=master.cfg.workers,
        fixed={name: master.cfg.settings[name].get() for name in FIXED_SETTINGS},
        listeners=[listener.fileno() for listener in master.LISTENERS],
        notify=list(master.wakeup.notify_fds),
        control=None if master.control.file is None else asdict(master.control.file),
        control_fd=master.control.fd,
        workers=[
            {
                "pid": worker.pid,
                "age": worker.age,
                "status_fd": worker.status.fd,
                "tmp_fd": worker.tmp.fileno(),
                **{name: getattr(worker.book, name) for name in _BOOK},
            }
            for worker in master.WORKERS.values()
        ],
        master_pid=master.master_pid,
        reexec_pid=master.reexec_pid,
        is_systemd=master.systemd,
        started_at=master.started_at,
        stats=dict(master.stats),
        known_troubles=list(master.known_troubles),
        title=f"master [{master.proc_name}]",
        graceful_timeout_s=master.cfg.graceful_timeout,
        boot_timeout_s=master.cfg.worker_boot_timeout,
        owns_socket_files=master.owns_socket_files(),
        state=asdict(master.state),
        tally=asdict(master.tally),
        metrics_told=master.monitors.told,
        kept=master.app.keep(),
    )


def first(master: WorkerKeeper) -> Handover:
    """
    Write down what a first start needs that is made once more.

    :raises IntegrationError: as :func:`hand_over`.
    """
    app, main_path = master.app.origin()
    return Handover(
        app=app,
        main_path=main_path,
        argv=list(sys.argv),
        orig_argv=master.START_CTX["args"],
        path=list(sys.path),
        cwd=master.START_CTX["cwd"],
        started_at=master.started_at,
        kept=master.app.keep(),
        title=f"master [{master.proc_name}]",
        is_first=True,
        is_cold=True,
    )


def begin_anew(master: WorkerKeeper, message: Handover) -> NoReturn:
    """
    Replace this process's image once more, before its loop has run.

    All signals are blocked: those that come stay pending.

    :raises OSError: when the system cannot do it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    with _inheritable(message) as fd:
        with contextlib.suppress(OSError):
            os.chdir(message.cwd)
        line = handover.command(fd)
        os.execve(line[0], line, _environment(master))  # noqa: S606  # there is no shell to want


def become(master: WorkerKeeper, message: Handover) -> None:
    """
    Replace this process's image.

    Returns only if a signal has come meanwhile, which the old image must hear first.

    :raises OSError: when the system cannot do it; nothing has changed then.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    # Blocked signals stay pending over the exec, until the new image has its handlers.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        if not master.SIG_QUEUE.empty():
            return
        with _inheritable(message) as fd:
            with contextlib.suppress(OSError):
                os.chdir(message.cwd)
            line = handover.command(fd)
            master.monitors.fall_silent(master.cfg.worker_boot_timeout)
            os.execve(line[0], line, _environment(master))  # noqa: S606  # there is no shell to want
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def _environment(master: WorkerKeeper) -> dict[str, str]:
    """The environment that the server was started with, without what a promoted master no longer is."""
    environment: dict[str, str] = dict(master.app.environ)
    if master.pid is None:
        return environment  # nobody has looked into it yet
    if not master.master_pid and "GUNICORN_PID" in environment:
        del environment["GUNICORN_PID"]
        environment.pop("WATCHDOG_PID", None)  # systemd watches us now, in the place of that one
    return environment


@contextlib.contextmanager
def _inheritable(message: Handover) -> Iterator[int]:
    """Let the descriptors of a handover survive an exec; the descriptor of the message itself."""
    fd = message.write()
    kept = (fd, *message.descriptors())
    try:
        handover.keep_over_exec(*kept)
        yield fd
    finally:
        handover.close_on_exec(*kept)
        os.close(fd)


def once_more(master: WorkerKeeper, message: Handover) -> Handover:
    """Tell of a message that a new image has taken up what one more image needs, without a warm-up."""
    return replace(
        message,
        listeners=[listener.fileno() for listener in master.LISTENERS],
        control_fd=master.control.fd,
        warmup_s=0.0,
    )


# -- the new image
# ---------------------------------------------------------------------------------------------


def adopt(master: WorkerKeeper, message: Handover) -> None:
    """Take up what the old image has left."""
    master.pid = os.getpid()
    master.generation = message.generation
    master.worker_age = message.worker_age
    master.inherited_notify_fds = (message.notify[0], message.notify[1])
    master.master_pid = message.master_pid
    if message.master_pid:
        master.proc_name += ".2"  # as gunicorn names one that stands beside its predecessor
    master.reexec_pid = message.reexec_pid
    master.systemd = message.is_systemd
    master.known_troubles = tuple(message.known_troubles)
    master.stats.update(message.stats)
    master.metrics_told = dict(message.metrics_told)
    go_on(master, message)
    # There are workers that have served, or it would not have come to this.
    master.state = restore(RolloutState, {"has_served": True, "has_proved": True, **message.state})
    master.tally = restore(Tally, message.tally)
    keep_fixed(master.cfg, message.fixed)
    if message.target and master.cfg.workers == message.configured:
        master.keep_target(message.target)
    for values in message.workers:
        worker = _adopted(values)
        master.WORKERS[worker.pid] = worker
    master.LISTENERS = [_listener(master, fd) for fd in message.listeners]
    if message.control is not None:
        master.control.adopt(message.control_fd, message.control)


def go_on(master: WorkerKeeper, message: Handover) -> None:
    """Be the server that was started, by its command and at its time."""
    master.started_at = message.started_at
    master.START_CTX = {"args": message.orig_argv, "cwd": message.cwd, 0: message.orig_argv[0]}


def _listener(master: WorkerKeeper, fd: int) -> Any:
    """
    Take up a socket that listens.

    Not by gunicorn's ``create_sockets``, which would also open the descriptors of ``bind = fd://N``, as a
    first start does; those are closed since.
    """
    with socket.fromfd(fd, socket.AF_UNIX, socket.SOCK_STREAM) as any_family:
        address = any_family.getsockname()
    return sock._sock_type(address)(address, master.cfg, master.log, fd=fd)


def take_pid_file(master: WorkerKeeper) -> None:
    """Own the pid file of the old image."""
    if master.cfg.pidfile is not None:
        master.pidfile = Pidfile(master.cfg.pidfile + (".2" if master.master_pid else ""))
        master.pidfile.pid = master.pid


def keep_fixed(cfg: Any, old: dict[str, Any]) -> None:
    """Keep the old values of what only a restart can change, and say so."""
    for name, value in old.items():
        if cfg.settings[name].get() != value:
            events.publish("reload.ignored", level="warning", option=name, because="needs a restart")
            cfg.settings[name].value = value


def _adopted(values: dict[str, Any]) -> Adopted:
    return Adopted(
        pid=values["pid"],
        age=values["age"],
        status=StatusPage(values["status_fd"]),
        tmp=os.fdopen(values["tmp_fd"], "wb", buffering=0),
        book=Book(**{name: values[name] for name in _BOOK if name in values}),
    )
