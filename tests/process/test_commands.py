"""The commands of ``airflow-arbiter`` for a real server that runs, with their exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from harness.codeapp import CodeApp
from harness.controlling import CONSOLE, run, socket_of
from harness.load import Load
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True, kw_only=True)
class Steered:
    """A server, and the commands for it."""

    server: Server
    path: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run(*words, "--socket", str(self.path))

    def say(self, *words: str) -> str:
        """What a command prints that goes well."""
        ended = self.run(*words)
        assert ended.returncode == 0, ended
        return ended.stdout

    def refuse(self, *words: str) -> str:
        """The line that a command prints that does not, after what has happened before it was clear."""
        ended = self.run(*words)
        assert (ended.returncode, ended.stdout) == (1, ""), ended
        *_, line = ended.stderr.splitlines()
        assert "Traceback" not in ended.stderr
        return line.removeprefix("airflow-arbiter: error: ")

    def report(self) -> Any:
        return json.loads(self.say("status", "--output", "json"))

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.server.ready()]


@pytest.fixture
def steered(serve: Start, place: Path) -> Steered:
    """A server of two workers that is well."""
    path = place / "named"
    server = serve(
        f"--control-socket={path}", "--health-check-path=/health", "--worker-boot-timeout=2", workers=2
    )
    return Steered(server=server, path=path)


# -- looking
# -------------------------------------------------------------------------------------------------------


def test_status(steered: Steered) -> None:
    """In each form, the same truth."""
    report = steered.report()
    assert report["server"]["pid"] == steered.server.pid
    assert report["server"]["control_socket"] == str(steered.path)
    assert (report["pool"]["target"], report["pool"]["available"], report["pool"]["live"]) == (2, 2, 2)
    assert report["rollout"]["phase"] == "idle"
    assert [worker["pid"] for worker in report["workers"]] == steered.pids()
    assert [worker["state"] for worker in report["workers"]] == ["available"] * 2
    assert [worker["private_bytes"] > 1_000_000 for worker in report["workers"]] == [True, True]
    assert yaml.safe_load(steered.say("status", "-o", "yaml"))["pool"] == report["pool"]
    names, *rows = [line.split() for line in steered.say("status", "-o", "plain").splitlines()]
    assert [dict(zip(names, row, strict=True))["pid"] for row in rows] == list(map(str, steered.pids()))
    families = text_string_to_metric_families(steered.say("status", "-o", "prometheus"))
    (available,) = (
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "airflow_arbiter_workers" and sample.labels == {"state": "available"}
    )
    assert available == 2
    table = steered.say("status")
    assert "2 of 2 available, 2 live" in table
    assert all(str(pid) in table for pid in steered.pids())


@pytest.mark.parametrize(
    ("redirection", "because"),
    [
        (">/dev/full", "it could not be written: No space left on device"),
        (">&-", "there is no standard output to write to"),
    ],
)
@pytest.mark.parametrize("output", ["table", "json"])
def test_nowhere_to_write(steered: Steered, redirection: str, because: str, output: str) -> None:
    """One line, exit code 1."""
    line = [*CONSOLE, "status", "--output", output, "--socket", str(steered.path)]
    ended = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *line], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (1, f"airflow-arbiter: error: {because}\n")


def test_status_of_a_stop(steered: Steered) -> None:
    """How far it is can be asked until the last worker has left, and who waits for a rollout is told."""
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(steered.server.get, "/hold?s=20")
        eventually(
            lambda: (
                steered.report()["workers"][0]["in_flight"] or steered.report()["workers"][1]["in_flight"]
            ),
            what="the request is there",
        )
        steered.server.send(signal.SIGTERM)
        eventually(lambda: steered.report()["server"]["stopping"], what="it is stopping")
        assert sum(worker["in_flight"] for worker in steered.report()["workers"]) == 1
        assert "the server is stopping" in steered.refuse("rollout", "status", "--wait")
        assert steered.refuse("scale", "3")
        assert answer.result(60)[0] == 200
    assert steered.server.wait_exit() == 0
    assert "no server answers" in steered.refuse("status")


def test_watch(steered: Steered) -> None:
    """On a terminal it is drawn again and again, until somebody has seen enough."""
    with _on_a_terminal("status", "--watch", "--socket", str(steered.path)) as (process, screen):
        eventually(lambda: str(steered.pids()[0]) in screen(), what="a worker is shown")
        steered.say("scale", "3")
        third = steered.server.wait_ready(3)[-1].pid
        eventually(lambda: str(third) in screen(), what="the new one is shown")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert "Traceback" not in screen()


def test_watch_until_the_server_has_gone(steered: Steered) -> None:
    """Then it says so, in one line."""
    line = [*CONSOLE, "status", "--watch", "--socket", str(steered.path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Server ")
        steered.server.send(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.count("\n") == 1
    assert "no server answers" in error or "has not answered" in error


def test_watch_for_programs(steered: Steered) -> None:
    """Each look is one line of JSON."""
    line = [*CONSOLE, "status", "--watch", "--output", "json", "--socket", str(steered.path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert [report["server"]["pid"] for report in seen] == [steered.server.pid] * 2


@contextlib.contextmanager
def _on_a_terminal(*words: str) -> Iterator[Any]:
    """Run a command on a terminal of its own; the process, and what was drawn so far."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    drawn = b""

    def screen() -> str:
        nonlocal drawn
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(ours, 65536):
                drawn += data
        return drawn.decode(errors="replace")

    env = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
    with subprocess.Popen([*CONSOLE, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        try:
            yield process, screen
        finally:
            process.kill()
            screen()
            os.close(ours)


def test_one_of_two_servers(serve: Start, place: Path) -> None:
    """It must be said which; the only one needs no word."""
    env = {"XDG_RUNTIME_DIR": str(place)}
    here = {**env, "TMPDIR": str(place), "AIRFLOW_HOME": str(place)}
    first = serve(env=env, workers=1)
    socket_of(first)
    assert str(first.pid) in run("status", env=here).stdout
    second = serve(env=env, workers=1)
    socket_of(second)
    ended = run("status", env=here)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"{min(first.pid, second.pid)}" in ended.stderr
    assert f"{max(first.pid, second.pid)}" in ended.stderr
    report = json.loads(run("status", "--pid", str(second.pid), "-o", "json", env=here).stdout)
    assert report["server"]["pid"] == second.pid


# -- rolling
# -------------------------------------------------------------------------------------------------------


def test_restart(steered: Steered) -> None:
    """It waits until all workers are others, tells how it goes, and costs nobody anything."""
    old = steered.pids()
    with Load(steered.server.port, clients=4, pause_s=0.002) as load:
        ended = steered.run("rollout", "restart", "--wait", "--timeout", "60")
    assert load.failures == {}
    assert (ended.returncode, ended.stdout) == (0, "complete: 2 of 2 workers available\n")
    assert "progressing" in ended.stderr
    assert set(old).isdisjoint(steered.pids())
    assert steered.say("rollout", "status", "--wait") == "complete: 2 of 2 workers available\n"
    assert steered.say("rollout", "status").startswith("idle")


def test_a_restart_that_is_held_up(steered: Steered, set_fault: SetFault) -> None:
    """Exit code 1, with the reason; it can be given up, and goes on by itself otherwise."""
    old = steered.pids()
    set_fault("health", "503")
    because = steered.refuse("rollout", "restart", "--wait")
    assert because.startswith("not complete: ")
    assert "health check answered 503" in because
    assert steered.run("rollout", "status").returncode == 1
    assert steered.pids() == old
    steered.say("rollout", "abort")
    assert "given up" in steered.refuse("rollout", "abort") or "no restart" in steered.refuse(
        "rollout", "abort"
    )
    set_fault("health", "")
    assert steered.say("rollout", "restart", "--wait")
    assert set(old).isdisjoint(steered.pids())


def test_a_restart_that_takes_too_long(steered: Steered, set_fault: SetFault) -> None:
    """Exit code 1 after the time that was given, and it goes on."""
    steered.say("rollout", "pause")
    assert "--timeout" not in steered.refuse("rollout", "restart", "--wait", "--timeout", "0.5")
    assert "not complete within 0.5 s" in steered.refuse("rollout", "status", "--wait", "--timeout", "0.5")
    old = steered.pids()
    steered.say("rollout", "resume")
    assert steered.say("rollout", "status", "--wait")
    assert set(old).isdisjoint(steered.pids())
    assert "not paused" in steered.refuse("rollout", "resume")


@pytest.mark.parametrize(
    ("command", "because"),
    [
        ("rollout restart", "has not answered within 0.5 s; it may still do what it was told"),
        ("reload", "has not answered within 0.5 s; it may still do what it was told"),
        ("rollout status", "not complete within 0.5 s: the server has not answered"),
    ],
)
def test_a_server_that_stands_still(steered: Steered, command: str, because: str) -> None:
    """The time that was given holds for the first question too, and what is not known is said."""
    steered.server.send(signal.SIGSTOP)
    try:
        assert steered.refuse(*command.split(), "--wait", "--timeout", "0.5").endswith(because)
    finally:
        steered.server.send(signal.SIGCONT)


def test_scale_and_stop(steered: Steered) -> None:
    """The number of workers is what it is said to be, and one is exchanged without a gap."""
    steered.say("scale", "3")
    steered.server.wait_ready(3)
    victim = steered.pids()[1]
    with Load(steered.server.port, clients=4, pause_s=0.002) as load:
        steered.say("worker", "stop", str(victim))
        eventually(
            lambda: victim not in steered.pids() and len(steered.pids()) == 3, what="another is in its place"
        )
    assert load.failures == {}
    assert "no worker has the pid 1" in steered.refuse("worker", "stop", "1")
    steered.say("scale", "1")
    steered.server.wait_ready(1)
    assert "workers cannot be" in steered.refuse("scale", "0")


# -- reloading
# -------------------------------------------------------------------------------------------------------


def test_reload(start: Start, code: CodeApp, place: Path) -> None:
    """It waits over the exec for the new code, and says what is wrong with code that is not taken in."""
    path = place / "named"
    server = start(f"--control-socket={path}", command=code.command(), workers=2)
    server.wait_ready(2)
    steered = Steered(server=server, path=path)
    code.write("second")
    assert steered.say("reload", "--wait") == "complete: 2 of 2 workers available\n"
    assert [worker.generation for worker in server.ready()] == [2, 2]
    assert server.get() == (200, b"second")
    code.write("third", at_import="raise RuntimeError('broken for a test')")
    assert "broken for a test" in steered.refuse("reload", "--wait")
    assert server.get() == (200, b"second")
    code.write("fourth")
    code.hold("import", str(server.pid))
    assert "not complete within 3 s" in steered.refuse("reload", "--wait", "--timeout", "3")
    code.release("import")
    assert steered.say("rollout", "status", "--wait")
    assert server.get() == (200, b"fourth")


def test_progress_on_a_terminal(steered: Steered) -> None:
    """There is a bar."""
    words = ("rollout", "restart", "--wait", "--socket", str(steered.path))
    with _on_a_terminal(*words) as (process, screen):
        eventually(lambda: "complete: 2 of 2" in screen(), what="it is over", within_s=60)
        assert process.wait(30) == 0
    assert "/2" in screen()


# -- doctor
# -------------------------------------------------------------------------------------------------------


def test_doctor(steered: Steered) -> None:
    """It looks at a server of its own, and leaves the one that runs and nothing else."""
    before = steered.pids()
    ended = run("doctor", "faulty:app", "--graceful-timeout=20", env=_where(steered.path.parent))
    assert (ended.returncode, ended.stderr) == (0, "")
    said = dict(line.split(maxsplit=1) for line in ended.stdout.splitlines())
    assert list(said) == [
        *("measured", "workers", "memory", "worker_boot_timeout", "startup", "termination_grace_period")
    ]
    assert "at least 22 s" in said["termination_grace_period"]
    assert steered.pids() == before


def test_doctor_of_a_grace_period_that_is_too_short(steered: Steered) -> None:
    """It is said of what is configured, not of what a server makes of it."""
    words = ("doctor", "--termination-grace-period=10", "--graceful-timeout=60", "faulty:app")
    ended = run(*words, env=_where(steered.path.parent))
    assert ended.stdout.splitlines()[-1].split(maxsplit=1)[1] == (
        "62 s, instead of 10 s: graceful_timeout is 60 s, and the server takes 2 s itself; "
        "as it is, the drain is cut to 8 s"
    )


def test_doctor_leaves_all_else_alone(serve: Start, place: Path, tmp_path: Path) -> None:
    """No daemon, and nothing of the configuration's: no log, no collector, no hook of the master's."""
    runtime = dict.fromkeys(("XDG_RUNTIME_DIR", "TMPDIR", "AIRFLOW_HOME"), str(place))  # where it looks
    server = serve(env=runtime, workers=1)
    collector = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    collector.bind(("127.0.0.1", 0))
    collector.settimeout(0)
    config = tmp_path / "conf.py"
    config.write_text(
        _REACHING_OUT.format(folder=str(tmp_path), statsd=f"127.0.0.1:{collector.getsockname()[1]}")
    )
    ended = run("doctor", "faulty:app", "-c", str(config), env={**_where(place), **runtime})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"beside pid {server.pid}, whose " in ended.stdout
    assert server.answers()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("made")] == ["made-by-worker"]
    with collector, pytest.raises(BlockingIOError):
        collector.recv(1)


_REACHING_OUT = """
from pathlib import Path

daemon = True
bind = "127.0.0.1:1"
errorlog = accesslog = "{folder}/made-log"
pidfile = "{folder}/made-pid"
statsd_host = "{statsd}"


def on_starting(_):
    Path("{folder}/made-by-hook").touch()


when_ready = on_exit = on_starting


def post_worker_init(_):
    Path("{folder}/made-by-worker").touch()
"""


@pytest.mark.parametrize(
    ("sig", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGKILL, -9)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_doctor_leaves_nothing_behind(place: Path, sig: signal.Signals, code: int) -> None:
    """However it ends, its server ends too, which has its own session, and is the first that memory costs."""
    words = ("doctor", "faulty:app", "--min-ready-seconds=600")
    environment = {**os.environ, **_where(place), "TMPDIR": str(place)}
    with subprocess.Popen([*CONSOLE, *words], env=environment, stderr=subprocess.PIPE) as asked:
        try:
            found = psutil.Process(asked.pid)
            family = eventually(
                lambda: seen if len(seen := found.children(recursive=True)) == 2 else [], what="a worker"
            )
            assert [os.getsid(process.pid) for process in family] == [family[0].pid] * 2
            assert {Path(f"/proc/{process.pid}/oom_score_adj").read_text() for process in family} == {
                "1000\n"
            }
            eventually(lambda: list(place.glob("arbiter*/control")), what="a control socket")
            asked.send_signal(sig)
            assert asked.wait(60) == code
            eventually(lambda: not any(process.is_running() for process in family), what="all have gone")
        finally:
            asked.terminate()
    if sig != signal.SIGKILL:
        assert not list(place.glob("arbiter*"))


def test_doctor_of_what_does_not_start(steered: Steered) -> None:
    """What it has said is shown."""
    ended = run("doctor", "no_such_module:app", env=_where(steered.path.parent))
    assert (ended.returncode, ended.stdout) == (1, "")
    *log, line = ended.stderr.splitlines()
    assert line == "airflow-arbiter: error: the server did not come up; what it has said is above"
    assert any("no_such_module" in told for told in log)


def _where(faults: Path) -> dict[str, str]:
    """The environment in which a server finds the app."""
    folder = Path(__file__).parents[1] / "harness"
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "FAULTS": str(faults),
    }
