"""What systemd hears from a real server, in order, and the sockets that it gives."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from harness.codeapp import CodeApp, wait_answer
from harness.load import Client, Load
from harness.real_systemd import RealSystemd
from harness.server import Server, free_port
from harness.starting import SetFault, Start
from harness.systemd import Activation, Systemd
from harness.waiting import eventually

STATES = ("READY", "RELOADING", "STOPPING", "MAINPID")
FULL = "STATUS=2 of 2 workers available"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """Somebody who hears."""
    heard = Systemd(tmp_path / "notify")
    yield heard
    heard.close()


@pytest.fixture
def activation(tmp_path: Path) -> Iterator[Activation]:
    """A socket that servers are given."""
    given = Activation(tmp_path)
    yield given
    given.close()


SecondMaster = Callable[[Server], int]


@pytest.fixture
def second_master() -> Iterator[SecondMaster]:
    """Start a second master beside a server's, and return its pid; it is ended after the test."""
    started: list[int] = []

    def start_one(server: Server) -> int:
        server.send(signal.SIGUSR2)
        started.append(eventually(lambda: _find_master(server.pid), what="a second master"))
        return started[-1]

    yield start_one
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)


def _find_master(pid: int) -> int:
    titles = {child.pid: " ".join(child.cmdline()) for child in psutil.Process(pid).children()}
    return next((pid for pid, text in titles.items() if "master" in text), 0)


def _serve_code(start: Start, code: CodeApp, systemd: Systemd, *arguments: str, **more: str) -> Server:
    server = start(
        *arguments,
        command=code.command(),
        env={**code.environment(), **systemd.environment(**more)},
        workers=2,
    )
    systemd.wait(FULL)
    return server


def test_a_service_from_its_start_to_its_end(start: Start, systemd: Systemd, set_fault: SetFault) -> None:
    """Ready with the first healthy worker, then the pool in words, then the end; said by the master alone."""
    set_fault("health", "503")
    server = start("--health-check-path=/health", env=systemd.environment(), workers=2)
    eventually(lambda: server.answers("/"), what="it listens")
    systemd.wait("STATUS=0 of 2 workers available")
    assert systemd.said(*STATES) == []
    set_fault("health", "")
    ready = systemd.wait("READY=1")
    assert server.events("worker.ready")
    systemd.wait(FULL)
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert systemd.said(*STATES) == ["READY=1", "STOPPING=1"]
    assert systemd.said("STATUS")[-1] == "STATUS=Stopping; workers left: 0"
    assert {message.pid for message in systemd.messages} == {server.pid} == {ready.pid}


def test_a_reload_within_the_master(start: Start, systemd: Systemd) -> None:
    """Without preload it is over at once, in the time that systemd asks for; then the rollout is told."""
    server = start(env=systemd.environment(), workers=2)
    systemd.wait(FULL)
    before_us = time.monotonic_ns() // 1000
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    systemd.wait(FULL, count=2)
    assert systemd.said(*STATES) == ["READY=1", "RELOADING=1", "READY=1"]
    (stamp,) = systemd.said("MONOTONIC_USEC")
    assert before_us < int(stamp.partition("=")[2]) < time.monotonic_ns() // 1000
    reloading = systemd.wait("RELOADING=1")
    assert stamp in reloading.lines
    told = [line for line in systemd.said("STATUS") if "replacing: " in line]
    assert any("replacing: 1 of 2" in line for line in told)


def test_a_reload_of_the_masters_code(start: Start, code: CodeApp, systemd: Systemd) -> None:
    """It is over when the new image serves; the same process has said all of it."""
    server = _serve_code(start, code, systemd, WATCHDOG_USEC="20000000")
    code.write("second")
    server.send(signal.SIGHUP)
    wait_answer(server, "second")
    systemd.wait(FULL, count=2)
    assert systemd.said(*STATES) == ["READY=1", "RELOADING=1", "READY=1"]
    assert any("trying new code" in line for line in systemd.said("STATUS"))
    # 120 s is the time that a boot may take; the new image wants to be watched as ever.
    assert systemd.said("WATCHDOG_USEC") == ["WATCHDOG_USEC=140000000", "WATCHDOG_USEC=20000000"]
    silence, usual = systemd.wait("WATCHDOG_USEC=140000000"), systemd.wait("WATCHDOG_USEC=20000000")
    assert silence.at < systemd.wait("READY=1", count=2).at
    assert "WATCHDOG=1" in usual.lines
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert {message.pid for message in systemd.messages} == {server.pid}


