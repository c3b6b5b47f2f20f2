"""A plugin of Airflow that tells what a request looks like from inside a worker."""

from __future__ import annotations

import sys

from airflow.plugins_manager import AirflowPlugin
from fastapi import FastAPI, Request

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


class ProbePlugin(AirflowPlugin):  # type: ignore[misc]
    name = "probe"
    fastapi_apps = [{"app": app, "url_prefix": "/probe", "name": "Probe"}]  # noqa: RUF012  # Airflow's form
