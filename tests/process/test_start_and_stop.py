"""The ends of a server's life: a start that cannot be, and a stop at any moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness.load import Client
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually


@pytest.mark.parametrize(
    ("where", "what", "options", "error"),
    [
        pytest.param("import", "raise", [], "RuntimeError: import is broken", id="import-raises"),
        pytest.param(
            "import", "raise", ["--preload"], "RuntimeError: import is broken", id="import-raises-preloaded"
        ),
        pytest.param("import", "exit", ["--preload"], "SystemExit: 1", id="import-exits-preloaded"),
        pytest.param("import", "exit", [], "exit code 1", id="import-exits"),
        pytest.param("startup", "fail", [], "startup is broken", id="startup-fails"),
        pytest.param("startup", "exit", [], "the app cannot boot: exit code 1", id="startup-exits"),
        pytest.param(
            "startup", "sleep", ["--worker-boot-timeout=1"], "missed its boot deadline", id="startup-hangs"
        ),
    ],
)
def test_app_that_cannot_boot_ends_the_first_start(
    start: Start, set_fault: SetFault, where: str, what: str, options: list[str], error: str
) -> None:
    """The server ends with exit code 3, has tried once, and has shown the app's error once."""
    set_fault(where, what)
    server = start("--log-format=console", *options)
    assert server.wait_exit(20) == 3
    assert len(server.events("worker.spawned")) <= 1
    assert server.log().count(error) >= 1
    assert server.log().count("Traceback") <= 1
    if where == "import" and what == "raise":
        assert server.log().count(error) == 1


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["plain", "preloaded"])
@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("import", "sleep"),
        ("import", "swallow"),
        ("load", "swallow"),
        ("startup", "sleep"),
        ("startup", "busy"),
        ("startup", "swallow"),
    ],
)
def test_sigterm_ends_a_boot_that_hangs(
    start: Start, set_fault: SetFault, faults: Path, where: str, what: str, options: list[str]
) -> None:
    """Neither import nor startup, asleep, busy or deaf to the exception, keeps a boot from being ended."""
    set_fault(where, what)
    if where == "load":
        options = [*options, "--worker-class=asyncio_worker.SickProtocolWorker"]
    server = start("--graceful-timeout=60", *options)
    eventually((faults / f"reached-{where}").exists, what="the boot hangs")
    server.send(signal.SIGTERM)
    assert server.wait_exit(20) == 0
    assert server.orphans() == []
    assert server.events("worker.ready") == []


@pytest.mark.parametrize("moment", ["booting", "rolling", "draining", "idle"])
def test_sigterm_at_any_moment_stops_everything(start: Start, set_fault: SetFault, moment: str) -> None:
    """SIGTERM ends the server with exit code 0 within `graceful_timeout`, and no process is left."""
    if moment == "booting":
        set_fault("startup", "sleep")
    server = start("--graceful-timeout=5")
    held = None
    if moment == "booting":
        server.wait_event("worker.spawned")
        eventually(lambda: any(w.state == "boot" for w in server.workers()), what="a worker boots")
    else:
        server.wait_ready(4)
    if moment == "rolling":
        set_fault("startup", "slow")
        server.send(signal.SIGHUP)
        server.wait_event("worker.spawned", 5)
    if moment == "draining":
        held = _hold(server, seconds=2)
        for pid in [worker.pid for worker in server.ready()]:
            os.kill(pid, signal.SIGTERM)
        server.wait_event("worker.draining", 4)
    pids = [worker.pid for worker in server.workers()]
    server.send(signal.SIGTERM)
    assert server.wait_exit(20) == 0
    assert server.events("worker.killed") == [], "the stop took all of graceful_timeout"
    assert server.orphans() == [], pids
    if held is not None:
        assert held() == 200


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_is_a_quick_stop(serve: Start, second: signal.Signals) -> None:
    """With a request in hand that would take a minute, a second SIGTERM or SIGINT ends it at once."""
    server = serve("--graceful-timeout=60")
    _hold(server, seconds=60)
    server.send(signal.SIGTERM)
    server.wait_event("worker.draining", 4)
    server.send(second)
    assert server.wait_exit(15) == 0


