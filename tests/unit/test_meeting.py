"""Where a server and its clients meet."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_arbiter import meeting
from airflow_arbiter.meeting import SocketFile


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as a socket's path wants it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        yield Path(made)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def _leave_behind(path: Path) -> None:
    """Make a socket that nobody answers at any more."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_folders_of_airflow_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's folder, then the user's runtime directory, then one of the user's in the temporary one."""
    monkeypatch.setenv("AIRFLOW_HOME", "/opt/$NAME")
    monkeypatch.setenv("NAME", "airflow")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.setenv("TMPDIR", "/temporary")
    temporary = Path(f"/temporary/airflow-arbiter-{os.geteuid()}")
    others = (Path("/run/user/1/airflow-arbiter"), temporary)
    assert meeting.folders(is_airflow=True) == (Path("/opt/airflow/arbiter"), *others)
    assert meeting.folders(is_airflow=False) == others
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert meeting.folders(is_airflow=False) == (temporary,)


@pytest.mark.parametrize("home", ["~nosuchuser/airflow", ""])
def test_a_user_without_an_entry(folder: Path, home: str) -> None:
    """A container may run as any uid, and without HOME: a folder that cannot be told is no error."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    code = (
        "import os, pwd, sys; from airflow_arbiter import meeting; os.setuid(54321);"  # who may not import it
        "print(*meeting.folders(is_airflow=True), meeting.living(), sep='\\n')"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder), "AIRFLOW_HOME": home},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout.splitlines()
    assert told[-2:] == [f"{folder}/airflow-arbiter-54321", "[]"]


def test_a_working_directory_that_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is relative to it cannot be told, and is left out."""
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    monkeypatch.setenv("AIRFLOW_HOME", "home")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "runtime")
    monkeypatch.setenv("TMPDIR", "/temporary")
    assert meeting.folders(is_airflow=True) == (Path(f"/temporary/airflow-arbiter-{os.geteuid()}"),)


def test_the_name_tells_the_pid() -> None:
    """A client reads the master's pid from the name, and the host keeps containers apart."""
    assert meeting.name(4711).endswith("-4711.sock")
    assert meeting.pid_of(Path(meeting.name(4711))) == 4711
    assert meeting.pid_of(Path("gunicorn.ctl")) is None


def test_a_folder_is_made_private(folder: Path) -> None:
    """It is its user's alone, also where it was open to others."""
    private = folder / "private"
    umask = os.umask(0)
    try:
        meeting.make_private(private)
    finally:
        os.umask(umask)
    assert _mode(private) == 0o700
    private.chmod(0o755)
    meeting.make_private(private)
    assert _mode(private) == 0o700


def test_a_link_is_refused(folder: Path) -> None:
    """Whoever may write beside it could lead us anywhere."""
    (folder / "link").symlink_to(folder)
    with pytest.raises(NotADirectoryError, match="a link or a file"):
        meeting.make_private(folder / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(folder: Path) -> None:
    """Its owner could exchange the socket."""
    os.chown(folder, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to user 65534"):
        meeting.make_private(folder)


def test_the_socket_is_private_from_the_first_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mode is right before anybody could connect, and the umask is what it was."""
    seen = []
    begin = socket.socket.listen

    def look_and_listen(sock: socket.socket, backlog: int) -> None:
        seen.append(_mode(folder / "a.sock"))
        begin(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", look_and_listen)
    umask = os.umask(0)
    try:
        listener, file = meeting.listen(folder / "a.sock", backlog=1)
        assert os.umask(0) == 0
    finally:
        os.umask(umask)
    with listener:
        assert seen == [0o600]
        file.remove()
    assert list(folder.iterdir()) == []


def test_a_living_one_is_told_from_a_dead_one(folder: Path) -> None:
    """Who answers keeps the path, even when too many wait there; what was left behind makes room."""
    path = folder / "a.sock"
    _leave_behind(path)
    assert not meeting.is_living(path)
    listener, _ = meeting.listen(path, backlog=0)
    with listener, socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))  # the queue is full
        assert meeting.is_living(path)
        with pytest.raises(OSError, match="another server answers there"):
            meeting.listen(path, backlog=1)
    assert not meeting.is_living(path)
    again, _ = meeting.listen(path, backlog=1)
    again.close()


def test_a_file_is_no_socket(folder: Path) -> None:
    """A wrong path costs nobody a file."""
    path = folder / "airflow.cfg"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="no socket"):
        meeting.listen(path, backlog=1)
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long(folder: Path) -> None:
    """It is said, not cut."""
    with pytest.raises(OSError, match="longer than 107 bytes"):
        meeting.listen(folder / ("a" * 107), backlog=1)


def test_nobody_removes_anothers_file(folder: Path) -> None:
    """Where another server has taken the path, it stays; a name is not taken from it either."""
    path = folder / "a.sock"
    listener, file = meeting.listen(path, backlog=1)
    listener.close()
    other, theirs = meeting.listen(path, backlog=1)
    with other:
        file.remove()
        assert SocketFile.of(path) == theirs
        with pytest.raises(FileNotFoundError, match="not ours"):
            file.rename(folder / "b.sock")


def test_the_sweep_takes_the_dead_of_this_host(folder: Path) -> None:
    """The living stay, those about to live, those of other hosts, and whatever else is there."""
    living, dead, young = (folder / meeting.name(pid) for pid in (1, 2, 3))
    kept = [young, folder / "elsewhere-4.sock", folder / "notes"]
    for path in (dead, *kept[:2]):
        _leave_behind(path)
    kept[2].touch()
    for path in (dead, *kept[1:]):
        os.utime(path, (0, 0))
    listener, _ = meeting.listen(living, backlog=1)
    with listener:
        meeting.sweep(folder)
        assert sorted(folder.iterdir()) == sorted([living, *kept])


def test_a_client_finds_the_living(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all places where a server of this host may have put its socket."""
    monkeypatch.setenv("AIRFLOW_HOME", str(folder / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.delenv("TMPDIR", raising=False)
    places = meeting.folders(is_airflow=True)[:2]
    (folder / "home").mkdir()
    listeners: list[socket.socket] = []
    for place in places:
        meeting.make_private(place)
        listeners.append(meeting.listen(place / meeting.name(17), backlog=1)[0])
        _leave_behind(place / meeting.name(9))
        listeners.append(meeting.listen(place / "elsewhere-7.sock", backlog=1)[0])
    try:
        found = [path for path in meeting.living() if folder in path.parents]
        assert found == [place / meeting.name(17) for place in places]
    finally:
        for listener in listeners:
            listener.close()
