"""
How a master takes in a new configuration with the code that it has.

Owns the way there and back: a configuration is code, may raise anything, and changes what cannot be had then.
"""

from __future__ import annotations

import contextlib
import json
import logging.config
import os
from typing import Any, Protocol

from airflow_arbiter import events, logconfig, logfiles
from airflow_arbiter.alarm import LateError, alarm
from airflow_arbiter.errors import ArbiterError
from airflow_arbiter.monitors import Monitors
from airflow_arbiter.succession import FIXED_SETTINGS, keep_fixed


class Master(Protocol):
    """
    What of a master takes part.

    :ivar num_workers: the target.
    """

    app: Any
    cfg: Any
    log: Any
    monitors: Monitors
    reloader: Any
    generation: int
    num_workers: int

    def setup(self, app: Any) -> None:
        """Take in the configuration that the app has."""

    def keep_target(self, target: int) -> None:
        """Go on with a number of workers that was wanted before."""

    def call_hook(self, name: str, *arguments: Any) -> None:
        """Call an operator's hook."""


def rehearse(app: Any, fd: int) -> None:
    """
    Read the configuration anew, and tell whether it wants the app preloaded. Runs in an errand of the master,
    which can be ended: a configuration may hang, and may end its process.

    What it raises is not told: :func:`reread` meets it as well, and says it better.

    :param fd: where to tell.
    """
    reset_environment(app.cfg)
    wants_preload = False
    with contextlib.suppress(Exception, SystemExit):
        app.reload()
        wants_preload = app.cfg.preload_app
    os.write(fd, json.dumps({"preload": wants_preload}).encode() + b"\n")


def reread(master: Master) -> str:
    """
    Read the configuration anew and open the next generation. Returns at once; where the configuration hangs,
    which it did not when it was rehearsed, after ``worker_boot_timeout``.

    A configuration with an error changes nothing. A number of workers that was set by SIGTTIN or SIGTTOU
    stays unless the configured one has changed: gunicorn falls back to that, and takes capacity away.

    The app is not loaded here, though the configuration may newly ask for preload: its import may hang as
    well, and of one that fails half would stay in this process.

    :return: what is wrong with it, in words; empty where it was taken in.
    """
    old, served, scaled = master.cfg, master.app.served, master.num_workers
    reset_environment(old)
    try:
        with alarm(old.worker_boot_timeout):
            master.app.reload()
        if not old.preload_app:
            keep_fixed(master.app.cfg, {"preload_app": False})
        # Tried here: gunicorn prints what is wrong with it, or (before 27) never looks at it again.
        master.log.setup(master.app.cfg)
        master.setup(master.app)
    except (Exception, SystemExit, LateError) as error:
        master.app.restore(old, served)
        _restore_log(master.log, old)
        master.setup(master.app)  # back to what it makes of the old one
        master.keep_target(scaled)
        if isinstance(error, ArbiterError):
            events.publish("reload.refused", level="error", error=str(error))
        else:
            events.publish_exception("reload.refused")
        return str(error) or type(error).__name__
    master.reloader.begin_watch()
    keep_fixed(master.cfg, {name: old.settings[name].get() for name in FIXED_SETTINGS})
    if scaled and master.cfg.workers == old.workers:
        master.num_workers = scaled
    master.generation += 1
    logfiles.reopen()
    master.monitors.reopen()
    master.call_hook("on_reload", master)
    return ""


def reset_environment(cfg: Any) -> None:
    """Take back what a configuration's ``raw_env`` had set."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)


def _restore_log(log: Any, cfg: Any) -> None:
    """Bring the log of a configuration back, or one on standard error where even that fails."""
    try:
        log.setup(cfg)
    except Exception:
        logging.config.dictConfig(logconfig.build(level=cfg.loglevel, log_format="json"))
        events.publish_exception("log.restore_failed")
