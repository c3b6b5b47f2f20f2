"""The numbers of real servers, as a collector adds them up."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness.codeapp import CodeApp, wait_answer
from harness.collector import Collector
from harness.controlling import second_pid
from harness.load import Load
from harness.server import is_alive
from harness.starting import Start
from harness.waiting import eventually

PLAIN = "airflow_arbiter."
OURS = f"web.{PLAIN}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Somebody who collects."""
    found = Collector()
    yield found
    found.close()


def test_what_a_server_has_done_adds_up(start: Start, collector: Collector) -> None:
    """Over start, requests, a rollout and the stop, counters add up to what there was, and gauges follow."""
    options = (
        f"--statsd-host=127.0.0.1:{collector.port}",
        "--statsd-prefix=web",
        "--dogstatsd-tags=env:test",
    )
    server = start(*options, workers=2)
    server.wait_ready(2)
    eventually(lambda: collector.gauges.get(f"{OURS}workers.available") == 2, what="the pool is seen")
    assert collector.gauges[f"{OURS}workers_target"] == 2
    with Load(server.port, clients=2) as load:
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert load.failures == {}
    eventually(lambda: collector.counters[f"{OURS}drains"] == 4, what="the last numbers")
    counters = {name.removeprefix(OURS): value for name, value in collector.counters.items() if value}
    assert counters.pop("requests") == load.answered
    assert counters.pop("boot_ms") > 0
    assert counters.pop("drain_ms") > 0
    counters.pop("turns_slow", None)
    assert counters == {"spawned": 4, "boots": 4, "drains": 4, "replaced.generation.drained": 2}
    states = {name: value for name, value in collector.gauges.items() if ".workers." in name}
    assert set(states.values()) == {0}
    assert collector.gauges[f"{OURS}generation"] == 2
    assert collector.tags == {"#env:test"}


def test_numbers_go_on_over_a_reload_of_the_master(start: Start, code: CodeApp, collector: Collector) -> None:
    """A new image of the master tells nothing twice and forgets nothing."""
    statsd = f"--statsd-host=127.0.0.1:{collector.port}"
    server = start(statsd, command=code.command(), workers=2)
    server.wait_ready(2)
    eventually(lambda: collector.counters["airflow_arbiter.spawned"] == 2, what="the first image has told")
    with Load(server.port, clients=2) as load:
        code.write("second")
        server.send(signal.SIGHUP)
        wait_answer(server, "second")
        server.wait_event("rollout.completed")
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert load.failures == {}
    eventually(lambda: collector.counters["airflow_arbiter.drains"] == 4, what="the last numbers")
    assert collector.counters["airflow_arbiter.spawned"] == 4
    assert collector.counters["airflow_arbiter.replaced.generation.drained"] == 2
    assert collector.counters["airflow_arbiter.requests"] >= load.answered


def test_two_masters_speak_with_one_voice(start: Start, collector: Collector) -> None:
    """After SIGUSR2 no gauge says that nobody serves, and the end is told once."""
    server = start(f"--statsd-host=127.0.0.1:{collector.port}", workers=2)
    server.wait_ready(2)
    seen = f"{PLAIN}workers.available"
    eventually(lambda: collector.gauges.get(seen) == 2, what="the pool is seen")
    server.send(signal.SIGUSR2)
    new = eventually(lambda: second_pid(server), what="the second master")
    try:
        eventually(lambda: collector.counters[f"{PLAIN}boots"] == 4, what="its workers are seen")
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
        told = len(collector.history[seen])
        eventually(lambda: len(collector.history[seen]) > told, what="the new one speaks")
    finally:
        os.kill(new, signal.SIGTERM)
    eventually(lambda: not psutil.pid_exists(new), what="the second master has gone")
    eventually(lambda: collector.counters[f"{PLAIN}drains"] == 4, what="the last numbers")
    *values, last = collector.history[seen][collector.history[seen].index(2) :]
    assert set(values) == {2}
    assert last == 0


def test_a_collector_whose_name_nobody_knows(start: Start) -> None:
    """It is told once, and the server serves."""
    server = start("--statsd-host=nobody.invalid:8125", workers=1)
    server.wait_ready(1)
    (off,) = server.wait_event("metrics.off")
    assert "nobody.invalid" in off.values["because"]
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


def test_a_resolver_that_hangs_holds_nobody_up(start: Start, tmp_path: Path) -> None:
    """The loop turns and replaces a worker while the collector's name is looked up, and a stop ends that."""
    config = tmp_path / "conf.py"
    config.write_text("")
    server = start(f"--config={config}", workers=1)
    server.wait_ready(1)
    config.write_text(_RESOLVER.format(note=str(tmp_path / "asked"), host="slow.invalid:8125"))
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    asked = tmp_path / "asked"
    asker = int(eventually(lambda: asked.exists() and asked.read_text(), what="the name is looked up"))
    assert asker != server.pid
    server.kill_a_worker()
    server.wait_event("worker.ready", 3)
    assert server.events("arbiter.turn_slow") == []
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    eventually(lambda: not is_alive(asker), what="the errand is gone")


_RESOLVER = """
import os
import socket
import time

_ask = socket.getaddrinfo


def _resolve(host, *args, flags=0, **kwargs):
    if flags & socket.AI_NUMERICHOST or not host.endswith(".invalid"):
        return _ask(host, *args, flags=flags, **kwargs)
    with open({note!r} + ".new", "w") as note:
        note.write(str(os.getpid()))
    os.rename({note!r} + ".new", {note!r})
    if host == "slow.invalid":
        time.sleep(999)
    return _ask("127.0.0.1", *args, **kwargs)


socket.getaddrinfo = _resolve
statsd_host = {host!r}
"""
"""A configuration that stands in for name servers, which may be away."""


def test_a_reload_names_another_collector(start: Start, collector: Collector, tmp_path: Path) -> None:
    """What has been told to the one is not told to the other."""
    config = tmp_path / "conf.py"
    first = Collector()
    try:
        config.write_text(f"statsd_host = '127.0.0.1:{first.port}'")
        server = start(f"--config={config}", workers=1)
        server.wait_ready(1)
        eventually(lambda: first.counters["airflow_arbiter.spawned"] == 1, what="the first collector knows")
        name = f"collector.invalid:{collector.port}"
        config.write_text(_RESOLVER.format(note=str(tmp_path / "asked"), host=name))
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
        eventually(lambda: collector.counters["airflow_arbiter.drains"] == 2, what="the second one does")
        assert collector.counters["airflow_arbiter.spawned"] == 1
    finally:
        first.close()
