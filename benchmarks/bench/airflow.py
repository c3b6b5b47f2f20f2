"""
The real Airflow API server, started by ``airflow api-server`` in each of its modes.

Each server has an ``AIRFLOW_HOME`` of its own: a copy of one that was migrated once, with SQLite and the
simple auth manager.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.contestants import LABELS
from bench.load import kind_of
from bench.memory import cpu_s
from bench.server import BOOT_LIMIT_S, Server

FIRST = "/api/v2/version"
"""What is asked for the first answer: it needs no database."""

ENDPOINTS = (
    "/api/v2/monitor/health",
    "/api/v2/version",
    "/ui/config",
    "/ui/auth/menus",
    "/api/v2/dags?limit=10",
)
"""What a browser asks for, and a load balancer."""

SCHEMA = ("/openapi.json",)
WARM = ("/api/v2/monitor/health", "/api/v2/version", "/ui/config", *SCHEMA)
"""What ours asks for in the master, by its default."""

SCHEMA_ENDPOINTS = tuple("/openapi.json" if path == "/ui/auth/menus" else path for path in ENDPOINTS)
"""With the OpenAPI schema among them, built at its first request and larger than all the others."""

CLIENTS = 8
ASK_TIMEOUT_S = 60.0
POLL_S = 0.02

USER = {"username": "admin", "password": "admin"}
KSM = Path("/sys/kernel/mm/ksm/run")
_PASSWORDS = "simple_auth_manager_passwords.json.generated"


class AirflowServer(Server):
    """
    One mode of the API server.

    :ivar first_answer_s: from its start to the first answer, in seconds.
    :ivar first_answer_cpu_s: processor time of all its processes up to then.
    :ivar full_set_s: from its start to the time when all workers serve.
    """

    needs = "airflow"
    settings: tuple[tuple[str, str], ...] = ()
    """Options of the section ``[api]``."""

    settle_s = 1.0
    """How long it gets to become quiet after requests."""

    def command(self) -> list[str]:
        return ["-m", "airflow", "api-server"]

    def prepare(self, home: Path) -> None:
        super().prepare(home)
        migrated = _migrated_home()
        own = home / "airflow"
        shutil.copytree(migrated, own)
        config = own / "airflow.cfg"
        config.write_text(config.read_text().replace(str(migrated), str(own)))

    def environment(self) -> dict[str, str]:
        place = (("host", "127.0.0.1"), ("port", str(self.port)), ("workers", str(self.workers)))
        return {
            **super().environment(),
            **_AIRFLOW,
            **{f"AIRFLOW__API__{name.upper()}": value for name, value in (*place, *self.settings)},
        }

    def wait_until_up(self) -> None:
        deadline = self.began_at + BOOT_LIMIT_S
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer within {BOOT_LIMIT_S:g} s")
            time.sleep(POLL_S)
        self.first_answer_s = time.monotonic() - self.began_at
        self.first_answer_cpu_s = cpu_s(self.pid)
        super().wait_until_up()
        self.full_set_s = time.monotonic() - self.began_at

    def token(self) -> str:
        """Log in."""
        found = self._ask("POST", "/auth/token", body=json.dumps(USER))[1]
        access_token: str = json.loads(found)["access_token"]
        return access_token

    def ask(self, requests: int, endpoints: Sequence[str] = ENDPOINTS) -> Counter[str]:
        """
        Ask for all endpoints in turn, from some clients at once, on new connections.

        :return: how often which status came.
        """
        token = self.token()
        statuses: Counter[str] = Counter()

        def client(number: int) -> None:
            for turn in range(requests // CLIENTS):
                path = endpoints[(turn + number) % len(endpoints)]
                try:
                    statuses[str(self._ask("GET", path, token=token)[0])] += 1
                except (OSError, http.client.HTTPException) as error:
                    statuses[kind_of(error)] += 1

        clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        return statuses

    def _answers(self) -> bool:
        try:
            return self._ask("GET", FIRST)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _ask(self, method: str, path: str, *, body: str | None = None, token: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_TIMEOUT_S)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class OursOnAirflow(AirflowServer):
    """Rolls by age, as Airflow's own arbiter knows nothing else: the command would bring in new code too."""

    name = "ours"
    label = LABELS[name]
    begins_by_age = True
    settings: tuple[tuple[str, str], ...] = (
        ("server_type", "gunicorn"),
        ("gunicorn_arbiter", "airflow_arbiter"),
    )


class OursMerging(OursOnAirflow):
    """With the kernel's KSM, on a machine where it runs: it takes its time."""

    name = "ours-merging"
    label = LABELS[name]
    settings = (*OursOnAirflow.settings, ("memory_merge", "True"))
    settle_s = 40.0

    @classmethod
    def is_installed(cls) -> bool:
        with contextlib.suppress(OSError):
            return super().is_installed() and KSM.read_text().strip() == "1"
        return False


class OursWithoutSchema(OursOnAirflow):
    """Warmed up with all but the OpenAPI schema: what that costs at the start, and saves later."""

    name = "ours-no-schema"
    label = LABELS[name]

    def environment(self) -> dict[str, str]:
        paths = (path for path in WARM if path not in SCHEMA)
        return {
            **super().environment(),
            "GUNICORN_CMD_ARGS": " ".join(f"--warmup-path={path}" for path in paths),
        }


class AirflowGunicornMode(AirflowServer):
    name = "airflow"
    label = LABELS[name]
    begins_by_age = True
    settings = (("server_type", "gunicorn"), ("gunicorn_arbiter", "airflow"))


class AirflowUvicornMode(AirflowServer):
    name = "uvicorn"
    label = LABELS[name]
    alone_with_one = True
    settings = (("server_type", "uvicorn"),)


MODES: tuple[type[AirflowServer], ...] = (OursOnAirflow, AirflowGunicornMode, AirflowUvicornMode)

_AIRFLOW = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__API_AUTH__JWT_SECRET": "benchmark" * 8,
}


@functools.cache
def _migrated_home() -> Path:
    """An ``AIRFLOW_HOME`` with a database and a user, made once and removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="bench-airflow-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env={**inherited, **_AIRFLOW, "AIRFLOW_HOME": folder},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    home = Path(folder)
    (home / _PASSWORDS).write_text(json.dumps({USER["username"]: USER["password"]}))
    return home
