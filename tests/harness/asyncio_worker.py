"""Workers on asyncio's own event loop, with the protocol that is written in Python, or with a fault."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from airflow_arbiter import AirflowUvicornWorker


class PlainWorker(AirflowUvicornWorker):
    CONFIG_KWARGS = {"loop": "asyncio", "http": "h11"}  # noqa: RUF012  # uvicorn-worker's form


class PlainLoopWorker(AirflowUvicornWorker):
    CONFIG_KWARGS = {"loop": "asyncio", "http": "httptools"}  # noqa: RUF012


class SickProtocolWorker(AirflowUvicornWorker):
    CONFIG_KWARGS = {"http": "faulty:Protocol"}  # noqa: RUF012


class InterruptedWorker(AirflowUvicornWorker):
    """
    Gets the signal that the fault ``handlers`` names while it sets its handlers, after the defaults.

    That is the second time, which is gunicorn's: the first is in the shelter of the fork.
    """

    _times = 0

    @property
    def handle_usr1(self) -> Any:
        self._times += 1
        fault = Path(os.environ["FAULTS"]) / "handlers"
        if self._times == 2 and fault.exists() and (name := fault.read_text()):
            os.kill(os.getpid(), signal.Signals[name])
        return super().handle_usr1
