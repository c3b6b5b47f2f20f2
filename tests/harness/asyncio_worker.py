"""Workers on asyncio's own event loop, with the protocol that is written in Python, or with a sick one."""

from __future__ import annotations

from airflow_arbiter import AirflowUvicornWorker


class PlainWorker(AirflowUvicornWorker):
    CONFIG_KWARGS = {"loop": "asyncio", "http": "h11"}  # noqa: RUF012  # uvicorn-worker's form


class PlainLoopWorker(AirflowUvicornWorker):
    CONFIG_KWARGS = {"loop": "asyncio", "http": "httptools"}  # noqa: RUF012


class SickProtocolWorker(AirflowUvicornWorker):
    CONFIG_KWARGS = {"http": "faulty:Protocol"}  # noqa: RUF012
