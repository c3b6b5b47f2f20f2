"""What the machine does to a server: full disks, a jumping clock, read-only mounts, unread pipes."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.isolation import (
    READ_ONLY_STEPS,
    SERVE,
    Clock,
    Disk,
    Pipe,
    as_user,
    in_mount_namespace,
    in_shell,
    small_disk,
)
from harness.load import Load
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually

# -- full disks ----------------------------------------------------------------------------------------------


def test_a_full_disk_under_logs_and_heartbeats_harms_nobody(start: Start, tmp_path: Path) -> None:
    """No request fails and a rollout completes on a full disk; once there is space again, the logs go on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    # Large enough that what is logged after it was freed does not fill it again.
    command = in_mount_namespace(small_disk(folder, "size=32m"))
    server = start(*_all_on(folder), command=command, workers=2)
    server.wait_ready(2)
    disk = Disk(server, folder)
    access = disk.path / "access.log"
    with Load(server.port, clients=4, pause_s=0.002) as load:
        eventually(lambda: access.stat().st_size > 0, what="the access log is written")
        disk.fill()
        full = access.stat().st_size
        _roll(server, load, generation=2)
        assert access.stat().st_size - full < 4096, "the disk was not full"
        disk.free()
        eventually(lambda: access.stat().st_size > full + 8192, what="the access log goes on")
        _roll(server, load, generation=3)
        eventually(
            lambda: (
                "rollout.completed" in [line["event"] for line in _whole_lines(disk.path / "error.log")][-5:]
            ),
            what="the error log goes on",
        )
    assert load.failures == {}
    assert _whole_lines(access)[-1]["generation"] == 3
    for path in (access, disk.path / "error.log"):
        lines = path.read_text().splitlines()
        assert len(lines) == len(set(lines)), "a line was written twice"


def test_no_worker_can_be_made_without_a_heartbeat_file_and_the_rollout_waits(
    start: Start, tmp_path: Path
) -> None:
    """Where not even an empty file can be made, the old workers serve on, and it heals by itself."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = in_mount_namespace(small_disk(folder, "size=1m,nr_inodes=20"))
    server = start(f"--worker-tmp-dir={folder}", command=command, workers=2)
    old = server.wait_ready(2)
    disk = Disk(server, folder)
    disk.fill_with_files()
    with Load(server.port, clients=4, pause_s=0.002) as load:
        server.send(signal.SIGHUP)
        stalls = server.wait_event("rollout.stalled", 2)
        assert server.ready() == old
        disk.free()
        server.wait_event("rollout.completed")
    assert load.failures == {}
    assert "No space left on device" in stalls[0].values["cause"]


@pytest.mark.parametrize("streams", ["1", "2", "1 2"])
def test_standard_streams_on_a_full_device_harm_nobody(start: Start, streams: str) -> None:
    """Logs that cannot be printed cost no request, no rollout, and no exit code."""
    redirect = "exec " + " ".join(f"{stream}>/dev/full" for stream in streams.split())
    server = start("--access-logfile=-", command=in_shell(redirect), workers=2)
    server.wait_ready(2)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        _roll(server, load, generation=2)
    assert load.failures == {}
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


# -- the clock -----------------------------------------------------------------------------------------------


def test_a_wall_clock_that_jumps_moves_nothing(start: Start, tmp_path: Path) -> None:
    """Hours and days forth and back, at rest and in rollouts: nobody is killed, nothing stalls."""
    clock = Clock(tmp_path / "clock")
    server = start(
        "--timeout=3",
        "--graceful-timeout=10",
        "--worker-refresh-interval=3600",
        "--access-logfile=-",
        env=clock.env,
        workers=2,
    )
    server.wait_ready(2)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        old = server.ready()
        for offset in ("+2d", "-5h", "+0"):
            clock.set(offset)
            _wait_answers(load, 200)
        assert server.ready() == old, "workers are due by the monotonic clock"
        for number, offset in enumerate(("+30d", "-30d", "+1h", "-3h"), start=1):
            server.send(signal.SIGHUP)
            server.wait_event("worker.drain_requested", 2 * number - 1)
            clock.set(offset)
            server.wait_event("rollout.completed", number)
    assert load.failures == {}
    assert server.events("worker.killed") == []
    assert server.events("rollout.stalled") == []
    days = {line["timestamp"][:10] for line in _whole_lines(server.log_path)}
    assert len(days) >= 4, "the clock did not jump"


# -- nothing to write to -------------------------------------------------------------------------------------


def test_read_only_root_and_a_uid_that_nobody_knows(start: Start, tmp_path: Path) -> None:
    """With one directory to write to and no name, a server starts, serves, rolls, and stops with 0."""
    command = in_mount_namespace(
        *READ_ONLY_STEPS,
        "mount -t tmpfs -o mode=1777 writable /mnt",
        "mkdir -m 777 /mnt/faults",
        "unset HOME",
        "cd /",
        command=[*as_user(54321), *SERVE],
    )
    server = start(command=command, env={"TMPDIR": "/mnt", "FAULTS": "/mnt/faults"}, workers=2)
    server.wait_ready(2)
    assert "\nUid:\t54321\t54321" in Path(f"/proc/{server.pid}/status").read_text()
    with Load(server.port, clients=4, pause_s=0.002) as load:
        _roll(server, load, generation=2)
    assert load.failures == {}
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


# -- pipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [1, 2])
def test_a_pipe_whose_reader_is_gone_harms_nobody(start: Start, tmp_path: Path, stream: int) -> None:
    """Where the reader of the log has died, no request fails, a rollout completes, and the exit code is 0."""
    pipe = Pipe(tmp_path / "pipe")
    command = in_shell(f"exec {stream}>{pipe.path}")
    with _reading(pipe):
        server = start("--access-logfile=-", command=command, workers=2)
        server.wait_ready(2)
    pipe.close()
    with Load(server.port, clients=4, pause_s=0.002) as load:
        _roll(server, load, generation=2)
    assert load.failures == {}
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


def test_a_pipe_whose_reader_stood_still_is_written_to_again(start: Start, tmp_path: Path) -> None:
    """A log reader that stands still holds the server up; once it reads again, all is as it was."""
    pipe = Pipe(tmp_path / "pipe")
    with _reading(pipe):
        server = start("--timeout=2", command=in_shell(f"exec 2>{pipe.path}"), workers=2)
        server.wait_ready(2)
    server.send(signal.SIGHUP)
    # Each of its lines is shorter than the pipe, and a rollout has more than fit.
    eventually(lambda: _writes(server.pid, stream=2), what="the master waits for the reader", within_s=60)
    with _reading(pipe):
        server.wait_ready(2, generation=2)
        with Load(server.port, clients=4, pause_s=0.002) as load:
            _roll(server, load, generation=3)
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert load.failures == {}


# -- the operator's own log configuration --------------------------------------------------------------------


@pytest.mark.parametrize("where", ["filter", "handler"])
def test_a_log_that_raises_harms_nobody(start: Start, tmp_path: Path, where: str) -> None:
    """A filter or handler of the operator's that raises at each line ends neither the master nor a worker."""
    config = tmp_path / "conf.py"
    config.write_text(_RAISING_LOG.format(where=where))
    server = start("--access-logfile=-", f"--config={config}", workers=2)
    server.wait_ready(2)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        _roll(server, load, generation=2)
        server.kill_a_worker()
        eventually(lambda: [w.age for w in server.ready()] == [4, 5], what="the dead worker is replaced")
    assert sum(load.failures.values()) <= 4, "more was lost than the requests inside the killed worker"
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert f"{where} is broken" in server.log()


