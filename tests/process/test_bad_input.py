"""Options that cannot be: nothing starts half-configured, and nothing that serves is harmed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from harness.load import Load
from harness.server import free_port
from harness.starting import HARNESS, Start
from harness.waiting import eventually

import airflow_arbiter

ROOT = str(Path(airflow_arbiter.__file__).parent.parent)
BAD_LOG = '{"version": 1, "handlers": {"h": {"class": "no.such.Handler"}}}'


def run(
    folder: Path, *arguments: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[int]]:
    """Start a server that is not going to serve; also return the processes that it has left behind."""
    started = subprocess.Popen(
        [sys.executable, "-m", "airflow_arbiter", "faulty:app", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"},
            "PYTHONPATH": f"{ROOT}{os.pathsep}{HARNESS}",
            "FAULTS": str(folder),
            **environment,
        },
        start_new_session=True,
    )
    try:
        stdout, stderr = started.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    left = [pid for pid in psutil.pids() if _session(pid) == started.pid]
    return subprocess.CompletedProcess([], started.returncode, stdout, stderr), left


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


# -- at the start
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--workers=999999999999"], {}, "workers cannot be '999999999999' (above 1000)"),
        (["--timeout=1e308"], {}, "timeout cannot be '1e308' ("),
        (["--worker-refresh-interval=nan"], {}, "worker_refresh_interval cannot be 'nan' (not a number)"),
        (["--umask=99999999999999999999"], {}, "umask cannot be '99999999999999999999' (above 511)"),
        (["--user=99999999999999"], {}, "user cannot be '99999999999999' (above 4294967294)"),
        (["--backlog=99999999999999"], {}, "backlog cannot be '99999999999999' (above 2147483647)"),
        (["--log-level=loud"], {}, "loglevel cannot be 'loud' (not a level)"),
        (["--log-file=none/server.log"], {}, "the log cannot be set up"),
        (["--log-config-json=log.json"], {}, "the log cannot be set up"),
        (["--worker-tmp-dir=none"], {}, "worker_tmp_dir cannot be 'none' (no such directory)"),
        (["--certfile=log.json"], {}, "certfile cannot be 'log.json' ("),
        (["--chdir=log.json"], {}, "chdir cannot be 'log.json' (no such directory)"),
        (["--env==x"], {}, "raw_env cannot be ['=x'] (a variable without a name)"),
        (["--name=a\nb"], {}, r"proc_name cannot be 'a\nb' (it has control characters)"),
        ([os.fsdecode(b"--name=\xff")], {}, "is not UTF-8"),
        (["--reload"], {}, "reload cannot be True"),
        (["--termination-grace-period=2"], {}, "termination_grace_period cannot be '2' (below 3)"),
        (
            ["--min-ready-seconds=60", "--worker-refresh-interval=60"],
            {},
            "min_ready_seconds cannot be 60.0 (workers would be due before they count)",
        ),
        ([], {"WEB_CONCURRENCY": "many"}, "environment: WEB_CONCURRENCY cannot be 'many' ("),
        ([], {"WEB_CONCURRENCY": "-1"}, "environment: WEB_CONCURRENCY cannot be '-1' (below 0)"),
        ([], {"WEB_CONCURRENCY": "0"}, "workers cannot be 0 (below 1)"),
        ([], {"FORWARDED_ALLOW_IPS": "all"}, "environment: FORWARDED_ALLOW_IPS cannot be 'all' ("),
        ([], {"GUNICORN_CMD_ARGS": "'"}, 'GUNICORN_CMD_ARGS cannot be "\'" (No closing quotation)'),
    ],
    ids=str,
)
def test_nothing_starts_half_configured(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    """What cannot be is one line and exit code 2: no address is bound, no file and no process is left."""
    (tmp_path / "log.json").write_text(BAD_LOG)
    port, pid_file = free_port(), tmp_path / "server.pid"
    ended, left = run(tmp_path, f"--bind=127.0.0.1:{port}", f"--pid={pid_file}", *arguments, **environment)
    assert (ended.stdout, ended.returncode, left) == ("", 2, [])
    assert ended.stderr.startswith("airflow-arbiter: error: ")
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not pid_file.exists()


def test_address_that_is_taken_leaves_no_pid_file(tmp_path: Path) -> None:
    """A server that cannot bind ends with 1, and takes its pid file with it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"--bind=127.0.0.1:{taken.getsockname()[1]}"
        ended, left = run(tmp_path, bind, "--pid=server.pid")
    assert (ended.returncode, left) == (1, [])
    assert "Connection in use" in ended.stderr
    assert not (tmp_path / "server.pid").exists()


