"""What clients, and the apps that answer them, do to a server: wait, dawdle, linger, send nonsense."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.load import Client, ClosedError, Load
from harness.malformed import malformed, send
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

SEED = 5
"""Change it to see other nonsense; a failure tells which one it was."""


@contextlib.contextmanager
def load_that_loses_nothing(server: Server, tls: ssl.SSLContext | None = None) -> Iterator[Load]:
    """Busy clients beside the one in question, every request of whom is answered with 200."""
    with Load(server.port, clients=4, pause_s=0.002, tls=tls) as load:
        eventually(lambda: load.answered > 50, what="clients are busy")
        yield load
        before = load.answered
        eventually(lambda: load.answered > before + 50, what="clients are busy")
    assert load.failures == {}


# -- on open connections -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("half", "cut_requests"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHo", 0, id="head"),
        pytest.param(b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello", 1, id="body"),
    ],
)
def test_half_a_request_does_not_hold_a_drain(serve: Start, half: bytes, cut_requests: int) -> None:
    """Half a head is closed after the grace, half a body at the deadline; nobody is killed for it."""
    server = serve("--graceful-timeout=5", workers=2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(half)
        with load_that_loses_nothing(server):
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed", within_s=20)
        said = b"".join(iter(lambda: client.recv(4096), b""))
    assert not said or said.startswith(b"HTTP/1.1 500 ")
    assert server.events("worker.killed") == []
    assert server.log().count("Cut 1 request(s)") == server.log().count("Cut") == cut_requests


def test_a_slow_reader_gets_its_answer_whole(serve: Start) -> None:
    """A streamed answer that is read slowly is finished by its worker, which drains as long as it takes."""
    chunks, size = 300, 65536
    server = serve("--graceful-timeout=60", "--worker-refresh-batch-size=2", workers=2)
    client = _SlowReader(server.port)
    client.begin(f"/stream?chunks={chunks}&size={size}&pause=0")
    with load_that_loses_nothing(server):
        server.send(signal.SIGHUP)
        server.wait_event("worker.draining", 2)
        server.wait_event("worker.exited")  # that has no answer to finish
        assert len(server.workers()) == 2 + 1, "the drain was over before the answer was"
        assert client.read() == b"x" * chunks * size
        server.wait_event("rollout.completed")
    assert "Cut" not in server.log()


def test_open_websockets_are_closed_as_a_service_restart(serve: Start) -> None:
    """WebSockets that are open when their worker drains are closed with 1012; the others lose nothing."""
    server = serve(workers=2)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(f"ws://127.0.0.1:{server.port}/")) for _ in range(8)]
        with load_that_loses_nothing(server):
            server.send(signal.SIGHUP)
            for websocket in sockets:
                with pytest.raises(ConnectionClosed) as closed:
                    websocket.recv(timeout=20)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
            server.wait_event("rollout.completed")


def test_idle_kept_connections_are_answered_within_the_grace_or_closed(serve: Start) -> None:
    """Of 300 idle connections, half ask in the grace and are answered; the rest are closed, none is reset."""
    server = serve("--keep-alive=60", "--worker-refresh-batch-size=2", workers=2)
    clients = [Client(server.port, keep_alive=True) for _ in range(300)]
    for client in clients:
        client.get("/")
    with load_that_loses_nothing(server):
        server.send(signal.SIGHUP)
        server.wait_event("worker.draining", 2)
        statuses = Counter(client.get("/")[0] for client in clients[::2])
        endings = Counter(client.ending() for client in clients[1::2])
        server.wait_event("rollout.completed")
    for client in clients:
        client.close()
    assert statuses == {200: 150}
    assert endings == {"closed": 150}


# -- in the app ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["sleep", "busy", "raise"])
def test_a_lifespan_shutdown_that_goes_wrong_harms_nobody(
    serve: Start, set_fault: SetFault, what: str
) -> None:
    """A worker whose lifespan never ends is killed at its drain deadline, and the rollout completes."""
    server = serve("--graceful-timeout=2", "--timeout=10", workers=2)
    set_fault("shutdown", what)
    with load_that_loses_nothing(server):
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        server.wait_ready(2, generation=2)
    causes = [event.values["cause"] for event in server.events("worker.killed")]
    assert causes == ([] if what == "raise" else ["missed its drain deadline of 2 s"] * 2)


def test_a_connection_that_cannot_be_closed_does_not_cut_the_others(serve: Start, faults: Path) -> None:
    """A protocol that raises in the drain is cut at the deadline and told of once; nobody else is cut."""
    server = serve(
        "--worker-class=raising_worker.RaisingWorker", "--graceful-timeout=6", "--keep-alive=60", workers=1
    )
    broken, idle = (Client(server.port, keep_alive=True) for _ in range(2))
    broken.get("/broken")
    idle.get("/")
    held = _in_background(lambda: Client(server.port, keep_alive=False).get("/hold?s=4")[0])
    eventually((faults / "reached-hold").exists, what="the worker holds the request")
    with load_that_loses_nothing(server):
        server.send(signal.SIGHUP)
        assert idle.ending() == "closed"
        assert held() == 200
        server.wait_event("rollout.completed")
        assert broken.ending() == "closed"
    assert server.events("worker.killed") == []
    assert server.log().count("Exception while draining a connection") == 1
    broken.close()
    idle.close()


def test_a_request_that_ignores_its_cancellation_ends_with_its_worker(serve: Start, faults: Path) -> None:
    """A worker that a request keeps beyond `graceful_timeout` is killed; nobody else is harmed."""
    server = serve("--graceful-timeout=3", workers=2)
    deaf = _in_background(lambda: Client(server.port, keep_alive=False).get("/deaf?s=60")[0])
    with load_that_loses_nothing(server):
        eventually((faults / "reached-deaf").exists, what="a worker holds the request")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
    with pytest.raises((ClosedError, ConnectionResetError)):
        deaf()
    (killed,) = server.events("worker.killed")
    assert killed.values["cause"] == "missed its drain deadline of 3 s"
    assert "Cut 1 request(s)" in server.log()


# -- nonsense ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="httptools"),
        pytest.param(["--worker-class=asyncio_worker.PlainWorker"], id="h11"),
        pytest.param(["--access-logfile=-"], id="access-log"),
    ],
)
def test_malformed_http_takes_no_worker_down(serve: Start, options: list[str]) -> None:
    """300 malformed requests, and the same workers answer all good ones meanwhile, and can be drained."""
    server = serve(*options, workers=2)
    _suffer_nonsense(server, count=300)


def test_malformed_http_over_tls_takes_no_worker_down(
    serve: Start, certificate: tuple[list[str], ssl.SSLContext]
) -> None:
    """The same under TLS, where some clients do not even shake hands."""
    options, tls = certificate
    server = serve(*options, workers=2)
    _suffer_nonsense(server, count=100, tls=tls)


def _suffer_nonsense(server: Server, *, count: int, tls: ssl.SSLContext | None = None) -> None:
    workers = server.ready()
    with load_that_loses_nothing(server, tls=tls):
        for number, request in enumerate(malformed(SEED, count)):
            send(server.port, request, tls=tls if number % 4 else None)
        assert server.ready() == workers
        assert server.events("worker.exited") == []
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
    assert server.events("worker.killed") == []


# -- helpers -------------------------------------------------------------------------------------------------


class _SlowReader(Client):
    """A client that takes its time over an answer that is larger than what the kernel keeps for it."""

    def __init__(self, port: int) -> None:
        super().__init__(port, keep_alive=False)

    def begin(self, path: str) -> None:
        """Ask, and read nothing yet."""
        self._sock = socket.create_connection(("127.0.0.1", self._port), timeout=20)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def read(self) -> bytes:
        """Read the answer, a little at a time."""
        _, body, _ = self._read()
        self.close()
        return body

    def _more(self) -> None:
        time.sleep(0.005)  # that is the fault
        super()._more()


def _in_background(ask: Callable[[], int]) -> Callable[[], int]:
    """Ask now; the result waits for the answer, and raises what was raised."""
    outcomes: list[int | Exception] = []

    def run() -> None:
        try:
            outcomes.append(ask())
        except Exception as error:
            outcomes.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def outcome() -> int:
        thread.join(30)
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]
        return outcomes[0]

    return outcome
