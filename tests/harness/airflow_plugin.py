"""A plugin of Airflow that tells what a request looks like from inside a worker, and uses its database."""

from __future__ import annotations

import sys

from airflow import settings
from airflow.plugins_manager import AirflowPlugin
from fastapi import FastAPI, Request
from sqlalchemy import text

app = FastAPI()


@app.get("/hello")
def hello() -> str:
    return "hello from a plugin"


@app.get("/client")
def client(request: Request) -> dict[str, str]:
    assert request.client is not None
    return {"host": request.client.host, "scheme": request.url.scheme}


@app.get("/modules")
def modules() -> list[str]:
    return sorted(sys.modules)


@app.get("/database")
async def database() -> int:
    """Ask the database on a connection that belongs to the worker's event loop."""
    async with settings.async_engine.connect() as connection:
        answer: int = (await connection.execute(text("SELECT 1"))).scalar_one()
        return answer


class ProbePlugin(AirflowPlugin):  # type: ignore[misc]
    name = "probe"
    fastapi_apps = [{"app": app, "url_prefix": "/probe", "name": "Probe"}]  # noqa: RUF012  # Airflow's form
