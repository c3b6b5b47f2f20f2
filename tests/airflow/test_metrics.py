"""The server's numbers, through Airflow's own metrics."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from harness.collector import Collector
from harness.starting import Start
from harness.waiting import eventually


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Somebody who collects."""
    found = Collector()
    yield found
    found.close()


def test_airflows_options_rule_ours_too(serve_airflow: Start, collector: Collector) -> None:
    """Host, prefix and list of names in `[metrics]` hold for the server's numbers."""
    server = serve_airflow(
        env={
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(collector.port),
            "AIRFLOW__METRICS__STATSD_PREFIX": "flow",
            "AIRFLOW__METRICS__METRICS_BLOCK_LIST": "memory,rollout",
        },
        workers=1,
    )
    ours = "flow.airflow_arbiter."
    eventually(lambda: collector.gauges.get(f"{ours}workers.available") == 1, what="the pool is seen")
    server.send(signal.SIGTERM)
    assert server.wait_exit(60) == 0
    eventually(lambda: collector.counters[f"{ours}drains"] == 1, what="the last numbers")
    assert collector.counters[f"{ours}boots"] == 1
    names = {name for name in collector.gauges if name.startswith(ours)}
    assert f"{ours}uptime_ms" in names
    assert not [name for name in names if "memory" in name or "rollout" in name]


def test_opentelemetry_is_not_for_a_master(serve_airflow: Start, collector: Collector) -> None:
    """It is told once what to use in its place, which works beside it, and the server serves."""
    statsd = f"--statsd-host=127.0.0.1:{collector.port}"
    server = serve_airflow(statsd, env={"AIRFLOW__METRICS__OTEL_ON": "True"}, workers=1)
    (off,) = server.wait_event("metrics.off")
    assert "statsd_host" in off.values["because"]
    eventually(
        lambda: collector.gauges.get("airflow_arbiter.workers.available") == 1, what="the pool is seen"
    )
    assert server.answers("/api/v2/version")
