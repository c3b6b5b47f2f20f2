"""The control socket's connections: framing, limits, deadlines, and who may come in."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from gunicorn.ctl.protocol import ControlProtocol, make_request, make_response
from hypothesis import HealthCheck, given, settings, strategies

from airflow_arbiter import connection, control, meeting
from airflow_arbiter.control import Control
from airflow_arbiter.meeting import Peer
from airflow_arbiter.wakeup import Wakeup


class Server:
    """A control socket in a loop that turns when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "a.sock"
        self.asked: list[str] = []
        self.text = "yes"
        self.wakeup = Wakeup()
        self.clients: list[Client] = []
        self.control = Control(self._answer)
        self.control.attach(self.wakeup)
        self.control.open(str(self.path), is_airflow=False, is_second=False)

    def _answer(self, request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        self.asked.append(request["command"])
        if request["command"] == "break":
            raise RuntimeError("a bug of ours")
        assert peer == Peer(pid=os.getpid(), uid=os.geteuid())
        answer: Mapping[str, Any] = make_response(request["id"], {"text": self.text})
        return answer

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.control.turn()

    def connect(self) -> Client:
        client = self.begin_to_connect()
        self.turn()
        return client

    def begin_to_connect(self) -> Client:
        self.clients.append(Client(self.path))
        return self.clients[-1]

    @property
    def connections(self) -> int:
        return len(self.control._connections)


class Client:
    """One connection, which never waits."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(0)
        self.sock.connect(str(path))

    def ask(self, command: str = "status") -> None:
        self.sock.send(ControlProtocol.encode_message(make_request(1, command)))

    def answers(self) -> list[dict[str, Any]]:
        """All whole answers that are there."""
        data, found = b"", []
        try:
            while block := self.sock.recv(1 << 16):
                data += block
        except BlockingIOError:
            pass
        while data:
            (length,) = struct.unpack_from(">I", data)
            found.append(json.loads(data[4 : 4 + length]))
            data = data[4 + length :]
        return found

    def is_closed(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        made = Server(Path(folder))
        yield made
        made.control.close()
        for client in made.clients:
            client.sock.close()
        assert not made.path.exists()


def test_a_request_is_answered(server: Server) -> None:
    """One after the other, on one connection."""
    client = server.connect()
    for number in range(3):
        client.ask(f"show {number}")
        server.turn()
        assert client.answers() == [{"id": 1, "status": "ok", "data": {"text": "yes"}}]
    assert server.asked == ["show 0", "show 1", "show 2"]


def test_a_request_in_pieces(server: Server) -> None:
    """However slowly it comes, it is answered once it is whole, and nobody waits for it meanwhile."""
    slow, quick = server.connect(), server.connect()
    for byte in ControlProtocol.encode_message(make_request(1, "slow")):
        assert slow.answers() == []
        slow.sock.send(bytes([byte]))
        server.turn()
    assert len(slow.answers()) == 1
    quick.ask()
    server.turn()
    assert len(quick.answers()) == 1


def test_requests_ahead_wait_their_turn(server: Server) -> None:
    """Who sends many at once gets one answer a turn, and another client as many."""
    greedy, modest = server.connect(), server.connect()
    for _ in range(20):
        greedy.ask("greedy")
    modest.ask("modest")
    server.turn(3)
    assert (server.asked.count("greedy"), server.asked.count("modest")) == (3, 1)
    assert len(modest.answers()) == 1
    server.turn(17)
    assert len(greedy.answers()) == 20


def test_a_half_closed_connection_gets_its_answer(server: Server) -> None:
    """As with a pipe into netcat."""
    client = server.connect()
    client.ask()
    client.sock.shutdown(socket.SHUT_WR)
    server.turn(2)
    assert len(client.answers()) == 1
    assert client.is_closed()
    assert server.connections == 0


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "longer than 4096 bytes", id="http"),
        pytest.param(struct.pack(">I", 4097), "longer than 4096 bytes", id="too-long"),
        pytest.param(struct.pack(">I", 0), "no JSON object", id="empty"),
        pytest.param(struct.pack(">I", 2) + b"[]", "no JSON object", id="a-list"),
        pytest.param(struct.pack(">I", 2) + b"\xff{", "no JSON object", id="not-utf-8"),
        pytest.param(struct.pack(">I", 4000) + b"[" * 4000, "no JSON object", id="deep"),
        pytest.param(struct.pack(">I", 4000) + b"9" * 4000, "no JSON object", id="a-long-number"),
    ],
)
def test_what_is_no_request_is_refused(server: Server, sent: bytes, error: str) -> None:
    """With a reason, and the end of the connection."""
    client = server.connect()
    client.sock.send(sent)
    server.turn()
    (answer,) = client.answers()
    assert (answer["status"], error in answer["error"]) == ("error", True)
    assert client.is_closed()
    assert server.asked == []


@given(chunks=strategies.lists(strategies.binary(max_size=64), max_size=8))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_is_sent(server: Server, chunks: list[bytes]) -> None:
    """It ends nothing but its own connection, and costs one answer at most."""
    client, other = server.connect(), server.connect()
    for chunk in chunks:
        with contextlib.suppress(OSError):
            client.sock.send(chunk)
        server.turn()
    other.ask()
    server.turn()
    assert len(other.answers()) == 1
    for known in (client, other):
        known.sock.close()
    server.turn()
    assert server.connections == 0


def test_a_bug_ends_one_connection(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and the others go on."""
    broken, other = server.connect(), server.connect()
    broken.ask("break")
    other.ask()
    server.turn()
    assert broken.is_closed()
    assert len(other.answers()) == 1
    assert [record.message for record in caplog.records if record.exc_info] == ["control.failed"]


def test_a_bug_in_a_turn_ends_the_socket_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised into the loop: it is told once, and nobody is answered any more."""
    client = server.connect()

    def broken(_sock: socket.socket) -> Peer:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(Peer, "of", broken)
    server.begin_to_connect()
    server.turn(3)
    assert [record.message for record in caplog.records if record.exc_info] == ["control.failed"]
    assert client.is_closed()
    assert (server.control.fd, server.path.exists()) == (-1, False)
    assert server.control.wake_in_s > 1


def test_the_socket_of_an_earlier_image(server: Server) -> None:
    """Who has connected meanwhile is answered."""
    file = server.control.file
    assert file is not None
    client = server.begin_to_connect()
    client.ask()
    later = Control(server._answer)
    later.adopt(os.dup(server.control.fd), asdict(file))
    later.attach(Wakeup())
    later.turn()
    assert len(client.answers()) == 1
    assert later.file == file
    later.abandon()


@pytest.mark.parametrize("broken", ["fd", "no socket", "identity", "path"])
def test_a_socket_that_cannot_be_adopted(
    server: Server, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """A dead descriptor, or words of another version, cost the socket, not the server; a new one is made."""
    assert server.control.file is not None
    told = asdict(server.control.file)
    told.pop(broken, None)
    fd = os.dup(server.control.fd)
    server.control.abandon()
    if broken == "fd":
        os.close(fd)
    elif broken == "no socket":
        os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
    later = Control(server._answer)
    later.adopt(fd, told)
    assert (later.fd, later.file) == (-1, None)
    assert [record.message for record in caplog.records if record.exc_info] == ["control.failed"]
    later.open(str(server.path), is_airflow=False, is_second=False)
    assert later.file is not None
    later.close()


def test_an_answer_waits_for_its_client(server: Server) -> None:
    """The loop sleeps while there is no room, wakes when there is, and nothing more is read meanwhile."""
    server.text = "x" * 1_000_000
    client = server.connect()
    client.ask("long")
    client.ask("next")
    server.turn(5)
    assert server.asked == ["long"]
    began_at = time.monotonic()
    server.wakeup.wait(0.05)
    assert time.monotonic() - began_at >= 0.05, "nothing to do woke it"
    data = b""
    while len(data) < 1_000_000:
        data += client.sock.recv(1 << 20)
        server.wakeup.wait(10)
        server.turn()
    assert json.loads(data[4:])["data"]["text"] == server.text
    server.turn()
    assert server.asked == ["long", "next"]


def test_an_answer_beyond_reason(server: Server) -> None:
    """It is not kept in memory for a client to take."""
    server.text = "x" * connection.LARGEST_ANSWER
    client = server.connect()
    client.ask()
    server.turn()
    assert [answer["error"] for answer in client.answers()] == ["the answer is too long"]


@pytest.mark.parametrize(
    ("limit", "stage"),
    [
        ("FIRST_S", "silent"),
        ("REQUEST_S", "half a request"),
        ("ANSWER_S", "an answer not taken"),
        ("IDLE_S", "idle"),
    ],
)
def test_each_wait_has_an_end(
    server: Server, monkeypatch: pytest.MonkeyPatch, limit: str, stage: str
) -> None:
    """A client that stops is dropped, and the loop wakes up for that."""
    monkeypatch.setattr(connection, limit, 0.02)
    server.text = "x" * 1_000_000 if stage == "an answer not taken" else ""
    client = server.connect()
    if stage == "half a request":
        client.sock.send(b"\0\0")
    elif stage != "silent":
        client.ask()
    server.turn()
    assert server.connections == 1
    assert server.control.wake_in_s <= 0.02
    time.sleep(0.03)
    assert server.control.wake_in_s == 0
    server.turn()
    assert server.connections == 0


def test_a_crowd_makes_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit, a newcomer takes the place of who has been silent for longest."""
    silent = [server.connect() for _ in range(control.MOST_CONNECTIONS)]
    silent[0].ask()
    server.turn()
    monkeypatch.setattr(control, "PATIENCE_S", 0.0)
    newcomer = server.connect()
    newcomer.ask()
    server.turn()
    assert len(newcomer.answers()) == 1
    assert [client.is_closed() for client in silent[1:3]] == [True, False]
    assert len(silent[0].answers()) == 1
    assert server.connections == control.MOST_CONNECTIONS


def test_a_crowd_pushes_nobody_out_at_once(server: Server) -> None:
    """Who has just come is given time to speak; the next one waits, and does not keep the loop awake."""
    clients = [server.connect() for _ in range(control.MOST_CONNECTIONS + 1)]
    assert server.connections == control.MOST_CONNECTIONS
    assert not any(client.is_closed() for client in clients)
    assert 0 < server.control.wake_in_s <= control.PATIENCE_S
    began_at = time.monotonic()
    server.wakeup.wait(0.02)
    assert time.monotonic() - began_at >= 0.02
    clients[0].sock.close()
    clients[-1].ask()
    server.wakeup.wait(10)
    server.turn()  # one has left
    server.wakeup.wait(server.control.wake_in_s)
    server.turn()
    assert len(clients[-1].answers()) == 1


def test_no_descriptor_is_left(server: Server) -> None:
    """Who waits then does not keep the loop awake, and is served as soon as there is one."""
    client = server.begin_to_connect()
    client.ask()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        server.turn()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    began_at = time.monotonic()
    server.wakeup.wait(0.05)
    assert time.monotonic() - began_at >= 0.05
    assert 0 < server.control.wake_in_s <= 1
    server.control._rests_until = time.monotonic() - 0.001  # that time is over
    server.turn()
    assert len(client.answers()) == 1


def test_a_child_closes_what_is_the_masters(server: Server) -> None:
    """Only its own descriptors: the master goes on, and its client hears when the master closes."""
    client = server.connect()
    holds, goes = os.pipe()
    child = os.fork()
    if child == 0:
        server.control.abandon()
        os.write(goes, b"x")
        time.sleep(60)
    try:
        os.read(holds, 1)
        client.ask()
        server.wakeup.wait(10)
        server.turn()
        assert len(client.answers()) == 1
        server.control.close()
        assert client.is_closed()
        assert not server.path.exists()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(holds)
        os.close(goes)


def test_a_place_that_cannot_be_had(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning that says why; nothing else happens."""
    other = Control(server._answer)
    other.open(str(server.path), is_airflow=False, is_second=False)
    other.turn()
    other.close()
    assert server.path.exists()
    assert (other.file, other.fd) == (None, -1)
    (record,) = [record for record in caplog.records if record.message == "control.unavailable"]
    assert record.levelname == "WARNING"
    assert record.__dict__["because"] == f"{server.path}: another server answers there"


def test_a_place_that_cannot_even_be_named(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever comes of it, the server goes on without a socket, and says so once."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for path in ("relative", "nul\0"):
        caplog.clear()
        other = Control(server._answer)
        other.open(path, is_airflow=False, is_second=False)
        assert (other.file, other.fd) == (None, -1)
        assert [record.message for record in caplog.records] == ["control.unavailable"]


def test_a_file_that_was_removed_is_made_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by whoever cleans up a temporary folder; who is connected stays, and it is looked after seldom."""
    client = server.connect()
    server.path.unlink()
    server.turn()
    assert not server.path.exists()
    _let_it_look(server.control)
    server.turn()
    later = server.connect()
    for each in (client, later):
        each.ask()
    server.turn()
    assert [len(each.answers()) for each in (client, later)] == [1, 1]


def test_a_place_is_had_later(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Why it cannot be had is told once, not with each try."""
    other = Control(server._answer)
    other.attach(server.wakeup)
    other.open(str(server.path), is_airflow=False, is_second=False)
    _let_it_look(other)
    other.turn()
    assert [record.message for record in caplog.records].count("control.unavailable") == 1
    server.control.close()
    _let_it_look(other)
    other.turn()
    assert other.file is not None
    assert meeting.is_living(server.path)
    other.close()
    _let_it_look(other)
    other.turn()
    assert not server.path.exists()


def test_a_socket_that_has_failed_comes_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next look."""
    with monkeypatch.context() as patched:
        patched.setattr(Peer, "of", lambda _sock: 1 / 0)
        server.begin_to_connect()
        server.turn()
    assert not server.path.exists()
    _let_it_look(server.control)
    server.turn()
    client = server.connect()
    client.ask()
    server.turn()
    assert len(client.answers()) == 1


def _let_it_look(of: Control) -> None:
    """Let the time be over until it looks after its file."""
    of._looks_at = 0.0


def test_a_name_that_cannot_be_taken(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is no socket stays, and the socket keeps the name that it has."""
    other = server.path.with_name("notes")
    other.write_text("precious")
    server.control.take_name(str(other))
    assert [record.message for record in caplog.records] == ["control.listening", "control.unavailable"][1:]
    assert other.read_text() == "precious"
    assert meeting.is_living(server.path)


def test_a_second_master_waits_for_the_name(server: Server) -> None:
    """Beside its predecessor it has a name of its own, and takes the other when that is gone."""
    second = Control(server._answer)
    second.open(str(server.path), is_airflow=False, is_second=True)
    assert second.file is not None
    assert second.file.path == f"{server.path}.2"
    server.control.close()
    second.take_name(str(server.path))
    assert meeting.is_living(server.path)
    second.close()
    assert not Path(f"{server.path}.2").exists()
