"""
What options must not be, once all of them are known.

Owns what can only be told of a whole configuration: which options do not go together, or would break the
promises. What a single value may be is in :mod:`airflow_arbiter.limits`.
"""

from __future__ import annotations

from gunicorn.config import Config

from airflow_arbiter import settings
from airflow_arbiter.errors import SettingsError

LAST_PORT = 65535


def check(cfg: Config) -> None:
    """
    Refuse what would break the promises, once all options are known.

    :raises SettingsError: for a worker class that is not ours, ``reuse_port``, no workers, or a port that
        cannot be.
    """
    # Imported late: the worker's module reads this one's siblings, and gunicorn names it by text.
    from airflow_arbiter.workers import AirflowUvicornWorker

    try:
        worker_class = cfg.worker_class
    except RuntimeError as error:
        raise SettingsError(
            f"worker_class cannot be {cfg.worker_class_str!r}: {str(error).splitlines()[0]}"
        ) from error
    if not (isinstance(worker_class, type) and issubclass(worker_class, AirflowUvicornWorker)):
        raise SettingsError(
            f"worker_class cannot be {cfg.worker_class_str!r}: only our worker proves itself before it "
            f"listens and drains without losing a request; allowed: {settings.WORKER_CLASS} or a subclass"
        )
    if cfg.reuse_port:
        raise SettingsError(
            "reuse_port cannot be True: each worker would have a queue of its own, and the connections in "
            "it are lost when the worker leaves; allowed: False"
        )
    if not cfg.control_socket_disable:
        raise SettingsError(
            "control_socket_disable cannot be False: gunicorn's control server is a thread, and the master "
            "forks; allowed: True"
        )
    if cfg.dirty_workers and cfg.dirty_apps:
        raise SettingsError("dirty_workers is not supported; allowed: 0")
    if cfg.workers < 1:
        raise SettingsError(f"workers cannot be {cfg.workers}; allowed: a whole number, 1 or more")
    _check_ports(cfg)
    try:
        _ = cfg.env  # gunicorn looks at raw_env here
    except RuntimeError as error:
        raise SettingsError(f"raw_env: {error}; allowed: a list of NAME=VALUE") from error
    try:
        settings.policy(cfg)
    except (ValueError, OverflowError) as error:
        raise SettingsError(f"timeout and graceful_timeout must be numbers of seconds: {error}") from error


def _check_ports(cfg: Config) -> None:
    for address in cfg.address:
        if isinstance(address, tuple) and not 0 <= address[1] <= LAST_PORT:
            raise SettingsError(f"bind cannot have port {address[1]}; allowed: 0 to {LAST_PORT}")
