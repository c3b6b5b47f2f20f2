"""
How a master takes in a new configuration with the code that it has.

Owns the way there and back: a configuration is code, may raise anything, and changes what cannot be had then.
"""

from __future__ import annotations

import logging.config
import os
from typing import Any, Protocol

from airflow_arbiter import events, logconfig, logfiles
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

    def load(self) -> None:
        """Load the app, where it is preloaded."""

    def keep_target(self, target: int) -> None:
        """Go on with a number of workers that was wanted before."""

    def call_hook(self, name: str, *arguments: Any) -> None:
        """Call an operator's hook."""


def reread(master: Master) -> str:
    """
    Read the configuration anew and open the next generation. Returns at once.

    A configuration with an error changes nothing. A number of workers that was set by SIGTTIN or SIGTTOU
    stays unless the configured one has changed: gunicorn falls back to that, and takes capacity away.

    :return: what is wrong with it, in words; empty where it was taken in.
    """
    old, scaled = master.cfg, master.num_workers
    reset_environment(old)
    try:
        master.app.reload()
        # Tried here: gunicorn prints what is wrong with it, or (before 27) never looks at it again.
        master.log.setup(master.app.cfg)
        master.setup(master.app)
        master.load()
    except (Exception, SystemExit) as error:
        master.app.restore(old)
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
