"""``python -m airflow_arbiter`` serves the real Airflow API server."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from harness.asking import ask, log_in
from harness.load import Load
from harness.starting import Start
from harness.waiting import eventually


def test_two_rollouts_under_load_lose_nothing(serve_airflow: Start) -> None:
    """16 busy clients see two whole rollouts of real Airflow, and every request is answered with 200."""
    server = serve_airflow()
    with Load(server.port, path="/api/v2/version") as load:
        for rollout in (1, 2):
            before = load.answered
            eventually(lambda: load.answered > before + 200, what="clients are busy")  # noqa: B023
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed", rollout, within_s=90)
            server.wait_ready(4, generation=rollout + 1)
        before = load.answered
        eventually(lambda: load.answered > before + 200, what="clients are busy after the rollouts")
    assert load.failures == {}
    assert [event.values["cause"] for event in server.events("worker.exited")] == ["exit code 0"] * 8


def test_options_of_the_api_section_are_defaults(serve_airflow: Start) -> None:
    """Airflow's `[api]` options hold, and a command-line option wins over them."""
    server = serve_airflow(
        "--worker-refresh-jitter=0",
        env={"AIRFLOW__API__WORKER_REFRESH_INTERVAL": "4", "AIRFLOW__API__WORKER_REFRESH_BATCH_SIZE": "5"},
        workers=2,
    )
    (lowered,) = server.events("settings.lowered")
    assert (lowered.values["value"], lowered.values["lowered_to"]) == ("5", "2")
    (started, *_) = server.wait_event("rollout.started")
    assert started.values["reason"] == "age"
    server.wait_event("rollout.completed")


def test_workers_share_the_signing_key_and_the_login(serve_airflow: Start, airflow_home: Path) -> None:
    """A token from one worker is taken by all of the same and of the next generation."""
    server = serve_airflow(workers=2)
    user = log_in(server.port, airflow_home)
    assert {ask(server.port, "/api/v2/dags", headers=user).status for _ in range(20)} == {200}
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed", within_s=60)
    assert {ask(server.port, "/api/v2/dags", headers=user).status for _ in range(20)} == {200}


def test_a_bad_option_of_the_api_section_is_one_clear_line(start: Start, airflow_env: dict[str, str]) -> None:
    """A wrong value in Airflow's configuration ends the start with exit code 2 and names the option."""
    env = {**airflow_env, "AIRFLOW__API__WORKER_REFRESH_INTERVAL": "soon"}
    server = start(command=[sys.executable, "-m", "airflow_arbiter"], env=env)
    assert server.wait_exit(60) == 2
    assert "worker_refresh_interval" in server.log().splitlines()[-1].lower() + server.log()
    assert "Traceback" not in server.log()
