"""``airflow arbiter``: the commands for a server that runs, in Airflow's own command line."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from harness.airflow_command import RunAirflow
from harness.starting import Start


def test_airflow_arbiter(start_command: Start, run_airflow: RunAirflow, airflow_home: Path) -> None:
    """It finds the server in Airflow's home, tells all of it, replaces its workers, says what is wrong."""
    server = start_command(workers=1)
    (worker,) = server.wait_ready(1, within_s=120)
    (listening,) = server.wait_event("control.listening")
    assert Path(listening.values["path"]).parent == airflow_home / "arbiter"
    which = ("--pid", str(server.pid))
    report = json.loads(run_airflow("arbiter", "status", "--output", "json", *which).stdout)
    assert report["server"]["pid"] == server.pid
    assert report["server"]["app"] == "airflow-api-server"
    assert [(seen["pid"], seen["state"]) for seen in report["workers"]] == [(worker.pid, "available")]
    ended = run_airflow("arbiter", "rollout", "restart", "--wait", *which)
    assert ended.stdout == "complete: 1 of 1 workers available\n"
    (successor,) = server.ready()
    assert successor.pid != worker.pid
    report = yaml.safe_load(run_airflow("arbiter", "status", "-o", "yaml", *which).stdout)
    assert [seen["pid"] for seen in report["workers"]] == [successor.pid]
    ended = run_airflow("arbiter", "status", "--pid", "1", check=False)
    assert ended.returncode == 1
    told = [line for line in ended.stderr.splitlines() if "error" in line]
    assert len(told) == 1
    assert told[0].startswith(
        f"airflow arbiter: error: no server of pid 1 answers in {airflow_home / 'arbiter'}"
    )