def test_pid_file_of_another_server_stays(tmp_path: Path) -> None:
    """Where the pid file names a living process, the server ends with 1 and says why; the file stays."""
    (tmp_path / "server.pid").write_text(f"{os.getpid()}\n")
    ended, left = run(tmp_path, "--bind=127.0.0.1:0", "--pid=server.pid")
    assert (ended.returncode, left) == (1, [])
    assert f"Already running on PID {os.getpid()}" in ended.stderr
    assert (tmp_path / "server.pid").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("hook", ["on_starting", "when_ready"])
def test_hook_that_raises_at_the_start_ends_it_clean(tmp_path: Path, hook: str) -> None:
    """A start that a hook breaks off ends with 1 and the hook's error, and leaves no file behind."""
    (tmp_path / "gunicorn.conf.py").write_text(f"def {hook}(server): raise RuntimeError('hook is broken')")
    ended, left = run(tmp_path, "--bind=unix:server.sock", "--pid=server.pid")
    assert (ended.returncode, left) == (1, [])
    assert ended.stderr.count("arbiter.start_failed") == 1
    assert "hook is broken" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "gunicorn.conf.py"
    ]


# -- by SIGHUP
# --------------------------------------------------------------------------------------------------

BAD_RELOADS = {
    "workers cannot be 0": "workers = 0",
    "workers cannot be 1000000": "workers = 10**6",
    "timeout cannot be 1e+308": "timeout = 1e308",
    "worker_boot_timeout cannot be nan": "worker_boot_timeout = float('nan')",
    "min_ready_seconds cannot be 9.0": "min_ready_seconds = 9\nworker_refresh_interval = 9",
    "termination_grace_period cannot be 1": "termination_grace_period = 1",
    "worker_tmp_dir cannot be 'none'": "worker_tmp_dir = 'none'",
    "loglevel cannot be 'loud'": "loglevel = 'loud'",
    "no.such.Handler": f"logconfig_dict = {BAD_LOG}",
    "certfile cannot be 'none.pem'": "certfile = 'none.pem'",
    "reload cannot be True": "reload = True",
    "config: ": "workers = 10**5000, int('9' * 5000)",
}


def test_a_reload_that_cannot_be_changes_nothing(start: Start, tmp_path: Path) -> None:
    """Each is refused with the reason; workers and working directory stay; the next good one holds."""
    config = tmp_path / "conf.py"
    config.write_text("raw_env = ['KEPT=1']")
    server = start(f"--config={config}", workers=None, env={"WEB_CONCURRENCY": "2"})
    old = server.wait_ready(2)
    directory = psutil.Process(server.pid).cwd()
    with Load(server.port, clients=2) as load:
        for number, (says, text) in enumerate(BAD_RELOADS.items(), 1):
            config.write_text(f"chdir = {str(tmp_path)!r}\n{text}")
            server.send(signal.SIGHUP)
            server.wait_event("reload.refused", number)
            assert says in server.log()
            assert server.ready() == old
            assert psutil.Process(server.pid).cwd() == directory
        config.write_text("workers = 3")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        server.wait_ready(3, generation=2)
    assert load.failures == {}


def test_what_does_not_fit_is_lowered_at_the_start_and_by_reload(start: Start, tmp_path: Path) -> None:
    """Both ways lead to the same values, each told; a stop then fits into what the platform gives."""
    config = tmp_path / "conf.py"
    config.write_text("worker_refresh_batch_size = 9\nthreads = 4")
    server = start(f"--config={config}", "--graceful-timeout=60", workers=2)
    server.wait_ready(2)
    (lowered,) = server.wait_event("settings.lowered")
    assert lowered.values["option"] == "worker_refresh_batch_size"
    assert lowered.values["lowered_to"] == "2"
    (unheeded,) = server.wait_event("settings.ignored")
    assert unheeded.values["option"] == "threads"
    config.write_text("threads = 4\ntermination_grace_period = 4\nworker_boot_timeout = 4")
    server.send(signal.SIGHUP)
    seen = [event.values for event in server.wait_event("settings.lowered", 3)[1:]]
    assert {values["option"]: values["lowered_to"] for values in seen} == {
        "health_check_timeout": "4.0",
        "graceful_timeout": "2",
    }
    server.wait_event("rollout.completed")
    server.wait_ready(2, generation=2)
    assert server.events("settings.ignored") == [unheeded]  # told already
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /hold?s=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(
            lambda: any(
                connection.raddr and connection.raddr.port == client.getsockname()[1]
                for worker in server.ready()
                for connection in psutil.Process(worker.pid).net_connections("tcp")
            ),
            what="a worker holds the request",
        )
        server.send(signal.SIGTERM)
        assert server.wait_exit(4) == 0
