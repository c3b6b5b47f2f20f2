"""How a client finds a server and knows when a rollout is over."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.ctl.protocol import ControlProtocol
from harness.reports import as_json

from airflow_arbiter import client, meeting
from airflow_arbiter.client import LostError, NoServerError
from airflow_arbiter.errors import CommandError


@pytest.fixture
def folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where a client looks and finds something."""
    monkeypatch.setenv("AIRFLOW_HOME", str(place / "home"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(place))
    (found,) = [known for known in meeting.folders(is_airflow=False) if place in known.parents]
    meeting.make_private(found)
    return found


@pytest.fixture
def listen(folder: Path) -> Iterator[Any]:
    """Make sockets that answer to a connection, and to nothing else."""
    listeners = []

    def make(pid: int) -> Path:
        path = folder / meeting.name(pid)
        listeners.append(meeting.listen(path, backlog=8)[0])
        return path

    yield make
    for listener in listeners:
        listener.close()


def test_the_only_one_is_meant(listen: Any) -> None:
    """There is no need to say which."""
    path = listen(17)
    assert client.find() == path
    assert client.find(pid=17) == path


def test_one_of_several(listen: Any) -> None:
    """It must be said which, and how."""
    listen(17)
    path = listen(18)
    with pytest.raises(
        NoServerError, match="several servers answer, with the pids 17, 18: choose with --pid"
    ):
        client.find()
    assert client.find(pid=18) == path
    assert client.find(path="/somewhere") == Path("/somewhere")


def test_none(folder: Path) -> None:
    """It is said where it was looked for."""
    with pytest.raises(NoServerError, match=f"no server answers in .*{folder}"):
        client.find()
    with pytest.raises(NoServerError, match="no server of pid 5 answers"):
        client.find(pid=5)
    with pytest.raises(NoServerError, match="No such file"):
        client.ask(folder / "none", "status")
    (folder / "file").touch()
    with pytest.raises(NoServerError, match="refused"):
        client.ask(folder / "file", "status")


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (b"", LostError, "has not answered"),
        (b"\0\0\0\xffcut", LostError, "has not answered"),
        (ControlProtocol.encode_message({"status": "error", "error": "no"}), CommandError, "no"),
        (b"\0\0\0\2[]", CommandError, r"\[\]"),
    ],
)
def test_answers_that_are_none(folder: Path, answer: bytes, kind: type[Exception], message: str) -> None:
    """A refusal is told from a connection that was lost."""
    listener, _ = meeting.listen(folder / "a", backlog=1)
    listener.settimeout(10)

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1000)
            sock.send(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with pytest.raises(kind, match=message):
            client.ask(folder / "a", "status")
    finally:
        thread.join()
        listener.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("server", "asks", "is_believed"),
    [(54321, 65534, False), (54321, 0, True), (0, 65534, True), (65534, 65534, True)],
)
def test_a_server_of_somebody_else_is_not_believed(
    place: Path, server: int, asks: int, is_believed: bool
) -> None:
    """It could tell anything; root's is believed, and root may ask everybody."""
    place.chmod(0o777)
    path = place / "a"
    told, tell = os.pipe()
    listening = _as_user(server, lambda: _listen(path, tell))
    os.read(told, 1)
    asking = _as_user(asks, lambda: _believe(path, tell))
    os.waitpid(asking, 0)
    answer = os.read(told, 1)
    os.kill(listening, signal.SIGKILL)
    os.waitpid(listening, 0)
    os.close(told)
    os.close(tell)
    assert answer == (b"y" if is_believed else b"n")


def _as_user(uid: int, act: Callable[[], None]) -> int:
    """Act in a child process of this user; its pid."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setuid(uid)
            act()
        os._exit(0)
    return child


def _listen(path: Path, tell: int) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o666)
        os.write(tell, b".")
        signal.pause()


def _believe(path: Path, tell: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        try:
            client._check(sock, path)
        except NoServerError:
            os.write(tell, b"n")
        else:
            os.write(tell, b"y")


@pytest.mark.parametrize("backlog", [0, 8])
@pytest.mark.parametrize("timeout_s", [1e-9, 0.05, 0.9999999])
def test_a_server_that_is_busy(folder: Path, backlog: int, timeout_s: float) -> None:
    """It is waited for, with a connection or without one, and not for ever."""
    listener, _ = meeting.listen(folder / "a", backlog=backlog)
    with listener, socket.socket(socket.AF_UNIX) as first:
        first.connect(str(folder / "a"))  # with no backlog, nobody else gets in
        with pytest.raises(LostError, match="has not answered"):
            client.report(folder / "a", timeout_s=timeout_s)
        assert list(client.follow(folder / "a", limit_s=0.05)) == []


IDLE = {"phase": "idle", "due": 0}


@pytest.mark.parametrize(
    ("changes", "revision", "expected"),
    [
        pytest.param({}, 5, None, id="under-way"),
        pytest.param({"rollout": {"completed": 5}}, 5, "", id="complete"),
        pytest.param({"rollout": {"completed": 6}}, 5, "", id="a-later-one-is-complete"),
        pytest.param({"rollout": {"completed": 5, "phase": "stalled"}}, 5, "", id="another-is-stalled"),
        pytest.param({"rollout": {"aborted": 5}}, 5, "it was given up", id="given-up"),
        pytest.param(
            {"rollout": {"aborted": 5}, "reload": {"failure": "SyntaxError"}}, 5, "SyntaxError", id="bad-code"
        ),
        pytest.param(
            {"rollout": {"phase": "stalled", "because": "exit code 3"}}, 5, "exit code 3", id="stalled"
        ),
        pytest.param({"rollout": {"phase": "stalled"}}, None, "newcomers fail", id="whatever-stalls"),
        pytest.param(
            {"rollout": {"phase": "stalled"}, "reload": {"state": "checking"}},
            5,
            None,
            id="better-code-comes",
        ),
        pytest.param({"server": {"stopping": True}}, 5, "the server is stopping", id="stopping"),
        pytest.param(
            {"rollout": IDLE, "server": {"stopping": True}},
            None,
            "the server is stopping",
            id="idle-at-the-end",
        ),
        pytest.param({"rollout": IDLE}, 5, None, id="not-begun"),
        pytest.param({"rollout": IDLE}, None, "", id="whatever-is-over"),
        pytest.param({"rollout": IDLE, "reload": {"state": "checking"}}, None, None, id="reload-is-coming"),
        pytest.param({}, None, None, id="whatever-goes-on"),
    ],
)
def test_when_it_is_over(changes: dict[str, Any], revision: int | None, expected: str | None) -> None:
    """Complete, given up or held up, or neither yet."""
    assert client.verdict(as_json(**changes), revision) == expected
