"""``airflow api-server`` with ``server_type = gunicorn`` is served by our arbiter, as by Airflow's own."""

from __future__ import annotations

import json
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
from harness.airflow_command import AIRFLOW_VERSION, HEALTH, RunAirflow
from harness.asking import ask, log_in
from harness.load import Load
from harness.server import Server, free_port
from harness.starting import Start
from harness.waiting import eventually

HOOKS = """
import os

def _note(name):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(name + "\\n")

def on_starting(server): _note("on_starting")
def when_ready(server): _note("when_ready")
def pre_fork(server, worker): _note("pre_fork")
def post_fork(server, worker): _note("post_fork")
def post_worker_init(worker): _note("post_worker_init")
def worker_exit(server, worker): _note("worker_exit")
def child_exit(server, worker): _note("child_exit")
def on_exit(server): _note("on_exit")
"""

ENDPOINTS = (
    "/",
    "/dags",
    "/no/such/page",
    "/auth/login",
    "/auth/menus",
    "/docs",
    "/openapi.json",
    "/ui/config",
    "/ui/auth/menus",
    "/ui/dags",
    HEALTH,
    "/api/v2/version",
    "/api/v2/dags",
    "/api/v2/dags/none",
    "/api/v2/plugins",
    "/api/v2/providers",
    "/api/v2/variables/none",
    "/api/v2/no/such/endpoint",
    "/execution/health",
    "/execution/openapi.json",
    "/execution/variables/none",
    "/probe/hello",
    "/probe/no/such/endpoint",
)


