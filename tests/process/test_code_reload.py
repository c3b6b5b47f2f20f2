"""New code comes in while it serves: same master, same sockets, workers of the next generation."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from harness.codeapp import CodeApp, assert_gone, title, wait_answer
from harness.load import Client, Load
from harness.server import SeenEvent, Server, is_alive
from harness.starting import Start
from harness.waiting import eventually

RELOADS = int(os.environ.get("RELOADS", "12"))
"""Reloads in a row, after those to warm up."""


def _serve(start: Start, code: CodeApp, *arguments: str, workers: int = 2) -> Server:
    server = start(*arguments, command=code.command(), workers=workers)
    server.wait_ready(workers)
    return server


def test_new_code_is_served_after_sighup(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """The answer is new, the pool is new, the master is the same, nothing is lost or left behind."""
    pid_file = tmp_path / "pid"
    server = _serve(start, code, f"--pid={pid_file}")
    old = {worker.pid for worker in server.ready()}
    with Load(server.port, clients=4, pause_s=0.002) as load:
        code.write("second")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        wait_answer(server, "second")
    assert load.failures == {}
    assert load.bodies == {b"one", b"second"}
    assert old.isdisjoint(worker.pid for worker in server.wait_ready(2, generation=2))
    (resumed,) = server.events("reload.resumed")
    assert 0 < float(resumed.values["unsupervised_s"]) < 30
    assert title(server.pid) == "airflow-arbiter: master [codeapp:app]"
    assert pid_file.read_text().strip() == str(server.pid)
    assert server.process_count() == 2
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    (stopped,) = server.events("arbiter.stopped")
    first = server.events("worker.spawned")[0]
    assert float(stopped.values["uptime_s"]) > _seconds_between(first, stopped), (
        "from the first image's start"
    )
    assert stopped.values["workers_spawned"] == "4"
    assert not pid_file.exists()
    assert_gone(code.pids())


@pytest.mark.parametrize("place", ["configuration", "import"])
def test_every_signal_is_taken_in_order_while_code_is_loaded(
    start: Start, code: CodeApp, tmp_path: Path, place: str
) -> None:
    """One worker less, twice, which ends at 1, then four more: each counts, and none goes before another."""
    config = tmp_path / "conf.py"
    config.write_text("")
    server = _serve(start, code, f"--config={config}")
    sent = [signal.SIGTTOU] * 2 + [signal.SIGTTIN] * 4
    # By the new image itself: of two in a row from outside, the kernel may make one.
    sends = (
        f"for sig in {[int(sig) for sig in sent]}: os.getpid() == {server.pid} and os.kill({server.pid}, sig)"
    )
    if place == "import":
        code.write("two", at_import=sends)
    else:
        config.write_text(f"import os\n{sends}")
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    server.wait_ready(5, generation=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What a master holds that could grow."""

    fds: int
    threads: int
    processes: int
    uss_kib: int

    @classmethod
    def of(cls, pid: int) -> _Held:
        process = psutil.Process(pid)
        return cls(
            fds=process.num_fds(),
            threads=process.num_threads(),
            processes=len(process.children(recursive=True)),
            uss_kib=process.memory_full_info().uss // 1024,
        )


@pytest.mark.timeout(600)
def test_many_reloads_leave_nothing_behind(
    start: Start, code: CodeApp, record_property: Callable[[str, object], None]
) -> None:
    """Reload after reload under load: no descriptor, thread, process or memory more than after the first."""
    server = _serve(start, code)
    durations_s, held = [], []
    with Load(server.port, clients=4, pause_s=0.005) as load:
        for number in range(1, RELOADS + 3):
            code.write(f"answer {number}")
            sent_at = time.monotonic()
            server.send(signal.SIGHUP)
            server.wait_event("reload.resumed", number)
            durations_s.append(time.monotonic() - sent_at)
            server.wait_event("rollout.completed", number)
            server.wait_ready(2, generation=number + 1)
            eventually(lambda: not server.zombies(), what="no zombie")
            held.append(_Held.of(server.pid))
        wait_answer(server, f"answer {RELOADS + 2}")
    assert load.failures == {}
    warm, last = held[1], held[-1]
    gaps_s = [float(event.values["unsupervised_s"]) for event in server.events("reload.resumed")]
    for name, values in (("reload_s", durations_s), ("unsupervised_s", gaps_s)):
        record_property(name, f"median {statistics.median(values):.2f} max {max(values):.2f}")
    record_property("held", f"{warm} {last}")
    record_property("answered", load.answered)
    assert (last.fds, last.threads, last.processes) == (warm.fds, warm.threads, warm.processes)
    assert last.uss_kib < warm.uss_kib + 1024
    assert len(server.events("reload.started")) == RELOADS + 2


