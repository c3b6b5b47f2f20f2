"""How a client finds a server and knows when a rollout is over."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
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


def test_a_host_that_was_renamed(folder: Path) -> None:
    """What answers under another name is told, and found by what the process holds."""
    path = folder / f"former-{os.getpid()}.sock"
    listener, _ = meeting.listen(path, backlog=8)
    with listener:
        with pytest.raises(NoServerError, match=f"under other hosts' names, .* there are {path}"):
            client.find()
        assert client.find(pid=os.getpid()) == path


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


def test_an_answer_in_drops(folder: Path) -> None:
    """The time is for all of an answer, however many pieces it comes in."""
    listener, _ = meeting.listen(folder / "a", backlog=1)
    listener.settimeout(10)
    is_over = threading.Event()

    def serve() -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            sock.send(b"\0\0\xff\xff")
            while not is_over.wait(0.05):
                sock.send(b"x")

    thread = threading.Thread(target=serve)
    thread.start()
    began_at = time.monotonic()
    try:
        with pytest.raises(LostError, match=r"has not answered within 0\.3 s"):
            client.ask(folder / "a", "status", timeout_s=0.3)
    finally:
        is_over.set()
        thread.join()
        listener.close()
    assert time.monotonic() - began_at < 5


def test_a_server_that_takes_its_time_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes too late, because new code is imported, is no end: it is asked again."""
    monkeypatch.setattr(client, "ANSWER_S", 0.05)
    answers = [None, None, as_json(), as_json(server={"uptime_s": 1.0})]
    with _Answering(folder / "a", answers):
        looks = client.follow(folder / "a", interval_s=0.01)
        assert next(looks)["server"]["pid"] == 100
        with pytest.raises(NoServerError, match="the server was started anew"):
            next(looks)


class _Answering(threading.Thread):
    """A server that gives these answers, one to a connection; to None it says nothing."""

    def __init__(self, path: Path, answers: list[dict[str, Any] | None]) -> None:
        super().__init__()
        self._listener, _ = meeting.listen(path, backlog=8)
        self._listener.settimeout(10)
        self._answers = answers

    def run(self) -> None:
        with self._listener, contextlib.ExitStack() as asked:
            for answer in self._answers:
                sock, _ = self._listener.accept()
                asked.enter_context(sock)
                sock.recv(1000)
                if answer is not None:
                    ControlProtocol.write_message(sock, {"status": "ok", "data": answer})

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.join()


IDLE = {"phase": "idle", "due": 0, "open": []}
DONE = {"completed": 5, "open": []}
FAILED = {"failure": "SyntaxError"}
WAITING = {"state": "waiting", "failure": "no memory", "retry_in_s": 60.0}


def gave_up(revision: int, because: str = "") -> dict[str, Any]:
    """A rollout whose last revisions that were given up are this one."""
    return {"open": [], "given_up": [{"revisions": [revision], "because": because}]}


@pytest.mark.parametrize(
    ("changes", "revision", "expected"),
    [
        pytest.param({}, 5, None, id="under-way"),
        pytest.param({"rollout": DONE}, 5, "", id="complete"),
        pytest.param({"rollout": {"completed": 6}}, 5, None, id="a-later-one-is-complete"),
        pytest.param({"rollout": DONE | {"stalled": True}}, 5, "", id="another-is-stalled"),
        pytest.param({"rollout": gave_up(5)}, 5, "it was given up", id="given-up"),
        pytest.param({"rollout": gave_up(5, "SyntaxError")}, 5, "SyntaxError", id="bad-code"),
        pytest.param(
            {"rollout": gave_up(5, "SyntaxError") | {"completed": 6, "revision": 6}},
            5,
            "SyntaxError",
            id="bad-code,-and-a-later-one-is-complete",
        ),
        pytest.param(
            {"rollout": gave_up(6, "SyntaxError") | {"open": [5], "revision": 6}, "reload": FAILED},
            5,
            None,
            id="somebody-else-has-bad-code",
        ),
        pytest.param(
            {"rollout": {"open": [], "given_up": []}},
            5,
            "it was given up, too long ago to tell why",
            id="forgotten",
        ),
        pytest.param(
            {"rollout": {"stalled": True, "because": "exit code 3"}}, 5, "exit code 3", id="stalled"
        ),
        pytest.param(
            {"rollout": {"phase": "paused", "stalled": True, "because": "exit code 3"}},
            5,
            "exit code 3",
            id="stalled-in-a-pause",
        ),
        pytest.param({"rollout": {"phase": "paused"}}, 5, None, id="paused"),
        pytest.param({"rollout": {"stalled": True}}, None, "newcomers fail", id="whatever-stalls"),
        pytest.param(
            {"rollout": {"stalled": True}, "reload": {"state": "checking"}}, 5, None, id="better-code-comes"
        ),
        pytest.param({"reload": WAITING | {"awaiting": [5]}}, 5, "no memory", id="a-reload-that-waits"),
        pytest.param({"reload": WAITING}, None, "no memory", id="any-reload-that-waits"),
        pytest.param({"reload": WAITING}, 5, None, id="the-reload-of-somebody-else-waits"),
        pytest.param(
            {"reload": WAITING | {"retry_in_s": None, "awaiting": [5]}}, 5, None, id="a-reload-asked-for-anew"
        ),
        pytest.param({"server": {"stopping": True}}, 5, "the server is stopping", id="stopping"),
        pytest.param(
            {"rollout": IDLE, "server": {"stopping": True}},
            None,
            "the server is stopping",
            id="idle-at-the-end",
        ),
        pytest.param({"rollout": {"phase": "idle"}}, 5, None, id="not-begun"),
        pytest.param({"rollout": {"revision": 4}}, 5, client.STARTED_ANEW, id="another-server-of-that-pid"),
        pytest.param({"rollout": IDLE}, None, "", id="whatever-is-over"),
        pytest.param({"rollout": IDLE, "reload": {"state": "checking"}}, None, None, id="reload-is-coming"),
        pytest.param({"rollout": IDLE, "pool": {"available": 1}}, None, None, id="some-are-missing"),
        pytest.param(
            {"rollout": IDLE | gave_up(5, "SyntaxError"), "reload": FAILED},
            None,
            "SyntaxError",
            id="the-last-one-has-failed",
        ),
        pytest.param({"rollout": IDLE | gave_up(5)}, None, "", id="the-last-one-was-given-up"),
        pytest.param({"rollout": IDLE | gave_up(4, "SyntaxError")}, None, "", id="the-last-one-was-well"),
        pytest.param({}, None, None, id="whatever-goes-on"),
    ],
)
def test_when_it_is_over(changes: dict[str, Any], revision: int | None, expected: str | None) -> None:
    """Complete, given up or held up, or neither yet."""
    assert client.verdict(as_json(**changes), revision) == expected
