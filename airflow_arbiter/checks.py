"""
What options must not be, once all of them are known, and which of them are lowered to fit.

Owns what can only be told of a whole configuration: which options contradict each other, would break the
promises, or cannot be had on this machine. What a single value may be is in :mod:`airflow_arbiter.limits`.
"""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gunicorn.config import Config

from airflow_arbiter import ignored, limits, settings
from airflow_arbiter.errors import SettingsError
from airflow_arbiter.pool import Event

LONGEST_SOCKET_NAME = 107
"""Bytes, of a Unix socket's path on Linux."""


def check(cfg: Config) -> None:
    """
    Refuse what contradicts itself, breaks a promise or cannot be had, once all options are known.

    :raises SettingsError: with the option, its value, why, and what is allowed.
    """
    _check_promises(cfg)
    _check_address(cfg)
    _try("workers", cfg.workers, limits.WORKERS.allowed, limits.WORKERS)  # WEB_CONCURRENCY comes unseen
    for name, limit in limits.PLACES.items():
        _try(name, cfg.settings[name].get(), limit.allowed, limit)
    _check_tls(cfg)
    _try(
        "raw_env",
        cfg.settings["raw_env"].get(),
        "a list of NAME=VALUE",
        lambda _: _check_environment(cfg.env),
    )
    if 0 < cfg.worker_refresh_interval <= cfg.min_ready_seconds:
        raise SettingsError(
            limits.refusal(
                "min_ready_seconds",
                cfg.min_ready_seconds,
                "workers would be due before they count",
                f"less than worker_refresh_interval, which is {cfg.worker_refresh_interval}",
            )
        )


def _try(name: str, value: object, allowed: str, look: Callable[[Any], object]) -> None:
    try:
        look(value)
    except Exception as error:
        # Whatever gunicorn, the socket and the ssl module raise for what they cannot use.
        raise SettingsError(limits.refusal(name, value, error, allowed)) from error


def _check_promises(cfg: Config) -> None:
    # Imported late: the worker's module reads this one's siblings, and gunicorn names it by text.
    from airflow_arbiter.workers import AirflowUvicornWorker

    worker, ours = cfg.settings["worker_class"].get(), f"{settings.WORKER_CLASS} or a subclass"
    _try("worker_class", worker, ours, lambda _: cfg.worker_class)
    worker_class = cfg.worker_class
    if not (isinstance(worker_class, type) and issubclass(worker_class, AirflowUvicornWorker)):
        raise SettingsError(
            f"worker_class cannot be {worker!r}: only our worker proves itself before it "
            f"listens and drains without losing a request; allowed: {ours}"
        )
    logger = cfg.settings["logger_class"].get()
    _try("logger_class", logger, "a class, or its name", lambda _: _check_class(cfg.logger_class))
    if cfg.reuse_port:
        raise SettingsError(
            "reuse_port cannot be True: each worker would have a queue of its own, and the connections in "
            "it are lost when the worker leaves; allowed: False"
        )
    if cfg.reload:
        raise SettingsError(
            "reload cannot be True: gunicorn's reloader does not end a uvicorn worker, and lets one with a "
            "syntax error serve; allowed: False, and SIGHUP after a change"
        )
    if cfg.dirty_workers and cfg.dirty_apps:
        raise SettingsError("dirty_workers is not supported; allowed: 0")


def _check_class(value: object) -> None:
    if not isinstance(value, type):
        raise TypeError("not a class")


def _check_address(cfg: Config) -> None:
    bind, allowed = (
        cfg.settings["bind"].get(),
        f"HOST:PORT with a port from 0 to {limits.LAST_PORT}, unix:PATH, fd://N",
    )
    _try("bind", bind, allowed, lambda _: _check_addresses(cfg.address))


def _check_addresses(addresses: list[str | int | tuple[str, int]]) -> None:
    if not addresses:
        raise ValueError("it names no address")
    for address in addresses:
        match address:
            case host, port:
                if not 0 <= port <= limits.LAST_PORT:
                    raise ValueError(f"port {port}")
                str(host).encode("idna")
            case str():
                if len(os.fsencode(address)) > LONGEST_SOCKET_NAME:
                    raise ValueError(f"a path longer than {LONGEST_SOCKET_NAME} bytes")
                limits.NEW_FILE(address)


def _check_environment(variables: Mapping[str, str]) -> None:
    if "" in variables:
        raise ValueError("a variable without a name")


def _check_tls(cfg: Config) -> None:
    """Try what each worker is going to do with the certificate; uvicorn would end every one of them."""
    if not cfg.is_ssl:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _try(
        "certfile" if cfg.certfile else "keyfile",
        cfg.certfile or cfg.keyfile,
        "a certificate in PEM form, with its key there or in keyfile, without a pass phrase",
        lambda _: context.load_cert_chain(cfg.certfile or "", cfg.keyfile, password=lambda: ""),
    )
    if cfg.ca_certs:
        _try("ca_certs", cfg.ca_certs, "certificates in PEM form", context.load_verify_locations)
    if cfg.ciphers:
        _try("ciphers", cfg.ciphers, "a list of ciphers as OpenSSL has it", context.set_ciphers)
    if cfg.cert_reqs == ssl.CERT_REQUIRED and not cfg.ca_certs:
        raise SettingsError(
            limits.refusal("cert_reqs", cfg.cert_reqs, "no client could be verified", "2 only with ca_certs")
        )


# -- corrections
# -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """
    What is served with in place of what was asked for.

    :param values: settings that have been lowered, by name.
    :param events: what the operator should hear: what was lowered, and what has no effect.
    """

    values: Mapping[str, int | float]
    events: tuple[Event, ...]


def corrections(cfg: Config) -> Corrections:
    """
    Lower what does not fit, and tell of it and of what has no effect.

    The same for a start and a reload; changes nothing itself.

    :param cfg: options that :func:`check` has let pass.
    """
    ceilings: list[tuple[str, float, str]] = [
        ("worker_refresh_batch_size", cfg.workers, "more than workers"),
        ("health_check_timeout", cfg.worker_boot_timeout, "more than worker_boot_timeout"),
    ]
    if cfg.termination_grace_period:
        left_s = math.floor(cfg.termination_grace_period - limits.STOP_MARGIN_S)
        ceilings.append(
            (
                "graceful_timeout",
                left_s,
                f"termination_grace_period, less {limits.STOP_MARGIN_S} s for the server itself",
            )
        )
    lowered = [
        (name, cfg.settings[name].get(), ceiling, because)
        for name, ceiling, because in ceilings
        if cfg.settings[name].get() > ceiling
    ]
    return Corrections(
        values={name: ceiling for name, _, ceiling, _ in lowered},
        events=(
            *(
                _warning("settings.lowered", option=name, value=value, lowered_to=ceiling, because=because)
                for name, value, ceiling, because in lowered
            ),
            *(
                _warning("settings.ignored", option=name, because=because)
                for name, because in ignored.IGNORED.items()
                if name in cfg.settings and _is_changed(cfg, name)
            ),
        ),
    )


def _is_changed(cfg: Config, name: str) -> bool:
    setting = cfg.settings[name]
    return bool(setting.get() != type(setting)().get())


def _warning(name: str, **values: str | float) -> Event:
    return Event(name=name, level="warning", values=tuple(values.items()))
