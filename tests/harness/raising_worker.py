"""A worker some of whose connections cannot be closed."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airflow_arbiter import AirflowUvicornWorker


class RaisingProtocol(HttpToolsProtocol):
    def shutdown(self) -> None:
        if self.scope["path"] == "/broken":
            raise RuntimeError("the protocol is broken")
        super().shutdown()


class RaisingWorker(AirflowUvicornWorker):
    CONFIG_KWARGS = {"http": RaisingProtocol}  # noqa: RUF012  # uvicorn-worker's form