def test_a_reload_that_is_refused(start: Start, code: CodeApp, systemd: Systemd) -> None:
    """The service is ready again, and the status says why it has no new code."""
    server = _serve_code(start, code, systemd)
    code.write("bad", at_import="import nosuch")
    server.send(signal.SIGHUP)
    ready = systemd.wait("READY=1", count=2)
    assert systemd.said(*STATES) == ["READY=1", "RELOADING=1", "READY=1"]
    (status,) = (line for line in ready.lines if line.startswith("STATUS="))
    assert status.startswith("STATUS=2 of 2 workers available; reload failed: ")
    assert "No module named 'nosuch'" in status
    code.write("good")
    server.send(signal.SIGHUP)
    systemd.wait(FULL, count=2)
    assert systemd.said("STATUS")[-1] == FULL


def test_a_master_without_configuration_keeps_its_service(
    start: Start, code: CodeApp, systemd: Systemd, tmp_path: Path
) -> None:
    """What cannot watch its workers is not watched either, and says so; healed, it is again."""
    config = code.folder / "conf.py"
    config.write_text("")
    server = _serve_code(start, code, systemd, f"--config={config}", WATCHDOG_USEC="20000000")
    code.hold("interpreter", str(server.pid))
    code.write("second")
    server.send(signal.SIGHUP)
    code.wait_held("interpreter")
    config.write_text("raise RuntimeError('half')")
    code.release("interpreter")
    told = systemd.wait("WATCHDOG_USEC=0")
    assert told.lines[:2] == (
        "READY=1",
        "STATUS=2 workers serve; reload failed: " + told.lines[1].split(": ", 1)[1],
    )
    assert "half" in told.lines[1]
    config.write_text("")
    server.send(signal.SIGHUP)
    wait_answer(server, "second")
    systemd.wait(FULL, count=2)
    assert systemd.said("WATCHDOG_USEC")[-1] == "WATCHDOG_USEC=20000000"
    assert systemd.said(*STATES)[:2] == ["READY=1", "RELOADING=1"]
    assert systemd.said(*STATES)[-1] == "READY=1"


def test_pings_come_from_the_loop(start: Start, systemd: Systemd) -> None:
    """At half the interval, more often than an idle loop would wake, and not while the loop stands still."""
    server = start(env=systemd.environment(WATCHDOG_USEC="600000"), workers=1)
    systemd.wait("WATCHDOG=1", count=12)
    pings = [message.at for message in systemd.messages if "WATCHDOG=1" in message.lines]
    assert statistics.median(later - sooner for sooner, later in itertools.pairwise(pings)) < 0.45
    server.send(signal.SIGSTOP)
    eventually(lambda: psutil.Process(server.pid).status() == psutil.STATUS_STOPPED, what="it is stopped")
    stopped_at = time.monotonic()
    assert server.answers("/")
    eventually(lambda: time.monotonic() > stopped_at + 1.5, what="some intervals")
    assert not [message for message in systemd.messages if message.at > stopped_at]
    server.send(signal.SIGCONT)
    eventually(lambda: systemd.messages[-1].at > stopped_at, what="it is alive again")


def test_a_watchdog_that_is_meant_for_another(start: Start, systemd: Systemd) -> None:
    """Only who is watched pings."""
    server = start(env=systemd.environment(WATCHDOG_USEC="100000", WATCHDOG_PID="1"), workers=1)
    systemd.wait("READY=1")
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert systemd.said("WATCHDOG", "WATCHDOG_USEC") == []


