"""The numbers of a server: their table, what is sent to whom, and Prometheus' text."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from harness.reports import a_report, a_worker
from prometheus_client.parser import text_string_to_metric_families

from airflow_arbiter import logfiles, telemetry
from airflow_arbiter.errors import IntegrationError
from airflow_arbiter.lookup import Address
from airflow_arbiter.metrics import METRICS
from airflow_arbiter.prometheus import render
from airflow_arbiter.report import Counters, Durations, Replaced, Report
from airflow_arbiter.telemetry import Sample, Statsd, Telemetry, samples

ROOT = Path(__file__).parents[2]

BUSY = a_report(
    a_worker(in_flight=3, private_bytes=30_000_000),
    a_worker("draining", in_flight=1, private_bytes=50_000_000),
    a_worker("booting"),
    rollout={"phase": "progressing", "due": 2},
    server={"longest_turn_ms": 2.5, "slow_turns": 1, "generation": 4, "uptime_s": 12.5},
    counters=Counters(
        spawned=7,
        replaced=(
            Replaced(reason="age", outcome="drained", count=3),
            Replaced(reason="memory", outcome="killed", count=1),
        ),
        crashes=1,
        boots_failed=2,
        stalls=1,
        requests=5000,
        boot=Durations(count=7, sum_s=10.25, max_s=2.0),
        drain=Durations(count=4, sum_s=3.5, max_s=1.5),
    ),
)

SENT = {
    "airflow_arbiter.workers.booting": 1,
    "airflow_arbiter.workers.listening": 0,
    "airflow_arbiter.workers.ready": 0,
    "airflow_arbiter.workers.available": 1,
    "airflow_arbiter.workers.draining": 1,
    "airflow_arbiter.workers.killed": 0,
    "airflow_arbiter.workers_target": 2,
    "airflow_arbiter.in_flight": 4,
    "airflow_arbiter.requests": 5000,
    "airflow_arbiter.private_memory_bytes": 80_000_000,
    "airflow_arbiter.private_memory_largest_bytes": 50_000_000,
    "airflow_arbiter.spawned": 7,
    "airflow_arbiter.replaced.age.drained": 3,
    "airflow_arbiter.replaced.memory.killed": 1,
    "airflow_arbiter.crashes": 1,
    "airflow_arbiter.boots_failed": 2,
    "airflow_arbiter.boots": 7,
    "airflow_arbiter.boot_ms": 10_250,
    "airflow_arbiter.boot_longest_ms": 2000,
    "airflow_arbiter.drains": 4,
    "airflow_arbiter.drain_ms": 3500,
    "airflow_arbiter.drain_longest_ms": 1500,
    "airflow_arbiter.rollout.idle": 0,
    "airflow_arbiter.rollout.progressing": 1,
    "airflow_arbiter.rollout.stalled": 0,
    "airflow_arbiter.rollout.paused": 0,
    "airflow_arbiter.rollout_due": 2,
    "airflow_arbiter.stalls": 1,
    "airflow_arbiter.reload_failed": 0,
    "airflow_arbiter.generation": 4,
    "airflow_arbiter.turn_longest_ms": 2.5,
    "airflow_arbiter.turns_slow": 1,
    "airflow_arbiter.uptime_ms": 12_500,
}


def test_the_table_is_documented() -> None:
    """Each metric stands on the page, with both names, its kind and what it is, and no other does."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if "| `airflow" in line
    ]
    assert rows == [
        [
            f"`{metric.statsd([f'<{label}>' for label in metric.labels])}`",
            f"`{metric.prometheus}{'{' + ', '.join(metric.labels) + '}' if metric.labels else ''}`",
            metric.kind,
            metric.about,
        ]
        for metric in METRICS
    ]


def test_everything_is_sent() -> None:
    """What a busy server says, under names that stay."""
    found, totals = samples(BUSY, {})
    assert {sample.name: sample.value for sample in found} == SENT
    assert {sample.name for sample in found if sample.kind == "counter"} <= totals.keys()


def test_a_counter_is_sent_as_what_has_come() -> None:
    """Nothing twice, nothing for nothing; one that begins anew has all of it to tell."""
    _, told = samples(a_report(counters=Counters(requests=10, crashes=1, spawned=5)), {})
    found, totals = samples(a_report(counters=Counters(requests=25, crashes=1, spawned=2)), told)
    assert {sample for sample in found if sample.kind == "counter"} == {
        Sample(name="airflow_arbiter.requests", kind="counter", value=15),
        Sample(name="airflow_arbiter.spawned", kind="counter", value=2),
    }
    assert (totals["airflow_arbiter.requests"], totals["airflow_arbiter.crashes"]) == (25, 1)


def test_milliseconds_add_up() -> None:
    """Durations are sent whole, and their sum is right all the same."""
    told: dict[str, int] = {}
    sent = 0.0
    for number in range(1, 101):
        report = a_report(counters=Counters(boot=Durations(count=number, sum_s=number * 0.0004)))
        found, told = samples(report, told)
        values = [sample.value for sample in found if sample.name == "airflow_arbiter.boot_ms"]
        assert all(value == int(value) for value in values)
        sent += sum(values)
    assert sent == 40


def test_memory_that_is_not_sampled_is_not_sent() -> None:
    """No number is better than a wrong one."""
    found, _ = samples(a_report(a_worker()), {})
    assert not [sample.name for sample in found if "memory" in sample.name]


@pytest.mark.parametrize(
    ("server", "is_told"),
    [
        ({"successor_pid": 200}, True),
        ({"stopping": True}, True),
        ({"stopping": True, "successor_pid": 200}, False),
        ({"predecessor_pid": 50}, False),
    ],
)
def test_one_of_two_masters_tells_how_the_service_is(server: dict[str, Any], is_told: bool) -> None:
    """And both tell what they have done."""
    found, _ = samples(a_report(server=server, counters=Counters(spawned=2)), {})
    assert [sample.value for sample in found if sample.name == "airflow_arbiter.spawned"] == [2]
    assert any(sample.kind == "gauge" for sample in found) == is_told


# -- statsd
# -------------------------------------------------------------------------------------------------------


@pytest.fixture
def collector() -> Iterator[socket.socket]:
    """A UDP socket that collects."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        yield receiver


def test_statsd_is_spoken_as_gunicorn_speaks_it(collector: socket.socket) -> None:
    """A prefix gets its dot, and tags follow each value."""
    client = Statsd(Address(socket.AF_INET, collector.getsockname()), prefix="web", tags="env:test,zone:1")
    client.incr("a.b", 3)
    client.gauge("c", 80_000_000)
    client.gauge("d", 0.5)
    client.close()
    assert [collector.recv(1000) for _ in range(3)] == [
        b"web.a.b:3|c|#env:test,zone:1",
        b"web.c:80000000|g|#env:test,zone:1",
        b"web.d:0.5|g|#env:test,zone:1",
    ]


def test_statsd_at_a_path_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    """A Unix socket has a queue that can be full, or nobody there at all."""
    path = str(tmp_path / "statsd")
    client = Statsd(Address(socket.AF_UNIX, path))
    client.incr("nobody", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        began = time.monotonic()
        for _ in range(2000):
            client.incr("a", 1)
        assert time.monotonic() - began < 5
        assert receiver.recv(100) == b"a:1|c"
    client.close()


def test_gunicorns_own_client_does_not_wait_either(tmp_path: Path) -> None:
    """Its counts of log lines go to the same address, and a reader that stands still holds no log up."""
    path = str(tmp_path / "statsd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        cfg = Config()
        cfg.set("statsd_host", f"unix://{path}")
        cfg.set("errorlog", str(tmp_path / "log"))
        log = logfiles.set_up(cfg)
        began = time.monotonic()
        for _ in range(500):
            log.warning("a line")
        assert time.monotonic() - began < 5
        assert receiver.recv(100) == b"gunicorn.log.warning:1|c|@1.0"
        log.sock.close()
        for handler in log.error_log.handlers:
            handler.close()
        log.error_log.handlers.clear()


def test_telemetry_keeps_its_period(collector: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, then once a period, with what was sent as the ground for the next."""
    monkeypatch.setattr(telemetry, "PERIOD_S", 0.05)
    outlet = Statsd(Address(socket.AF_INET, collector.getsockname()))
    metrics = Telemetry([outlet], told={"airflow_arbiter.requests": 4000})
    assert metrics.wake_in_s == 0
    metrics.send(BUSY)
    assert 0 < metrics.wake_in_s <= 0.05
    lines = {collector.recv(1000).decode() for _ in range(len(SENT))}
    assert "airflow_arbiter.requests:1000|c" in lines
    assert metrics.told["airflow_arbiter.requests"] == 5000
    deadline = time.monotonic() + 5
    while not metrics.is_due:
        assert time.monotonic() < deadline
    outlet.close()


def test_without_an_outlet_there_is_nothing_to_do() -> None:
    """Nobody is woken for numbers that nobody wants."""
    metrics = Telemetry([], told={})
    assert (metrics.is_due, metrics.wake_in_s) == (False, math.inf)


class _Broken:
    """A client that raises."""

    def incr(self, stat: str, count: int) -> None:
        raise RuntimeError("no route")

    def gauge(self, stat: str, value: float) -> None:
        raise RuntimeError("no route")

    def close(self) -> None:
        raise RuntimeError("no socket")


def test_an_outlet_that_raises_is_told_once_and_harms_no_other(
    collector: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics are not worth a turn."""
    outlet = Statsd(Address(socket.AF_INET, collector.getsockname()))
    metrics = Telemetry([_Broken(), outlet], told={})
    metrics.send(BUSY)
    metrics.send(BUSY)
    assert [record.message for record in caplog.records] == ["metrics.failed"]
    assert collector.recv(1000)
    metrics.close()


# -- Prometheus
# -------------------------------------------------------------------------------------------------------


def _scraped(report: Report) -> dict[str, float]:
    """What Prometheus' own parser reads."""
    return {
        sample.name
        + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render(report))
        for sample in family.samples
    }


def test_prometheus_reads_it() -> None:
    """Every metric, in base units, each combination of labels from the start."""
    scraped = _scraped(BUSY)
    assert scraped["airflow_arbiter_workers,state=available"] == 1
    assert scraped["airflow_arbiter_workers,state=killed"] == 0
    assert scraped["airflow_arbiter_replaced_total,outcome=drained,reason=age"] == 3
    assert scraped["airflow_arbiter_replaced_total,outcome=failed,reason=command"] == 0
    assert scraped["airflow_arbiter_boot_seconds_total"] == 10.25
    assert scraped["airflow_arbiter_boots_total"] == 7
    assert scraped["airflow_arbiter_turn_longest_seconds"] == 0.0025
    assert scraped["airflow_arbiter_private_memory_bytes"] == 80_000_000
    assert {name.partition(",")[0] for name in scraped} == {metric.prometheus for metric in METRICS}


def test_a_report_out_of_json_is_as_good() -> None:
    """A client has got it through a socket, perhaps from a server that knows more, or too little."""
    seen = json.loads(json.dumps(asdict(BUSY)))
    assert render({**seen, "of_the_future": 1}) == render(BUSY)
    with pytest.raises(IntegrationError, match="another version"):
        render({"server": seen["server"]})


def test_kinds_and_words_are_in_the_text() -> None:
    """Type and help of each family are what the table says."""
    families = {family.name: family for family in text_string_to_metric_families(render(BUSY))}
    assert {name.removesuffix("_total"): (f.type, f.documentation) for name, f in families.items()} == {
        metric.prometheus.removesuffix("_total"): (metric.kind, metric.about) for metric in METRICS
    }


def test_a_master_needs_no_prometheus() -> None:
    """Neither its package nor what uses it is imported to serve."""
    program = (
        "import sys, airflow_arbiter.arbiter, airflow_arbiter.workers; "
        "print([name for name in sys.modules if 'prometheus' in name])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_package_it_says_what_to_install() -> None:
    """One line, for people."""
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from airflow_arbiter.prometheus import render\n"
        "try:\n    render(None)\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"IntegrationError prometheus-client is not installed; .*\n", done.stdout)
