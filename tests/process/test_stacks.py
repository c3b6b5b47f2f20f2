"""A worker that has to be killed tells first what it was doing."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.load import ClosedError, Load
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually


def told(server: Server) -> tuple[str, str]:
    """The stacks and the requests of the only worker that told them; the kill comes after."""
    (event,) = server.wait_event("worker.stacks")
    server.wait_event("worker.killed")
    log = server.log()
    assert log.index('"worker.stacks"') < log.index('"worker.killed"')
    return event.values["stack"], event.values["requests"]


def test_a_blocked_event_loop(serve: Start) -> None:
    """The stack names the line that blocks, and the request it is for; the pool is whole again."""
    server = serve("--timeout=2", workers=2)
    with Load(server.port, clients=2, pause_s=0.01):
        with pytest.raises((ConnectionError, ClosedError)):
            server.get("/block?s=60", timeout_s=20)
        stack, requests = told(server)
        server.wait_ready(2)
    assert "in _answer" in stack
    assert "faulty.py" in stack
    assert "'method': 'GET', 'path': '/block'" in requests


def test_a_request_that_outlives_the_drain(serve: Start, set_fault: SetFault, faults: Path) -> None:
    """A request that ignores its end is named with its age: in the log of the cut, and before the kill."""
    server = serve("--graceful-timeout=2", workers=2)
    with Load(server.port, clients=2, pause_s=0.01) as load:
        set_fault("stubborn", "tell")
        with ThreadPoolExecutor() as pool:
            asking = pool.submit(server.get, "/stubborn?s=60")
            eventually((faults / "reached-stubborn").exists, what="the request is there")
            server.send(signal.SIGHUP)
            assert isinstance(asking.exception(), (ConnectionError, ClosedError))
        _, requests = told(server)
        server.wait_event("rollout.completed")
    assert load.failures == {}
    (cut,) = [json.loads(line) for line in server.log().splitlines() if '"Cut 1 request(s)' in line]
    assert [(held["method"], held["path"]) for held in cut["requests"]] == [("GET", "/stubborn")]
    assert 1 < cut["requests"][0]["age_s"] < 30
    assert "'path': '/stubborn'" in requests
    (killed,) = server.events("worker.killed")
    assert killed.values["cause"] == "missed its drain deadline of 2 s"


def test_an_app_that_hangs_while_it_is_imported(serve: Start, set_fault: SetFault) -> None:
    """A newcomer that misses its boot deadline tells the line where it hangs."""
    server = serve("--worker-boot-timeout=2", workers=1)
    old = server.ready()
    set_fault("import", "sleep")
    server.send(signal.SIGHUP)
    stack, requests = told(server)
    assert 'faulty.py", line' in stack
    assert requests == "[]"
    assert server.ready() == old
    set_fault("import", "")


def test_a_worker_that_is_stopped(serve: Start) -> None:
    """One that can tell nothing is killed all the same, and the log says that nothing came."""
    server = serve("--timeout=2", workers=2)
    os.kill(server.ready()[0].pid, signal.SIGSTOP)
    stack, requests = told(server)
    assert stack.startswith("(nothing came")
    assert requests == "unknown"
    server.wait_ready(2)