@pytest.fixture(scope="module")
def ours(start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with 2 workers, and hooks in a configuration file; at the end its stop is looked at."""
    folder = tmp_path_factory.mktemp("ours")
    (folder / "hooks.py").write_text(HOOKS)
    server = start_shared(
        env={
            "GUNICORN_CMD_ARGS": f"--config={folder / 'hooks.py'} --worker-refresh-jitter=0.5",
            "NOTES": str(folder / "notes"),
        }
    )
    server.wait_ready(2)
    yield server
    server.send(signal.SIGTERM)
    assert server.wait_exit(60) == 0
    notes = (folder / "notes").read_text().split()
    assert notes.count("worker_exit") == notes.count("child_exit") == notes.count("pre_fork")
    assert notes[-1] == "on_exit"


@pytest.fixture(scope="module")
def theirs(start_shared: Start) -> Iterator[Server]:
    """The same served by Airflow's own arbiter."""
    server = start_shared(env={"AIRFLOW__API__GUNICORN_ARBITER": "airflow"})
    eventually(lambda: server.answers(HEALTH), what="Airflow's own arbiter serves", within_s=60)
    yield server
    server.end()


def test_our_arbiter_serves_and_says_so(ours: Server) -> None:
    """One event tells which arbiter serves, and the workers carry our titles."""
    (chosen,) = ours.events("arbiter.chosen")
    assert chosen.values["arbiter"] == "airflow_arbiter"
    assert len(ours.ready()) == 2


def test_airflows_own_arbiter_is_an_option_away(theirs: Server) -> None:
    """`[api] gunicorn_arbiter = airflow` leaves everything as it was, and says so."""
    (chosen,) = theirs.events("arbiter.chosen")
    assert chosen.values["arbiter"] == "airflow"
    eventually(lambda: theirs.process_count() == 2, what="both its workers are there")
    assert theirs.workers() == []
    assert theirs.events("worker.ready") == []


def test_every_answer_is_the_same_as_under_airflows_arbiter(
    ours: Server, theirs: Server, airflow_home: Path
) -> None:
    """Plugins, auth manager, UI and the execution app answer alike, with and without a login."""
    for is_user in (False, True):
        answers = [
            {path: ask(server.port, path, headers=user) for path in ENDPOINTS}
            for server in (ours, theirs)
            for user in [log_in(server.port, airflow_home) if is_user else {}]
        ]
        assert answers[0] == answers[1]
        assert answers[0]["/probe/hello"].status == 200
        assert answers[0]["/ui/config"].status == (200 if is_user else 401)


def test_hooks_of_a_configuration_file_are_called(ours: Server, tmp_path_factory: Any) -> None:
    """`GUNICORN_CMD_ARGS` may name a configuration file; Airflow's own server drops its hooks."""
    notes = next(Path(tmp_path_factory.getbasetemp()).glob("ours*/notes")).read_text().split()
    assert notes[0] == "on_starting"
    assert notes.count("post_fork") == notes.count("post_worker_init") >= 2
    assert "when_ready" in notes


def test_two_rollouts_under_load_lose_nothing(ours: Server) -> None:
    """Busy clients see two whole rollouts, and every request is answered with 200."""
    with Load(ours.port, path="/api/v2/version", clients=8) as load:
        for rollout in (1, 2):
            before = load.answered
            eventually(lambda: load.answered > before + 100, what="clients are busy")  # noqa: B023
            ours.send(signal.SIGHUP)
            ours.wait_event("rollout.completed", rollout, within_s=90)
        before = load.answered
        eventually(lambda: load.answered > before + 100, what="clients are busy after the rollouts")
    assert load.failures == {}
    assert [event.values["cause"] for event in ours.events("worker.exited")] == ["exit code 0"] * 4


# -- X-Forwarded-* -------------------------------------------------------------------------------------------

FORWARDED = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
NOT_TRUSTED = {"host": "127.0.0.1", "scheme": "http"}
TRUSTED = {"host": "203.0.113.7", "scheme": "https"}


def test_forwarded_headers_are_trusted_as_by_airflow_without_the_flag(ours: Server, theirs: Server) -> None:
    """Without `--proxy-headers` both do the same (Airflow 3.2.0 trusts 127.0.0.1, later ones nobody)."""
    seen = [ask(server.port, "/probe/client", headers=FORWARDED).json() for server in (ours, theirs)]
    assert seen[0] == seen[1]
    if AIRFLOW_VERSION >= (3, 3):
        assert seen[0] == NOT_TRUSTED


@pytest.mark.parametrize("allowed", [None, "203.0.113.1"])
def test_forwarded_headers_are_trusted_as_by_airflow_with_the_flag(
    start_command: Start, allowed: str | None
) -> None:
    """With `--proxy-headers` both do the same by `FORWARDED_ALLOW_IPS`, warning included."""
    env = {} if allowed is None else {"FORWARDED_ALLOW_IPS": allowed}
    servers = [
        start_command("--proxy-headers", env={**env, "AIRFLOW__API__GUNICORN_ARBITER": arbiter}, workers=1)
        for arbiter in ("airflow_arbiter", "airflow")
    ]
    for server in servers:
        eventually(lambda: server.answers(HEALTH), what="it serves", within_s=60)  # noqa: B023
    seen = [ask(server.port, "/probe/client", headers=FORWARDED).json() for server in servers]
    warned = ["Set FORWARDED_ALLOW_IPS to restrict trusted proxies" in server.log() for server in servers]
    assert seen[0] == seen[1]
    assert warned[0] == warned[1]
    if AIRFLOW_VERSION >= (3, 3):
        assert seen[0] == (TRUSTED if allowed is None else NOT_TRUSTED)
        assert warned[0] == (allowed is None)
    servers[1].end()


# -- the command's options -----------------------------------------------------------------------------------


def test_tls_with_a_client_certificate_and_a_trusted_proxy(start_command: Start, tmp_path: Path) -> None:
    """`--ssl-cert --ssl-key` serve HTTPS, `--ssl-ca-file --ssl-cert-reqs` ask for a client's certificate."""
    authority = trustme.CA()
    ours, theirs = authority.issue_cert("localhost"), authority.issue_cert("client@example.org")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    ours.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    mutual = AIRFLOW_VERSION >= (3, 3)
    server = start_command(
        f"--ssl-cert={tmp_path / 'certificate.pem'}",
        f"--ssl-key={tmp_path / 'key.pem'}",
        *([f"--ssl-ca-file={tmp_path / 'authority.pem'}", "--ssl-cert-reqs=required"] if mutual else []),
        "--proxy-headers",
        env={"FORWARDED_ALLOW_IPS": "127.0.0.1"},
        workers=1,
    )
    server.wait_ready(1)
    stranger, friend = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(stranger)
    authority.configure_trust(friend)
    theirs.configure_cert(friend)
    assert ask(server.port, "/probe/client", tls=friend).json() == {"host": "127.0.0.1", "scheme": "https"}
    assert ask(server.port, "/probe/client", tls=friend, headers=FORWARDED).json() == TRUSTED
    if mutual:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(server.port, HEALTH, tls=stranger)
    else:
        assert ask(server.port, HEALTH, tls=stranger).status == 200


def test_only_the_core_apps(start_command: Start) -> None:
    """`--apps core` leaves the execution app out; `--worker-timeout` holds."""
    server = start_command("--apps=core", "--worker-timeout=33", workers=1)
    server.wait_ready(1)
    assert server.answers(HEALTH)
    assert b"healthy" not in ask(server.port, "/execution/health").body
    assert "Timeout: 33" in server.log()


@pytest.mark.parametrize("suffix", ["yaml", "ini"])
def test_only_the_execution_app_and_a_log_configuration(
    start_command: Start, tmp_path: Path, suffix: str
) -> None:
    """`--apps execution` proves itself by that app's health; `--log-config` is read as uvicorn reads it."""
    log, config = tmp_path / "lines", tmp_path / f"log.{suffix}"
    handler = {"class": "logging.FileHandler", "filename": str(log), "formatter": "plain"}
    as_mapping = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "PLAIN %(name)s %(message)s"}},
        "handlers": {"file": handler},
        "loggers": {"airflow_arbiter": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    as_ini = (
        "[loggers]\nkeys=root,arbiter\n[handlers]\nkeys=file\n[formatters]\nkeys=plain\n"
        "[formatter_plain]\nformat=PLAIN %(name)s %(message)s\n"
        f"[handler_file]\nclass=FileHandler\nargs=('{log}',)\nformatter=plain\n"
        "[logger_root]\nhandlers=\nlevel=INFO\n"
        "[logger_arbiter]\nqualname=airflow_arbiter\nhandlers=file\nlevel=INFO\npropagate=0\n"
    )
    config.write_text(as_ini if suffix == "ini" else json.dumps(as_mapping))  # JSON is YAML
    server = start_command("--apps=execution", f"--log-config={config}", workers=1)
    server.wait_ready(1)
    assert ask(server.port, "/execution/health").json() == {"status": "healthy"}
    assert ask(server.port, HEALTH).status == 404
    assert "PLAIN airflow_arbiter worker.ready" in log.read_text()


@pytest.mark.timeout(450)
def test_a_daemon_is_started_and_stopped_by_its_pid_file(run_airflow: RunAirflow, tmp_path: Path) -> None:
    """
    `--daemon --pid --stdout --stderr`: detaches and reloads, twice, each time as the same process with the
    same files; its pid file goes with it, not with a worker.
    """
    port = free_port()
    files = {name: tmp_path / name for name in ("pid", "stdout", "stderr")}
    run_airflow(
        "api-server",
        "--daemon",
        f"--port={port}",
        "--workers=2",
        *(f"--{name}={path}" for name, path in files.items()),
        env={"AIRFLOW__API__SERVER_TYPE": "gunicorn"},
    )
    pid = int(
        eventually(lambda: files["pid"].exists() and files["pid"].read_text().strip(), what="a pid file")
    )
    master = psutil.Process(pid)

    def log() -> str:
        return files["stdout"].read_text() + files["stderr"].read_text()

    try:
        eventually(lambda: log().count("worker.ready") == 2, what="two workers", within_s=120)
        assert ask(port, HEALTH).status == 200
        for rollout in (1, 2):
            master.send_signal(signal.SIGHUP)
            eventually(lambda: log().count("rollout.completed") == rollout, what="a rollout", within_s=150)  # noqa: B023
            assert files["pid"].read_text().strip() == str(pid)
        assert log().count("reload.resumed") == 2
        assert str(Path(f"/proc/{pid}/fd/0").readlink()) == "/dev/null"
        assert ask(port, HEALTH).status == 200
        workers = master.children()
        master.send_signal(signal.SIGTERM)
        _gone, alive = psutil.wait_procs([master, *workers], timeout=30)
        assert not alive
    finally:
        for process in [master, *(master.children() if master.is_running() else [])]:
            if process.is_running():
                process.kill()
    assert not files["pid"].exists()
    assert log().count("cause='exit code 0'") == 6
    assert "Traceback" not in log()
    assert "worker.exit_hook_failed" not in log()


def test_our_options_of_the_api_section_hold(start_command: Start) -> None:
    """`[api]` options of ours reach the arbiter, and `GUNICORN_CMD_ARGS` wins over the command line."""
    server = start_command(
        env={
            "AIRFLOW__API__WORKER_BOOT_TIMEOUT": "0.01",
            "AIRFLOW__API__HEALTH_CHECK_PATH": "/probe/hello",
            "GUNICORN_CMD_ARGS": "--workers=1 --print-config",
        }
    )
    assert server.wait_exit(60) == 0
    shown = dict(
        line.split("=", 1) for line in server.log().replace(" ", "").splitlines() if line.count("=") == 1
    )
    assert shown["worker_boot_timeout"] == "0.01"
    assert shown["health_check_path"] == "/probe/hello"
    assert shown["workers"] == "1"
