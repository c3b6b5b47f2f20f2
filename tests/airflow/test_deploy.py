"""The real API server, with the environment that the files in deploy/ give it."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from harness import deployed
from harness.deployed import Deployed
from harness.starting import Start


@pytest.mark.parametrize("file", [deployed.manifest, deployed.values])
def test_the_server_of_a_pod(start_command: Start, file: Callable[[], Deployed]) -> None:
    """It starts with these options as they are, answers every probe, and ends within the grace period."""
    pod = file()
    server = start_command(env=pod.env)
    server.wait_ready(2, within_s=pod.startup_s)
    for path in ("/api/v2/version", "/api/v2/monitor/health"):
        assert server.get(path)[0] == 200, path
    server.send(signal.SIGTERM)
    assert server.wait_exit(pod.grace_s - pod.pre_stop_s) == 0
    assert not server.events("settings.lowered")
    assert not server.events("settings.ignored")
