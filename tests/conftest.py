"""Fixtures for tests of real servers: each gets a port and a name of its own and leaves nothing behind."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from harness.codeapp import CodeApp
from harness.server import Server
from harness.starting import BIND, Servers, SetFault, Start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests by their folder."""
    for item in items:
        folder = item.path.parent.name
        if folder != "unit":
            item.add_marker(folder)


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """The folder in which the app looks for its faults."""
    folder = tmp_path / "faults"
    folder.mkdir()
    return folder


@pytest.fixture
def set_fault(faults: Path) -> SetFault:
    """Switch faults of the app on and off."""

    def switch(where: str, what: str) -> None:
        # Renamed into place: a process that looks sees the old text or the new one.
        (faults.parent / "fault").write_text(what)
        (faults.parent / "fault").rename(faults / where)

    return switch


@pytest.fixture
def start(request: pytest.FixtureRequest, xprocess: Any, faults: Path) -> Iterator[Start]:
    """Start servers for a test; they are stopped after it."""
    servers = Servers(xprocess, owner=request.node.name, env={"FAULTS": str(faults)})
    yield servers.start
    servers.stop()


@pytest.fixture
def serve(start: Start) -> Start:
    """Start a server of the faulty app and wait until all its workers are ready."""

    def start_and_wait(
        *arguments: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        workers: int | None = 4,
        listen: str = BIND,
    ) -> Server:
        server = start(*arguments, command=command, env=env, workers=workers, listen=listen)
        server.wait_ready(workers or 1)
        return server

    return start_and_wait


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[list[str], ssl.SSLContext]:
    """Options for a server with a throw-away certificate, and a client that trusts it."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    issued.private_key_pem.write_to_path(str(key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return [f"--certfile={chain}", f"--keyfile={key}"], context


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name, as a socket's path wants it."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="place") as folder:
        yield Path(folder)


@pytest.fixture
def code(tmp_path: Path) -> CodeApp:
    """An app whose code a test changes while it is served."""
    return CodeApp(tmp_path / "code")
