"""
The Airflow API server as the app that is served.

Owns what is to be done around its loading, its forks and its event loops. Imports Airflow, as
:mod:`airflow_arbiter.provider` does, which knows its options.

Source: ``airflow.cli.commands.api_server_command``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.configuration import SECRET_KEY, conf
from gunicorn import util

from airflow_arbiter import metadata_database, provider
from airflow_arbiter.served import Served

APP_URI = "airflow.api_fastapi.main:app"


class ApiServer(Served):
    """The API server, with the apps that ``AIRFLOW_API_APPS`` names."""

    is_airflow = True
    logs_requests = True

    def __init__(self) -> None:
        super().__init__(APP_URI)

    @property
    def name(self) -> str:
        return "airflow-api-server"

    def load(self) -> Any:
        """
        Load it with what Airflow's command prepares.

        In the master, where it is preloaded, so that all workers share the key that signs their tokens even
        where none is configured.
        """
        from airflow.api_fastapi.auth.tokens import get_signing_args
        from airflow.utils.providers_configuration_loader import providers_configuration_loaded

        os.environ.setdefault("AIRFLOW_API_APPS", "all")
        get_signing_args()
        return providers_configuration_loaded(util.import_app)(APP_URI)

    def keep(self) -> dict[str, Any]:
        """
        Tell the secrets that Airflow makes up for a process where none is configured.

        All workers have those of the master: the keys that sign tokens of users, and tokens of files in URLs.
        """
        secrets = {
            "jwt_secret": conf.get("api_auth", "jwt_secret", fallback="") or "",
            "secret_key": conf.get("api", "secret_key", fallback="") or "",
        }
        return {"secrets": secrets}

    def take_up(self, kept: dict[str, Any]) -> None:
        """
        Go on with the secrets of an earlier image of this process, where none is configured.

        Otherwise its users would be logged out, and workers of two generations would refuse each other's
        tokens.
        """
        secrets = kept.get("secrets", {})
        if secrets.get("jwt_secret") and not conf.get("api_auth", "jwt_secret", fallback=""):
            conf.set("api_auth", "jwt_secret", secrets["jwt_secret"])
        # Its default is made up when Airflow is imported.
        if secrets.get("secret_key") and conf.get("api", "secret_key", fallback="") in ("", SECRET_KEY):
            conf.set("api", "secret_key", secrets["secret_key"])

    def troubles(self) -> dict[str, str]:
        """Tell which plugins could not be loaded, and why; Airflow serves without them."""
        from airflow import plugins_manager

        errors = plugins_manager.get_import_errors()
        return {f"plugin {name}": error for name, error in sorted(errors.items())}

    def plugin_folders(self) -> list[Path]:
        return [provider.plugins_folder()]

    def exporters(self) -> dict[str, str]:
        return {
            package: f"Airflow starts it for [{section}] otel_on, which fork_safety = strict excludes"
            for section, package in (
                ("metrics", "opentelemetry.sdk.metrics"),
                ("traces", "opentelemetry.sdk"),
            )
            if conf.getboolean(section, "otel_on", fallback=False)
        }

    def metrics(self) -> Any:
        return provider.metrics()

    def prepare_fork(self) -> None:
        metadata_database.release_connections()

    def enter_worker(self) -> None:
        metadata_database.forget_inherited()

    async def enter_loop(self) -> None:
        await metadata_database.connect()

    async def connect_worker(self) -> None:
        await metadata_database.connect()
        await metadata_database.connect_in_thread()

    async def leave_loop(self) -> None:
        await metadata_database.dispose_async_orm()

    def leave_worker(self) -> None:
        metadata_database.dispose_orm()