def test_a_second_master_takes_the_service_over(
    start: Start, systemd: Systemd, second_master: SecondMaster
) -> None:
    """After SIGUSR2 the old one speaks until it leaves, and names the new one, which speaks from then on."""
    server = start(env=systemd.environment(WATCHDOG_USEC="2000000"), workers=2)
    systemd.wait(FULL)
    with Load(server.port, clients=2) as load:
        new = second_master(server)
        eventually(lambda: len(psutil.Process(new).children()) == 2, what="it has workers")
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
        named = systemd.wait(f"MAINPID={new}")
        assert named.pid == server.pid
        ready = systemd.wait("READY=1", count=2)
    assert load.failures == {}
    assert ready.pid == new
    assert ready.at > named.at
    assert not [m for m in systemd.messages if m.pid == new and m.at < named.at]
    systemd.wait("WATCHDOG=1", count=len(systemd.said("WATCHDOG")) + 2)
    os.kill(new, signal.SIGTERM)
    eventually(lambda: not psutil.pid_exists(new), what="the new master has ended")
    assert systemd.said(*STATES) == ["READY=1", f"MAINPID={new}", f"MAINPID={new}", "READY=1", "STOPPING=1"]


def test_nobody_hears(start: Start, tmp_path: Path) -> None:
    """A socket that is not there harms nobody, and is told once."""
    server = start(env={"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "200000"}, workers=1)
    server.wait_ready(1)
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    assert len(server.events("systemd.unreachable")) == 1
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


COMMAND = (sys.executable, "-m", "airflow_arbiter", "faulty:app", "--workers=1", "--bind=127.0.0.1:1")


def test_a_socket_of_systemds(activation: Activation, systemd: Systemd, faults: Path) -> None:
    """It serves on the socket that it is given, over a reload too, and nobody is refused while it is away."""
    env = {**systemd.environment(), "FAULTS": str(faults)}
    with Load(activation.port, clients=1) as load:
        first = activation.start(*COMMAND, env=env)
        systemd.wait("STATUS=1 of 1 workers available")
        before = load.answered
        first.send(signal.SIGHUP)
        first.wait_event("rollout.completed")
        eventually(lambda: load.answered > before, what="clients are served")
        first.send(signal.SIGTERM)
        assert first.wait_exit() == 0
        activation.start(*COMMAND, env=env)
        before = load.answered
        eventually(lambda: load.answered > before + 10, what="the next server serves those who waited")
    assert load.failures == {}


def test_a_second_master_on_a_socket_of_systemds(
    activation: Activation, systemd: Systemd, second_master: SecondMaster, faults: Path
) -> None:
    """SIGUSR2 hands it on, too, and for whom the watchdog is meant, also over a reload after that."""
    env = {**systemd.environment(WATCHDOG_USEC="2000000"), "FAULTS": str(faults)}
    server = activation.start(*COMMAND, "--preload", env=env)
    systemd.wait("STATUS=1 of 1 workers available")
    with Load(activation.port, clients=1) as load:
        new = second_master(server)
        eventually(lambda: len(psutil.Process(new).children()) == 1, what="it has a worker")
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert systemd.wait("READY=1", count=2).pid == new
        systemd.wait("WATCHDOG=1", count=len(systemd.said("WATCHDOG")) + 2)
        os.kill(new, signal.SIGHUP)
        systemd.wait("WATCHDOG_USEC=2000000")
        systemd.wait("WATCHDOG=1", count=len(systemd.said("WATCHDOG")) + 2)
        before = load.answered
        eventually(lambda: load.answered > before + 10, what="the new master serves")
    assert load.failures == {}
    os.kill(new, signal.SIGTERM)
    eventually(lambda: not psutil.pid_exists(new), what="the new master has ended")


def test_the_file_of_a_socket_of_systemds_stays(
    systemd: Systemd, second_master: SecondMaster, faults: Path, tmp_path: Path
) -> None:
    """Neither the first master nor the second removes it: systemd goes on listening there."""
    path = tmp_path / "socket"
    activation = Activation(tmp_path, path)
    try:
        server = activation.start(*COMMAND, env={**systemd.environment(), "FAULTS": str(faults)})
        systemd.wait("STATUS=1 of 1 workers available")
        new = second_master(server)
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert systemd.wait("READY=1", count=2).pid == new
        assert path.is_socket()
        os.kill(new, signal.SIGTERM)
        eventually(lambda: not psutil.pid_exists(new), what="the new master has ended")
        assert path.is_socket()
    finally:
        activation.close()


# -- the real one
# -------------------------------------------------------------------------------------------------------

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"


@pytest.fixture
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSystemd]:
    """A systemd that runs."""
    manager = RealSystemd(tmp_path_factory.mktemp("sd"))  # short: it puts sockets there
    yield manager
    manager.close()


def _install(real: RealSystemd, code: CodeApp, port: int, *arguments: str) -> None:
    """Install the units that we ship, with an app of ours and a short patience."""
    line = [*code.command(), "--workers=2", f"--bind=127.0.0.1:{port}", "--health-check-path=/health"]
    environment = {**code.environment(), "HOME": str(code.folder)}
    service = (UNITS / "airflow-arbiter.service").read_text()
    changes = {
        r"(User|Group|Environment\w*|NoNew\w+|Private\w+|Protect\w+)=.*\n": "",
        r"ExecStart=.*": f"ExecStart={shlex.join([*line, *arguments])}",
        r"WatchdogSec=.*": "WatchdogSec=2",
        r"RestartSec=.*": "RestartSec=0",
    }
    for pattern, text in changes.items():
        service = re.sub(f"^{pattern}", text, service, flags=re.MULTILINE)
    lines = "".join(f'Environment="{name}={value}"\n' for name, value in environment.items())
    for stream in ("Output", "Error"):
        lines += f"Standard{stream}=append:{real.service_log}\n"
    real.add("aa.service", service.replace("[Install]", f"{lines}\n[Install]"))
    socket_unit = (UNITS / "airflow-arbiter.socket").read_text()
    real.add("aa.socket", socket_unit.replace("ListenStream=8080", f"ListenStream=127.0.0.1:{port}"))


def test_systemd_itself_understands(real: RealSystemd, code: CodeApp) -> None:
    """Start, a reload that takes longer than the watchdog's patience, one that is refused, a hang, a stop."""
    port = free_port()
    _install(real, code, port)
    real.run("start", "aa.service")
    assert real.show("aa", "ActiveState") == "active"
    assert Client(port, keep_alive=False, timeout_s=30).get("/") == (200, b"one")
    main = real.show("aa", "MainPID")

    with Load(port, clients=2) as load:
        code.write("second", at_import="time.sleep(4)")
        # It would wait for the end of the reload where our word of it comes before the end of ExecReload.
        real.run("reload", "--no-block", "aa.service")
        eventually(lambda: real.show("aa", "StatusText").endswith("trying new code"), what="it is told")
        assert real.show("aa", "ActiveState") == "reloading"
        eventually(lambda: b"second" in load.bodies, what="new code is served")
        eventually(lambda: real.show("aa", "StatusText") == FULL.partition("=")[2], what="all is replaced")
        assert real.show("aa", "ActiveState") == "active"
    assert load.failures == {}

    code.write("bad", at_import="import nosuch")
    real.run("reload", "aa.service")
    eventually(lambda: "No module named 'nosuch'" in real.show("aa", "StatusText"), what="why it is refused")
    assert real.show("aa", "ActiveState") == "active"
    assert (real.show("aa", "MainPID"), real.show("aa", "NRestarts")) == (main, "0")

    code.write("third")
    real.run("kill", "--signal=SIGSTOP", "--kill-who=main", "aa.service")
    eventually(lambda: real.show("aa", "NRestarts") == "1", what="the watchdog starts it anew")
    eventually(lambda: real.show("aa", "StatusText") == FULL.partition("=")[2], what="it serves again")
    real.run("stop", "aa.service")
    assert (real.show("aa", "ActiveState"), real.show("aa", "Result")) == ("inactive", "success")


def test_restarts_behind_a_socket_refuse_nobody(real: RealSystemd, code: CodeApp) -> None:
    """Connections wait in systemd's socket while the service is started, stopped and started again."""
    port = free_port()
    _install(real, code, port)
    real.run("start", "aa.socket")
    with Load(port, clients=2) as load:
        for _ in range(3):
            real.run("restart", "aa.service")
            before = load.answered
            eventually(lambda: load.answered > before + 10, what="clients are served")  # noqa: B023
        real.run("stop", "aa.service")
        before = load.answered
        eventually(lambda: load.answered > before + 10, what="a client starts the service")
    assert load.failures == {}
    real.run("stop", "aa.socket", "aa.service")
