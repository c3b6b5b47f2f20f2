"""
Serve the tiny app from Airflow's own gunicorn mode: its application, its arbiter, its worker, its options.

Only the app differs, so that the boot of Airflow's API is not part of the figures. Reads ``[api]
worker_refresh_interval`` from the environment, as Airflow does.
"""

from __future__ import annotations

import argparse

from airflow.api_fastapi.gunicorn_app import create_gunicorn_app
from tiny import app

WORKER_TIMEOUT_S = 120
"""Airflow's default for ``[api] worker_timeout``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    server = create_gunicorn_app(
        host="127.0.0.1",
        port=options.port,
        num_workers=options.workers,
        worker_timeout=WORKER_TIMEOUT_S,
    )
    server.application = app  # what its load() returns, instead of importing Airflow's API
    server.run()


if __name__ == "__main__":
    main()