def test_a_log_directory_that_is_gone_fails_no_request(start: Start, tmp_path: Path) -> None:
    """Where the log files cannot be opened anew, neither the app's lines nor ours cost a request."""
    folder = tmp_path / "logs"
    folder.mkdir()
    server = start(f"--error-logfile={folder}/error", f"--access-logfile={folder}/access", workers=2)
    server.wait_ready(2)
    (folder / "error").unlink()
    (folder / "access").unlink()
    folder.rmdir()
    with Load(server.port, path="/log", clients=4, pause_s=0.01) as load:
        server.kill_a_worker()
        eventually(lambda: [w.age for w in server.ready()] == [2, 3], what="the dead worker is replaced")
        before = dict(load.failures)
        _wait_answers(load, 200)
        folder.mkdir()
        eventually((folder / "error").exists, what="the log goes on")
    assert load.failures == before
    assert set(before) <= {"reset", "closed"}


_RAISING_LOG = """
import logging

class Filter(logging.Filter):
    def filter(self, record):
        raise RuntimeError("filter is broken")

class Handler(logging.StreamHandler):
    def handle(self, record):
        raise RuntimeError("handler is broken")

logconfig_dict = {{
    "version": 1,
    "filters": {{"filter": {{"()": Filter}}}},
    "handlers": {{
        "filter": {{"class": "logging.StreamHandler", "filters": ["filter"]}},
        "handler": {{"()": Handler}},
    }},
    "root": {{"level": "INFO", "handlers": ["{where}"]}},
    "loggers": {{"gunicorn.error": {{"level": "INFO", "handlers": [], "propagate": True}}}},
}}
"""


# -- helpers -------------------------------------------------------------------------------------------------


def _all_on(disk: Path) -> list[str]:
    return [
        f"--access-logfile={disk}/access.log",
        f"--error-logfile={disk}/error.log",
        f"--worker-tmp-dir={disk}",
    ]


def _roll(server: Server, load: Load, *, generation: int) -> None:
    """Roll under load that is really there, without a log that could tell of it."""
    _wait_answers(load, 100)
    server.send(signal.SIGHUP)
    server.wait_ready(2, generation=generation)
    eventually(lambda: server.process_count() == 2, what="the old workers are gone")
    _wait_answers(load, 100)


def _wait_answers(load: Load, count: int) -> None:
    before = load.answered
    eventually(lambda: load.answered > before + count, what=f"{count} more answers")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without those that a full disk has cut."""
    lines = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


@contextlib.contextmanager
def _reading(pipe: Pipe) -> Iterator[None]:
    """Read what comes, so that nobody waits."""
    is_over = threading.Event()

    def read() -> None:
        while not is_over.wait(0.005):
            pipe.drain()

    thread = threading.Thread(target=read)
    thread.start()
    yield
    is_over.set()
    thread.join()


def _writes(pid: int, *, stream: int) -> bool:
    """Whether a process waits in write(2) to one of its standard streams."""
    descriptor = Path(f"/proc/{pid}/syscall").read_text().split()[1:2]
    return descriptor == [hex(stream)] and Path(f"/proc/{pid}/wchan").read_text() != ""
