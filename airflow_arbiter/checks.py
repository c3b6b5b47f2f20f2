"""
What options must not be, once all of them are known.

Owns what can only be told of a whole configuration: which options contradict each other, would break the
promises, or cannot be had on this machine. What a single value may be is in :mod:`airflow_arbiter.limits`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from gunicorn.config import Config

from airflow_arbiter import limits, settings
from airflow_arbiter.errors import SettingsError

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
    if not cfg.control_socket_disable:
        raise SettingsError(
            "control_socket_disable cannot be False: gunicorn's control server is a thread, and the master "
            "forks; allowed: True"
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
