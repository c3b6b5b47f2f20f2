"""What else a master lives through."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest
from harness.load import Load
from harness.starting import Start
from harness.waiting import eventually


def test_usr2_brings_a_second_master_up(start: Start) -> None:
    """SIGUSR2, also under `python -m`, and SIGTERM to the old master hand the service over without a loss."""
    server = start(workers=2)
    server.wait_ready(2)
    with Load(server.port, clients=4) as load:
        server.send(signal.SIGUSR2)
        new = eventually(lambda: _second_master(server.pid), what="a second master")
        eventually(lambda: _ready_workers(new) == 2, what="its workers are ready")
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
        before = load.answered
        eventually(lambda: load.answered > before + 100, what="the new master serves")
    assert load.failures == {}
    os.kill(new, signal.SIGTERM)
    eventually(lambda: not psutil.pid_exists(new), what="the new master has ended")


def test_usr2_that_fails_harms_nobody(start: Start, tmp_path: Path) -> None:
    """Where the new master cannot be started, the old one and its workers serve on."""
    release = tmp_path / "release"
    release.mkdir()
    command = [sys.executable, "-c", _START_IN, str(release)]
    server = start(command=command, workers=2)
    old = server.wait_ready(2)
    shutil.rmtree(release)
    with Load(server.port, clients=4) as load:
        server.send(signal.SIGUSR2)
        eventually(lambda: "reexec_failed" in server.log(), what="the failure is told")
        before = load.answered
        eventually(lambda: load.answered > before + 100, what="clients are served")
    assert load.failures == {}
    assert server.ready() == old


_START_IN = (
    "import os, sys; os.chdir(sys.argv.pop(1));"
    "from airflow_arbiter.__main__ import main; main(['faulty:app', *sys.argv[1:]])"
)


def test_a_log_directory_that_is_gone_harms_nobody(start: Start, tmp_path: Path) -> None:
    """SIGUSR1 and SIGHUP serve on where the log files cannot be opened anew."""
    folder = tmp_path / "logs"
    folder.mkdir()
    config = tmp_path / "conf.py"
    handler = {"class": "logging.FileHandler", "filename": str(folder / "log")}
    uses = {"handlers": ["file"], "level": "INFO"}
    wanted = {"version": 1, "handlers": {"file": handler}, "root": uses, "loggers": {"gunicorn.error": uses}}
    config.write_text(f"logconfig_dict = {wanted!r}")
    server = start(f"--config={config}", workers=2)
    server.wait_ready(2)
    shutil.rmtree(folder)
    with Load(server.port, clients=2) as load:
        for sig in (signal.SIGUSR1, signal.SIGHUP):
            server.send(sig)
            before = load.answered
            eventually(lambda: load.answered > before + 200, what="clients are served")  # noqa: B023
    assert load.failures == {}
    assert len(server.workers()) == 2


def test_a_first_start_that_can_make_no_worker_ends(start: Start, tmp_path: Path) -> None:
    """A hook that raises ends the first start with exit code 3."""
    path = tmp_path / "conf.py"
    path.write_text("def pre_fork(server, worker): raise RuntimeError('hook is broken')")
    assert start(f"--config={path}").wait_exit(20) == 3


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_standard_streams_stop_no_fork(start: Start, closed: int) -> None:
    """Started with its standard output or error closed, the server serves and replaces its workers."""
    code = (
        f"import os, sys; os.close({closed}); from airflow_arbiter.__main__ import main; main(sys.argv[1:])"
    )
    server = start(command=[sys.executable, "-c", code, "faulty:app"], workers=2)
    server.wait_ready(2)
    server.send(signal.SIGHUP)
    server.wait_ready(2, generation=2)


def test_unix_socket(start: Start, tmp_path: Path) -> None:
    """A Unix socket is served, and its file is gone after the stop."""
    path = tmp_path / "socket"
    server = start(f"--bind=unix:{path}", workers=1)
    server.wait_ready(1)
    assert path.exists()
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert not path.exists()


def test_pid_file(start: Start, tmp_path: Path) -> None:
    """The pid file names the master while it lives."""
    path = tmp_path / "pid"
    server = start(f"--pid={path}", workers=1)
    server.wait_ready(1)
    assert path.read_text().strip() == str(server.pid)
    server.send(signal.SIGTERM)
    server.wait_exit()
    assert not path.exists()


def _second_master(first: int) -> int:
    """The child of a master that is a master itself."""
    masters = [
        child.pid
        for child in psutil.Process(first).children()
        if "airflow-arbiter: master" in " ".join(child.cmdline())
    ]
    return masters[0] if masters else 0


def _ready_workers(master: int) -> int:
    return sum(" ".join(child.cmdline()).startswith("[ready]") for child in psutil.Process(master).children())