# -- beside other things that happen
# ---------------------------------------------------------------------------------------------


def test_a_reload_in_a_rollout(start: Start, code: CodeApp) -> None:
    """Asked for in the middle of a rollout, and again: the last code is served, nothing is lost."""
    server = _serve(start, code, workers=3)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        for number in (1, 2):
            code.write(f"answer {number}")
            server.send(signal.SIGHUP)
            server.wait_event("reload.resumed", number)
            server.wait_event("worker.drain_requested", number)
        wait_answer(server, "answer 2")
        server.wait_ready(3, generation=3)
        eventually(lambda: server.process_count() == 3, what="the old ones are gone")
    assert load.failures == {}


def test_asked_twice_quickly(start: Start, code: CodeApp) -> None:
    """Asked again while a preflight runs: it begins anew, and there is one new image."""
    server = _serve(start, code)
    code.hold("import", f"!{server.pid}")
    server.send(signal.SIGHUP)
    first = code.wait_held("import")
    code.write("two")
    server.send(signal.SIGHUP)
    eventually(lambda: code.wait_held("import") != first, what="a second preflight")
    assert_gone([first])
    code.release("import")
    server.wait_event("rollout.completed")
    wait_answer(server, "two")
    server.wait_ready(2, generation=2)
    assert len(server.events("reload.resumed")) == 1


def test_signals_that_come_with_the_verdict_are_heard(start: Start, code: CodeApp) -> None:
    """What comes just before the exec is done first, and costs no second preflight."""
    server = _serve(start, code)
    code.write("two", at_shutdown=f"_title() and _os.kill({server.pid}, {signal.SIGTTIN:d})")
    code.save(code.package / "__init__.py", (code.package / "__init__.py").read_text() + _TITLE)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    server.wait_ready(3, generation=2)
    assert len(server.events("reload.started")) == 1


_TITLE = """

def _title():
    from setproctitle import getproctitle
    return "preflight" in getproctitle()
"""