def test_a_request_longer_than_the_graceful_timeout_is_cut(serve: Start) -> None:
    """The stop takes no longer than `graceful_timeout`, and says what it cut."""
    server = serve("--graceful-timeout=3")
    _hold(server, seconds=60)
    server.send(signal.SIGTERM)
    assert server.wait_exit(15) == 0
    assert "Cut 1 request(s)" in server.log()


@pytest.mark.parametrize("who", ["master", "everyone"])
def test_a_pause_longer_than_the_timeout_kills_nobody(serve: Start, who: str) -> None:
    """SIGSTOP beyond the heartbeat timeout and SIGCONT leave every worker where it was."""
    server = serve("--timeout=3")
    workers = server.ready()
    pids = [server.pid] + ([worker.pid for worker in workers] if who == "everyone" else [])
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    resume_at = time.monotonic() + 5
    eventually(lambda: time.monotonic() > resume_at, what="time passes: that is the fault")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    settled_at = time.monotonic() + 4
    eventually(lambda: time.monotonic() > settled_at, what="longer than the timeout again")
    assert server.ready() == workers
    assert server.events("worker.killed") == []
    assert server.answers()


def test_workers_leave_when_the_master_is_killed(serve: Start) -> None:
    """SIGKILL of the master leaves no worker behind."""
    server = serve()
    assert len(server.workers()) == 4
    server.send(signal.SIGKILL)
    server.wait_exit()
    eventually(lambda: server.orphans() == [], what="no worker is left")


def test_a_worker_answers_after_the_death_of_its_master(serve: Start) -> None:
    """Who serves drains then as ever."""
    server = serve(workers=2)
    status = _hold(server, 3.0)
    server.send(signal.SIGKILL)
    server.wait_exit()
    assert status() == 200
    eventually(lambda: server.orphans() == [], what="no worker is left")


def test_a_newcomer_that_hangs_dies_with_the_master(serve: Start, set_fault: SetFault, faults: Path) -> None:
    """It has served nobody; living on, it would keep the port, and clients would wait there for ever."""
    server = serve(workers=1)
    set_fault("import", "swallow")
    server.send(signal.SIGTTIN)
    eventually(lambda: len(server.workers()) == 2, what="a newcomer")
    eventually((faults / "reached-import").exists, what="it hangs")
    server.send(signal.SIGKILL)
    server.wait_exit()
    eventually(lambda: server.orphans() == [], what="no worker is left")


def test_a_blocked_worker_does_not_outlive_its_master_for_long(serve: Start, faults: Path) -> None:
    """Also where no Python runs in it any more, and so none of its signal handlers."""
    server = serve(workers=2)
    threading.Thread(target=lambda: server.answers("/block-in-c?s=3600"), daemon=True).start()
    eventually((faults / "reached-block-in-c").exists, what="it is blocked")
    server.send(signal.SIGKILL)
    server.wait_exit()
    eventually(lambda: server.orphans() == [], what="no worker is left", within_s=60)


def _hold(server: Server, seconds: float) -> Callable[[], int]:
    """Send a request that takes a while; the result waits for its status."""
    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(Client(server.port, keep_alive=False).get(f"/hold?s={seconds}")[0])
        except Exception:
            statuses.append(0)

    def is_held() -> bool:
        return any(
            c.status == psutil.CONN_ESTABLISHED and c.laddr.port == server.port
            for worker in server.ready()
            for c in psutil.Process(worker.pid).net_connections("tcp")
        )

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    eventually(is_held, what="a worker holds the request")

    def status() -> int:
        thread.join(30)
        return statuses[0]

    return status
