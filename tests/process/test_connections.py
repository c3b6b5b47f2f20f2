"""No request lost on any kind of connection."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import threading
from pathlib import Path

import pytest
from harness.load import Client, Load
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from airflow_arbiter.workers import YOUNG_S


def test_rollouts_with_tls_lose_nothing(serve: Start, certificate: tuple[list[str], ssl.SSLContext]) -> None:
    """Three rollouts under TLS clients, whose handshakes may have begun before a drain."""
    options, tls = certificate
    server = serve(*options, workers=2)
    with Load(server.port, tls=tls) as load:
        _roll(server, load, times=3)
    assert load.failures == {}


def test_a_handshake_that_began_before_the_drain_is_finished(
    serve: Start, certificate: tuple[list[str], ssl.SSLContext]
) -> None:
    """A TLS client that is slow to shake hands is served by the worker that has accepted it."""
    options, tls = certificate
    server = serve(*options, workers=1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        raw.sendall(outgoing.read())
        incoming.write(raw.recv(65536))  # the server has answered, so the connection is its own
        server.send(signal.SIGHUP)
        server.wait_event("worker.draining")
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        client.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        raw.sendall(outgoing.read())
        answer = b""
        while b"\r\n\r\n" not in answer:
            incoming.write(raw.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                answer += client.read()
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_handshakes_that_failed_do_not_hold_a_drain(
    serve: Start, certificate: tuple[list[str], ssl.SSLContext]
) -> None:
    """Clients that came and went without a handshake, as a load balancer's checks do, are not waited for."""
    options, tls = certificate
    server = serve(*options, workers=1)
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", hello, hello[:20]) * 10:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(greeting)
    server.send(signal.SIGHUP)
    (completed,) = server.wait_event("rollout.completed")
    assert float(completed.values["duration_s"]) < 4, "it took all the time that handshakes get"


def test_an_idle_tls_connection_does_not_hold_a_drain(
    serve: Start, certificate: tuple[list[str], ssl.SSLContext]
) -> None:
    """A client that never answers the server's goodbye costs no request, and nothing is said to be cut."""
    options, tls = certificate
    server = serve(*options, "--graceful-timeout=30", "--keep-alive=60", workers=1)
    client = Client(server.port, keep_alive=True, tls=tls)
    client.get("/")
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed", within_s=20)
    assert "Cut" not in server.log()
    client.close()


@pytest.mark.parametrize("worker", ["PlainWorker", "PlainLoopWorker"])
def test_rollouts_on_asyncios_own_loop_lose_nothing(serve: Start, worker: str) -> None:
    """Without uvloop, a connection may be accepted and not yet registered when the drain begins."""
    server = serve(f"--worker-class=asyncio_worker.{worker}", workers=2)
    with Load(server.port) as load:
        _roll(server, load, times=4)
    assert load.failures == {}


def test_a_websocket_is_opened_before_it_is_closed(serve: Start, set_fault: SetFault, faults: Path) -> None:
    """A WebSocket whose handshake is under way when the drain begins is opened, and then closed with 1012."""
    server = serve(workers=1)
    set_fault("websocket", "slow")
    codes: list[int] = []

    def open_and_wait() -> None:
        with connect(f"ws://127.0.0.1:{server.port}/", open_timeout=20) as websocket:
            try:
                websocket.recv(timeout=20)
            except ConnectionClosed as closed:
                codes.append(closed.rcvd.code if closed.rcvd else 0)

    thread = threading.Thread(target=open_and_wait)
    thread.start()
    eventually((faults / "reached-websocket").exists, what="the handshake is under way")
    server.send(signal.SIGHUP)
    thread.join(30)
    assert codes == [1012]


def test_max_requests_replaces_workers_without_a_loss(serve: Start) -> None:
    """A worker over `max_requests` serves on until its successor is ready; none is over it while young."""
    server = serve("--max-requests=50", workers=2)
    with Load(server.port, clients=8) as load:
        server.wait_event("rollout.completed", 2)
    assert load.failures == {}
    assert {event.values["reason"] for event in server.events("rollout.started")} == {"requests"}
    assert min(float(event.values["uptime_s"]) for event in server.events("worker.exited")) > YOUNG_S


def test_the_lifespan_is_shut_down(serve: Start, faults: Path) -> None:
    """Each worker that leaves tells its app, in a rollout and in a stop."""
    server = serve(workers=2)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    server.send(signal.SIGTERM)
    server.wait_exit()
    assert len(list(faults.glob("shut-down-*"))) == 4


def test_an_apps_own_signal_handlers_do_not_stop_a_drain(serve: Start, set_fault: SetFault) -> None:
    """An app that sets handlers for SIGTERM in its startup is drained as any other."""
    set_fault("startup", "own-signals")
    server = serve(workers=2)
    with Load(server.port, clients=8) as load:
        _roll(server, load, times=1)
    assert load.failures == {}
    assert server.events("worker.killed") == []


def _roll(server: Server, load: Load, *, times: int) -> None:
    """Rolls under load that is really there."""
    for number in range(1, times + 1):
        before = load.answered
        eventually(lambda: load.answered > before + 50, what="clients are busy")  # noqa: B023
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed", number)