def test_what_a_configuration_starts_inherits_nothing(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """Nor in a new image: a program that stays would hold sockets open, with clients that nobody answers."""
    config, seen = tmp_path / "conf.py", tmp_path / "seen"
    config.write_text(_STARTS_A_PROGRAM.format(seen=str(seen)))
    server = start(f"--config={config}", command=code.command(), workers=1)
    server.wait_ready(1)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    first, *others = [line.split() for line in seen.read_text().splitlines()]
    ours = [words[1:] for words in others if words[0] == str(server.pid)]
    assert first[0] == str(server.pid)
    assert ours == [first[1:]]


_STARTS_A_PROGRAM = """
import os
import subprocess

subprocess.run("echo $PPID $(ls /proc/self/fd) >> {seen}", shell=True, close_fds=False, check=True)
"""


def test_scaling_survives_and_a_new_number_wins(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """What SIGTTIN has set stays over a new image; a configured number that has changed is taken."""
    config = tmp_path / "conf.py"
    config.write_text("workers = 1")
    server = start(f"--config={config}", command=code.command(), workers=None)
    server.wait_ready(1)
    server.send(signal.SIGTTIN)
    server.wait_ready(2)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    server.wait_ready(2, generation=2)
    config.write_text("workers = 3\nbind = '127.0.0.1:1'\npidfile = 'other.pid'")
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed", 2)
    server.wait_ready(3, generation=3)
    assert [event.values["option"] for event in server.events("reload.ignored")] == ["pidfile"]
    server.send_each(signal.SIGTTOU, times=2)
    server.wait_ready(1)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed", 3)
    server.wait_ready(1, generation=4)


def test_log_files_are_reopened_and_a_second_master_comes_up(
    start: Start, code: CodeApp, tmp_path: Path
) -> None:
    """SIGUSR1 and SIGUSR2 do after a reload what they did before."""
    log = tmp_path / "log"
    server = _serve(start, code, f"--error-logfile={log}")
    server.send(signal.SIGHUP)
    eventually(lambda: "rollout.completed" in log.read_text(), what="a reload")
    log.rename(tmp_path / "log.1")
    server.send(signal.SIGUSR1)
    eventually(log.exists, what="a new log file")
    code.write("second")
    with Load(server.port, clients=4, pause_s=0.002) as load:
        server.send(signal.SIGUSR2)
        new = eventually(lambda: _second_master(server.pid), what="a second master")
        eventually(lambda: load.bodies == {b"one", b"second"}, what="the second master serves")
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
        os.kill(new, signal.SIGHUP)  # promoted, it reloads as any other
        eventually(lambda: log.read_text().count("reload.resumed") == 1, what="it reloads")
    assert load.failures == {}
    os.kill(new, signal.SIGTERM)
    assert_gone({new, *code.pids()})


def _second_master(first: int) -> int:
    children = psutil.Process(first).children()
    masters = [child.pid for child in children if title(child.pid).endswith(" master [codeapp:app.2]")]
    return masters[0] if masters else 0


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams_stop_no_reload(start: Start, code: CodeApp, closed: int) -> None:
    """No descriptor of ours gets the number of a closed stream, and with it what the app prints."""
    close = f"import os, sys; os.close({closed}); from airflow_arbiter.__main__ import main; main()"
    server = start(command=[sys.executable, "-c", close, *code.command()[3:]], workers=2)
    server.wait_ready(2)
    for number in (1, 2):
        code.write(f"answer {number}", at_import=f"os.write({closed or 1}, b'printed')")
        server.send(signal.SIGHUP)
        wait_answer(server, f"answer {number}")
    server.wait_ready(2, generation=3)
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


# -- what a worker lives through meanwhile
# ---------------------------------------------------------------------------------------------


def test_a_drain_goes_on_over_the_exec(start: Start, code: CodeApp) -> None:
    """A worker that answers a long request when its master becomes another image finishes it, asked once."""
    server = _serve(start, code, "--graceful-timeout=40", workers=1)
    (old,) = server.ready()
    answers: list[tuple[int, bytes]] = []
    client = threading.Thread(
        target=lambda: answers.append(Client(server.port, keep_alive=False).get("/hold?15"))
    )
    client.start()
    eventually(lambda: _connections(old.pid), what="it holds a request")
    for number in (1, 2):
        code.write(f"answer {number}")
        server.send(signal.SIGHUP)
        server.wait_event("reload.resumed", number)
        server.wait_event("worker.drain_requested")
    assert is_alive(old.pid)
    client.join()
    assert answers == [(200, b"one")]
    server.wait_ready(1, generation=3)
    eventually(lambda: server.process_count() == 1, what="it has left")
    asked = [event.values["pid"] for event in server.events("worker.drain_requested")]
    assert asked.count(str(old.pid)) == 1
    assert server.events("worker.killed") == []
    exits = {event.values["pid"]: event.values["cause"] for event in server.events("worker.exited")}
    assert exits[str(old.pid)] == "exit code 0"


def _connections(pid: int) -> int:
    connections = psutil.Process(pid).net_connections("tcp")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in connections)


def test_a_hung_worker_is_killed_after_the_exec(start: Start, code: CodeApp) -> None:
    """One that hangs, or dies, while the new image loads is dealt with as soon as somebody looks."""
    server = _serve(start, code, "--timeout=2", workers=3)
    hung, dead, _ = server.ready()
    code.hold("import", str(server.pid))
    server.send(signal.SIGHUP)
    code.wait_held("import")
    os.kill(hung.pid, signal.SIGSTOP)
    os.kill(dead.pid, signal.SIGKILL)
    code.release("import")
    (killed,) = server.wait_event("worker.killed")
    assert killed.values["pid"] == str(hung.pid)
    assert killed.values["cause"] == "missed its heartbeat deadline of 2 s"
    server.wait_ready(3, generation=2)
    causes = {event.values["pid"]: event.values["cause"] for event in server.events("worker.exited")}
    assert causes[str(dead.pid)] == "signal SIGKILL, perhaps out of memory"


def _seconds_between(first: SeenEvent, second: SeenEvent) -> float:
    moments = [datetime.fromisoformat(event.values["timestamp"][:-1]) for event in (first, second)]
    return (moments[1] - moments[0]).total_seconds()
