"""Which servers a client finds."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_arbiter import finding, meeting


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as a socket's path wants it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        yield Path(made)


def _leave_behind(path: Path) -> None:
    """Make a socket that nobody answers at any more."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_a_client_finds_the_living(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all places where a server of this host may have put its socket."""
    monkeypatch.setenv("AIRFLOW_HOME", str(folder / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.delenv("TMPDIR", raising=False)
    places = meeting.folders(is_airflow=True)[:2]
    (folder / "home").mkdir()
    listeners: list[socket.socket] = []
    for where in places:
        meeting.make_private(where)
        listeners.append(meeting.listen(where / meeting.name(17), backlog=1)[0])
        _leave_behind(where / meeting.name(9))
        listeners.append(meeting.listen(where / "elsewhere-7.sock", backlog=1)[0])
    try:
        found = [path for path in finding.living() if folder in path.parents]
        assert found == [where / meeting.name(17) for where in places]
        found = [path for path in finding.renamed() if folder in path.parents]
        assert found == [where / "elsewhere-7.sock" for where in places]
    finally:
        for listener in listeners:
            listener.close()


def test_what_a_process_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named like a master's, by a whole path: another folder may have a file of that name."""
    monkeypatch.chdir(folder)
    mine = f"host-{os.getpid()}.sock"
    with contextlib.ExitStack() as held:
        for name in (str(folder / mine), str(folder / "http.sock"), f"\0{mine}", f"relative-{mine}"):
            listener = held.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(name)
            listener.listen()
        assert finding.held_by(os.getpid()) == [folder / mine]
    assert finding.held_by(os.getpid()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask for others")
@pytest.mark.parametrize(
    ("name", "owner", "mode", "is_believed"),
    [
        pytest.param("arbiter", 54321, 0o700, True, id="private"),
        pytest.param("airflow-arbiter-54321", 54321, 0o700, True, id="whose-name-it-has"),
        pytest.param("airflow-arbiter-0", 54321, 0o700, False, id="in-the-place-of-another's"),
        pytest.param("arbiter", 54321, 0o710, False, id="open"),
    ],
)
def test_what_root_believes(folder: Path, name: str, owner: int, mode: int, is_believed: bool) -> None:
    """A folder that its user has alone, whoever that is, if it was not made in the place of another's."""
    made = folder / name
    made.mkdir()
    made.chmod(mode)
    os.chown(made, owner, owner)
    assert finding._is_trusted(made) == is_believed
    (folder / "link").symlink_to(made)
    assert not finding._is_trusted(folder / "link")
