"""Where a server and its clients meet."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_arbiter import meeting, place
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
        "import os, pwd, sys; from airflow_arbiter import finding, meeting;"
        "os.setuid(54321);"  # who may not import it
        "print(*meeting.folders(is_airflow=True), finding.living(), sep='\\n')"
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
    """The living stay, those about to live, and whatever else is there; other hosts' only for some days."""
    living, dead, young = (folder / meeting.name(pid) for pid in (1, 2, 3))
    forgotten, elsewhere = folder / "elsewhere-4.sock", folder / "elsewhere-5.sock"
    kept = [young, elsewhere, folder / "notes", folder / "named.sock"]
    for path in (dead, young, forgotten, elsewhere, folder / "named.sock"):
        _leave_behind(path)
    (folder / "notes").touch()
    for path in (dead, forgotten, *kept[2:]):
        os.utime(path, (0, 0))
    six_days_ago = time.time() - 6 * 86_400
    os.utime(elsewhere, (six_days_ago, six_days_ago))
    listener, _ = meeting.listen(living, backlog=1)
    with listener:
        os.utime(living, (0, 0))
        place.sweep(folder)
        assert sorted(folder.iterdir()) == sorted([living, *kept])


def test_the_sweep_has_an_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of other names cost no look at them, and however many sockets there are, the start goes on."""
    looked_at = []
    look = Path.is_socket

    def note_and_look(path: Path) -> bool:
        looked_at.append(path)
        return look(path)

    monkeypatch.setattr(Path, "is_socket", note_and_look)
    monkeypatch.setattr(place, "_MOST_SOCKETS", 3)
    for number in range(5):
        (folder / f"notes-{number}").touch()
        _leave_behind(folder / meeting.name(number))
        os.utime(folder / meeting.name(number), (0, 0))
    place.sweep(folder)
    assert len(looked_at) == 3
    assert len(list(folder.iterdir())) == 7


def test_a_file_is_refreshed(folder: Path) -> None:
    """Once a day, so that whoever cleans up leaves it alone; it stays ours."""
    listener, file = meeting.listen(folder / "a.sock", backlog=1)
    with listener:
        assert file.refresh() == file
        os.utime(file.path, (0, 0))
        old = SocketFile.of(Path(file.path))
        new = old.refresh()
        assert new != old
        assert time.time() - Path(file.path).lstat().st_mtime < 60
        new.remove()
        with pytest.raises(FileNotFoundError):
            new.refresh()


def test_another_name_is_free(folder: Path) -> None:
    """A dead server's socket makes room; neither a living one does, nor what is no socket."""
    listener, file = meeting.listen(folder / "a.sock", backlog=1)
    other, _ = meeting.listen(folder / "other.sock", backlog=1)
    (folder / "airflow.cfg").write_text("precious")
    _leave_behind(folder / "dead.sock")
    with listener, other:
        with pytest.raises(OSError, match="another server answers there"):
            file.rename(folder / "other.sock")
        with pytest.raises(FileExistsError, match="no socket"):
            file.rename(folder / "airflow.cfg")
        assert (folder / "airflow.cfg").read_text() == "precious"
        file.rename(folder / "dead.sock")
        assert meeting.is_living(folder / "dead.sock")
