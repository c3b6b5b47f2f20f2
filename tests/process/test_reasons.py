"""Each reason to replace a worker goes the same way: the successor first."""

from __future__ import annotations

import itertools
import shutil
import signal
import sys
from pathlib import Path

import pytest
from harness.load import Load
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually

MIB = 2**20


def ask_each(server: Server, path: str, *, times: int) -> None:
    """Ask for the same, one after the other, on new connections."""
    for _ in range(times):
        assert server.get(path)[0] == 200


def test_health_checks_are_no_requests(serve: Start) -> None:
    """Probes from outside do not bring a worker nearer to `max_requests`; requests do."""
    server = serve("--max-requests=50", "--health-check-path=/health", workers=1)
    (old,) = server.ready()
    ask_each(server, "/health", times=120)
    ask_each(server, "/health?verbose", times=10)
    ask_each(server, "/", times=10)
    assert server.ready() == [old]
    assert server.events("rollout.started") == []
    ask_each(server, "/", times=40)
    (started,) = server.wait_event("rollout.started")
    assert started.values["reason"] == "requests"
    server.wait_event("rollout.completed")
    assert server.wait_ready(1) != [old]


def test_a_worker_that_grows_is_replaced(serve: Start) -> None:
    """The one above `worker_max_memory` leaves once its successor has come; the others stay."""
    server = serve(
        "--worker-max-memory=200M", "--worker-memory-interval=0.1", "--worker-min-lifetime=0", workers=2
    )
    before = {worker.pid for worker in server.ready()}
    with Load(server.port, clients=4, pause_s=0.002) as load:
        grown = int(server.get("/grow?mib=250")[1])
        server.wait_event("rollout.completed")
        after = {worker.pid for worker in server.wait_ready(2)}
    assert load.failures == {}
    assert before - after == {grown}
    assert [event.values["reason"] for event in server.events("worker.drain_requested")] == ["memory"]


def test_a_limit_that_every_worker_passes_is_told_once(serve: Start) -> None:
    """Workers do not flap: after two in a row it is said that the limit is too low, and all stay."""
    server = serve(
        "--worker-max-memory=1M", "--worker-memory-interval=0.1", "--worker-min-lifetime=1", workers=2
    )
    with Load(server.port, clients=4, pause_s=0.002) as load:
        (told,) = server.wait_event("memory.limit_too_low")
        eventually(lambda: len(server.workers()) == len(server.ready()) == 2, what="a pool at rest")
        staying = server.ready()
        count = load.answered
        # Several lifetimes: as long as it took two of them to be replaced, and more.
        eventually(lambda: load.answered > count + 2000, what="clients are served")
        assert server.ready() == staying
    assert load.failures == {}
    assert int(told.values["limit_bytes"]) == MIB
    assert len(server.events("memory.limit_too_low")) == 1


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, of util-linux")
def test_no_memory_for_a_successor(start: Start, tmp_path: Path) -> None:
    """
    In a container without memory for one more worker, due workers leave first, one at a time; with memory,
    their successors come first again. No request is lost in either.
    """
    container = tmp_path / "cgroup"
    container.mkdir()
    for name, text in {"max": 1000 * MIB, "current": 1000 * MIB, "stat": "inactive_file 0"}.items():
        (container / f"memory.{name}").write_text(str(text))
    server = start(
        "--worker-memory-interval=0.1",
        command=[
            *("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /sys/fs/cgroup && exec "$@"'),
            *(str(container), sys.executable, "-m", "airflow_arbiter", "faulty:app"),
        ],
        workers=3,
    )
    server.wait_ready(3)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        assert len(server.events("worker.replaced_in_place")) == 3
        assert fewest_serving(server, rollout=1) == 2
        assert most_alive(server) == 3
        (container / "memory.current").write_text("0")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed", 2)
        assert len(server.events("worker.replaced_in_place")) == 3
        assert fewest_serving(server, rollout=2) == 3
        assert most_alive(server) == 4
    assert load.failures == {}


def most_alive(server: Server) -> int:
    """The largest number of workers that were alive at once, by the log."""
    return max(_counts(server.log(), "worker.spawned", "worker.exited"))


def fewest_serving(server: Server, *, rollout: int) -> int:
    """The smallest number of workers that were ready and not leaving during a rollout, by the log."""
    parts = server.log().split('"rollout.started"')
    serving = sum(sum(_steps(part, "worker.ready", "worker.drain_requested")) for part in parts[:rollout])
    return min(serving + count for count in _counts(parts[rollout], "worker.ready", "worker.drain_requested"))


def _counts(log: str, up: str, down: str) -> list[int]:
    return list(itertools.accumulate(_steps(log, up, down), initial=0))


def _steps(log: str, up: str, down: str) -> list[int]:
    return [(f'"{up}"' in line) - (f'"{down}"' in line) for line in log.splitlines()]
