"""A bad newcomer harms nobody: whatever new workers do, the old ones serve on."""

from __future__ import annotations

import signal
import time

import psutil
import pytest
from harness.controlling import run, socket_of
from harness.load import ClosedError, Load
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually

BOOT_TIMEOUT_S = 2
CLIENTS = 3

SICKNESSES = [
    pytest.param("startup", "fail", "exit code 3", id="startup-fails"),
    pytest.param("startup", "exit", "exit code 1", id="exits"),
    pytest.param("import", "interrupt", "exit code 3", id="interrupts-its-import"),
    pytest.param("startup", "sleep", "missed its boot deadline of 2 s", id="hangs-asleep"),
    pytest.param("startup", "busy", "missed its boot deadline of 2 s", id="hangs-busy"),
    pytest.param(
        "health", "503", "missed its boot deadline of 2 s: health check answered 503", id="health-503"
    ),
    pytest.param(
        "health", "sleep", "missed its boot deadline of 2 s: health check timed out", id="health-slow"
    ),
    pytest.param(
        "health", "raise", "missed its boot deadline of 2 s: health check raised", id="health-raises"
    ),
]


@pytest.mark.parametrize(("where", "what", "cause"), SICKNESSES)
def test_sick_newcomers_stall_the_rollout_and_harm_nobody(
    serve: Start, set_fault: SetFault, where: str, what: str, cause: str
) -> None:
    """No request fails, the old workers stay, the rollout stalls and says why, and completes once healed."""
    server = serve(
        f"--worker-boot-timeout={BOOT_TIMEOUT_S}", "--health-check-path=/health", "--health-check-timeout=0.5"
    )
    old = {worker.pid for worker in server.ready()}
    set_fault(where, what)
    with Load(server.port, clients=8, pause_s=0.002) as load:
        server.send(signal.SIGHUP)
        stalls = server.wait_event("rollout.stalled", 2)
        answered_by = {int(body) for body in set(load.bodies)}
        assert answered_by <= old, "a client reached a newcomer"
        assert {worker.pid for worker in server.ready()} == old
        set_fault(where, "")
        server.wait_event("rollout.completed", within_s=_seconds_to_recover(stalls[-1].values["retry_in_s"]))
    assert load.failures == {}
    assert cause in stalls[0].values["cause"]
    assert float(stalls[1].values["retry_in_s"]) == pytest.approx(2 * float(stalls[0].values["retry_in_s"]))
    assert old.isdisjoint(worker.pid for worker in server.wait_ready(4))


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        pytest.param("crash", "signal SIGSEGV", id="crash"),
        pytest.param("crash-later", "signal SIGSEGV", id="crash-0.7-s-later"),
        pytest.param("block", "missed its heartbeat deadline of 2 s", id="block-their-event-loop"),
    ],
)
def test_newcomers_that_go_wrong_at_their_first_request_harm_nobody_else(
    serve: Start, set_fault: SetFault, what: str, cause: str
) -> None:
    """No old worker leaves for them, what they held is all that is lost, and mended code goes in at once."""
    server = serve("--timeout=2", "--health-check-path=/health")
    old = {worker.pid for worker in server.ready()}
    set_fault("requests", what)
    with Load(server.port, clients=CLIENTS, pause_s=0.002) as load:
        server.send(signal.SIGHUP)
        stalls = server.wait_event("rollout.stalled", 3)
        assert old <= {worker.pid for worker in server.ready()}
        assert server.events("worker.drain_requested") == []
        set_fault("requests", "")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
    died = [event for event in server.events("worker.exited") if cause in event.values["cause"]]
    assert sum(load.failures.values()) <= CLIENTS * len(died), "more was lost than what they held"
    assert all(cause in stall.values["cause"] for stall in stalls)
    assert old.isdisjoint(worker.pid for worker in server.wait_ready(4))


def test_a_restart_that_is_waited_for_tells_of_newcomers_that_crash(
    serve: Start, set_fault: SetFault
) -> None:
    """Exit code 1 and the reason, though the old workers serve."""
    server = serve("--health-check-path=/health", workers=2)
    old = {worker.pid for worker in server.ready()}
    set_fault("requests", "crash")
    with Load(server.port, clients=CLIENTS, pause_s=0.002):
        ended = run("rollout", "restart", "--wait", "--socket", str(socket_of(server)))
    assert ended.returncode == 1
    assert "not complete: worker 3 signal SIGSEGV" in ended.stderr
    assert old <= {worker.pid for worker in server.ready()}


def test_a_worker_is_replaced_while_newcomers_are_sick(serve: Start, set_fault: SetFault) -> None:
    """A dead old worker is made good as soon as newcomers are well again, without a further signal."""
    server = serve("--worker-boot-timeout=2", "--health-check-path=/health")
    set_fault("health", "503")
    psutil.Process(server.ready()[0].pid).kill()
    server.wait_event("rollout.stalled")
    assert len(server.ready()) == 3
    set_fault("health", "")
    server.wait_ready(4)


def test_a_health_check_that_cancels_itself_does_not_end_the_asking(
    start: Start, set_fault: SetFault
) -> None:
    """A cancellation that the app lets out is an unhealthy answer; once it is well the worker is ready."""
    set_fault("health", "cancel")
    server = start("--health-check-path=/health", workers=1)
    server.wait_event("worker.unhealthy")
    set_fault("health", "")
    server.wait_ready(1)


def test_first_generation_listens_while_unhealthy(start: Start, set_fault: SetFault) -> None:
    """At the first start a sick health endpoint can be read; the workers count once it is well."""
    set_fault("health", "503")
    server = start("--health-check-path=/health", "--worker-boot-timeout=2")
    server.wait_event("worker.unhealthy", 4)
    assert server.get("/health")[0] == 503
    # Longer than the boot deadline: nobody is killed for an outage.
    eventually(lambda: len(server.workers()) == 4 and _youngest_uptime(server) > 3, what="older than 3 s")
    assert server.events("worker.exited") == []
    assert server.ready() == []
    set_fault("health", "")
    server.wait_ready(4)


def test_a_hung_worker_is_killed_and_replaced(serve: Start) -> None:
    """A worker whose event loop is blocked beyond `timeout` is killed; the others serve on."""
    server = serve("--timeout=2")
    with Load(server.port, clients=4, pause_s=0.01) as load:
        with pytest.raises((ConnectionError, ClosedError)):
            server.get("/block?s=60", timeout_s=20)
        (event,) = server.wait_event("worker.killed")
        assert event.values["cause"] == "missed its heartbeat deadline of 2 s"
        server.wait_ready(4)
        before = load.answered
        eventually(lambda: load.answered > before + 50, what="clients are served")
    killed = sum(load.failures.values())
    assert killed <= 4, "more was lost than the requests inside the killed worker"


def _seconds_to_recover(backoff_s: str) -> float:
    """One backoff, one attempt that began before the cure, a boot each; and the slow machine."""
    return 2 * float(backoff_s) + BOOT_TIMEOUT_S + 15


def _youngest_uptime(server: Server) -> float:
    return time.time() - max(float(psutil.Process(w.pid).create_time()) for w in server.workers())
