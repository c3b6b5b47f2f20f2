"""A real server that is steered through its control socket: restart, pause, give up, scale, stop one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.codeapp import CodeApp, wait_answer
from harness.controlling import socket_of
from harness.load import Load
from harness.server import Server
from harness.starting import SetFault, Start
from harness.waiting import eventually

from airflow_arbiter import client
from airflow_arbiter.errors import CommandError

SICK = ("--health-check-path=/health", "--health-check-timeout=0.5")
Begin = Callable[..., Server]


@pytest.fixture
def begin(serve: Start, place: Path) -> Begin:
    """Start a server whose control socket has a place of its own."""

    def begin(*arguments: str, **options: Any) -> Server:
        env = {"XDG_RUNTIME_DIR": str(place), **options.pop("env", {})}
        return serve(*arguments, env=env, **options)

    return begin


def ask(server: Server, command: str) -> dict[str, Any]:
    return client.ask(socket_of(server), command)


def see(server: Server, part: str) -> Any:
    return client.report(socket_of(server))[part]


def wait_completed(server: Server, revision: int, within_s: float = 60.0) -> None:
    eventually(
        lambda: see(server, "rollout")["completed"] >= revision,
        what=f"revision {revision} is complete",
        within_s=within_s,
    )


def wait_phase(server: Server, phase: str) -> dict[str, Any]:
    """Wait until the rollout is there, and return how it stands."""
    return eventually(
        lambda: rollout if (rollout := see(server, "rollout"))["phase"] == phase else {},
        what=f"the rollout is {phase}",
    )


def drained(server: Server) -> list[tuple[int, str]]:
    """Who was asked to leave, in order, and why."""
    asked = [event.values for event in server.events("worker.drain_requested")]
    return [(int(values["age"]), values["reason"]) for values in asked]


def begin_and_hold(begin: Begin, set_fault: SetFault, *options: str) -> Server:
    """Start a server, and a restart in it whose first newcomer is not ready until it is healed."""
    server = begin(*SICK, *options)
    set_fault("health", "503")
    assert ask(server, "rollout restart") == {"revision": 1}
    eventually(lambda: see(server, "pool")["booting"] == 1, what="a newcomer boots")
    return server


# -- restart, and one worker
# -------------------------------------------------------------------------------------------------------


def test_a_restart_loses_nothing_and_replaces_everybody_in_order(begin: Begin) -> None:
    """Under load: oldest first, each once, for one reason, and the numbers are right."""
    server = begin()
    with Load(server.port, clients=8) as load:
        eventually(lambda: load.answered > 200, what="clients are busy")
        assert ask(server, "rollout restart") == {"revision": 1}
        wait_completed(server, 1)
    assert load.failures == {}
    assert drained(server) == [(age, "command") for age in (1, 2, 3, 4)]
    assert [worker["age"] for worker in see(server, "workers")] == [5, 6, 7, 8]
    counters = see(server, "counters")
    assert counters["replaced"] == [{"reason": "command", "outcome": "drained", "count": 4}]
    assert (counters["spawned"], counters["boot"]["count"], counters["drain"]["count"]) == (8, 8, 4)
    (requested,) = server.events("rollout.requested")
    assert (requested.values["by"], requested.values["revision"]) == ("command", "1")


def test_requests_of_workers_that_are_gone_are_counted(begin: Begin) -> None:
    """Each request once, whoever has answered it, those of a worker's last moments included."""
    server = begin(workers=2)
    with Load(server.port, clients=4, keep_alive=False) as load:
        ask(server, "rollout restart")
        wait_completed(server, 1)
    eventually(
        lambda: see(server, "counters")["requests"] >= load.answered, what="the living have told of theirs"
    )
    assert see(server, "counters")["requests"] == load.answered


def test_a_second_restart_while_one_runs_replaces_everybody_again(begin: Begin, set_fault: SetFault) -> None:
    """The newcomer of the first is replaced too, and both are complete in the end."""
    server = begin_and_hold(begin, set_fault)
    assert ask(server, "rollout restart") == {"revision": 2}
    set_fault("health", "")
    wait_completed(server, 2)
    assert min(worker["age"] for worker in see(server, "workers")) > 5


def test_one_worker_is_replaced(begin: Begin) -> None:
    """Its successor comes first, the others stay, and an unknown pid is refused."""
    server = begin()
    chosen = see(server, "workers")[2]
    ask(server, f"worker stop {chosen['pid']}")
    eventually(lambda: [w["age"] for w in see(server, "workers") if w["age"] > 4] == [5], what="a successor")
    server.wait_event("rollout.completed")
    assert drained(server) == [(chosen["age"], "command")]
    ready = [event for event in server.log().splitlines() if "worker.ready" in event or "drain_req" in event]
    assert "drain_req" in ready[-1], "it left before its successor was ready"
    with pytest.raises(CommandError, match=f"^no worker has the pid {chosen['pid']}$"):
        ask(server, f"worker stop {chosen['pid']}")


def test_a_restart_that_stalls_says_why(begin: Begin, set_fault: SetFault) -> None:
    """In the report as in the log, with the time of the next try; healed, it completes by itself."""
    server = begin_and_hold(begin, set_fault, "--worker-boot-timeout=2")
    stalled = wait_phase(server, "stalled")
    assert stalled["because"] == "worker 5 missed its boot deadline of 2 s: health check answered 503"
    assert (stalled["due"], stalled["replaced"], stalled["reasons"]) == (4, 0, ["command"])
    set_fault("health", "")
    wait_completed(server, 1)
    assert see(server, "rollout")["because"] == ""
    counters = see(server, "counters")
    assert counters["stalls"] == counters["boots_failed"] == len(server.events("rollout.stalled"))


# -- pause
# -------------------------------------------------------------------------------------------------------


def test_a_pause_holds_a_rollout_and_nothing_else(begin: Begin, set_fault: SetFault) -> None:
    """A newcomer under way finishes, nobody leaves for it, the dead are replaced; afterwards it goes on."""
    server = begin_and_hold(begin, set_fault)
    ask(server, "rollout pause")
    set_fault("health", "")
    eventually(lambda: see(server, "pool")["available"] == 5, what="the newcomer finishes")
    for _ in range(5):  # each look is a turn
        assert see(server, "rollout")["phase"] == "paused"
    assert drained(server) == []
    for left in (4, 4):  # the first is no loss: the newcomer has its place
        server.kill_a_worker()
        eventually(lambda: see(server, "pool")["available"] == left, what="the dead are replaced")  # noqa: B023
        eventually(lambda: see(server, "counters")["crashes"] > 0, what="that was noticed")
    eventually(lambda: see(server, "counters")["spawned"] == 6, what="one was missing")
    assert drained(server) == []
    ask(server, "rollout resume")
    wait_completed(server, 1)
    assert [age for age, _ in drained(server)] == [3, 4]
    assert server.events("rollout.paused")
    assert server.events("rollout.resumed")


def test_a_paused_server_stops(begin: Begin, set_fault: SetFault) -> None:
    """The end of the server is no replacing."""
    server = begin_and_hold(begin, set_fault)
    ask(server, "rollout pause")
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


# -- abort
# -------------------------------------------------------------------------------------------------------


def test_a_restart_that_is_given_up(begin: Begin, set_fault: SetFault) -> None:
    """The newcomer goes, the old ones stay, the wait is over; and the next restart is one like any other."""
    server = begin_and_hold(begin, set_fault, "--worker-boot-timeout=2")
    wait_phase(server, "stalled")
    ask(server, "rollout abort")
    rollout = wait_phase(server, "idle")
    assert (rollout["aborted"], rollout["completed"], rollout["due"], rollout["because"]) == (1, 0, 0, "")
    eventually(lambda: see(server, "pool")["live"] == 4, what="the newcomer has gone")
    assert [worker["age"] for worker in see(server, "workers")] == [1, 2, 3, 4]
    (told,) = server.events("rollout.aborted")
    assert (told.values["revision"], told.values["replaced"]) == ("1", "0")
    set_fault("health", "")
    assert ask(server, "rollout restart") == {"revision": 2}
    wait_completed(server, 2)


# -- scale
# -------------------------------------------------------------------------------------------------------


def test_scale(begin: Begin) -> None:
    """Up and down, under load and without a loss, and a reload keeps the number."""
    server = begin(workers=2)
    with Load(server.port, clients=4) as load:
        for number in (4, 1, 3):
            ask(server, f"scale {number}")
            eventually(
                lambda: (see(server, "pool")["available"], see(server, "pool")["live"]) == (number, number),  # noqa: B023
                what=f"{number} workers",
            )
        server.send(signal.SIGHUP)
        wait_completed(server, 1)
    assert load.failures == {}
    assert see(server, "pool")["available"] == 3


@pytest.mark.parametrize(("number", "why"), [("0", "below 1"), ("1001", "above 1000")])
def test_a_number_that_cannot_be_is_refused(begin: Begin, number: str, why: str) -> None:
    """In one line that says what is allowed; nothing changes."""
    server = begin(workers=1)
    with pytest.raises(
        CommandError, match=rf"^workers cannot be {number} \({why}\); allowed: a whole number"
    ):
        ask(server, f"scale {number}")
    assert see(server, "pool")["target"] == 1


# -- what makes no sense
# -------------------------------------------------------------------------------------------------------


def test_orders_that_make_no_sense_are_refused(begin: Begin) -> None:
    """Each in one line, and nothing changes."""
    server = begin(workers=1)
    with pytest.raises(CommandError, match=r"^replacing is not paused$"):
        ask(server, "rollout resume")
    with pytest.raises(CommandError, match=r"^there is no restart or reload to give up"):
        ask(server, "rollout abort")
    ask(server, "rollout pause")
    with pytest.raises(CommandError, match=r"^replacing is paused already$"):
        ask(server, "rollout pause")


def test_where_replacing_is_off_nobody_waits_for_it(begin: Begin) -> None:
    """With a batch of 0 a restart and a stop are refused, and a reload is given up once it is in."""
    server = begin("--worker-refresh-batch-size=0", workers=1)
    (worker,) = see(server, "workers")
    for command in ("rollout restart", f"worker stop {worker['pid']}"):
        with pytest.raises(CommandError, match=r"^replacing is off: worker_refresh_batch_size is 0"):
            ask(server, command)
    assert ask(server, "reload")["revision"] == 1
    rollout = eventually(
        lambda: seen if (seen := see(server, "rollout"))["aborted"] else {}, what="it is given up"
    )
    assert (rollout["phase"], rollout["completed"]) == ("idle", 0)
    assert rollout["because"] == "replacing is off: worker_refresh_batch_size is 0"


# -- over a reload of code
# -------------------------------------------------------------------------------------------------------


def test_a_pause_and_the_numbers_outlive_the_image(begin: Begin, code: CodeApp) -> None:
    """A new master of the same pid knows what was ordered and counted; the new code waits for the end."""
    server = begin(command=code.command(), env=code.environment(), workers=2)
    wait_answer(server, "one")
    ask(server, "rollout restart")
    wait_completed(server, 1)
    before = see(server, "counters")
    ask(server, "rollout pause")
    code.write("two")
    server.send(signal.SIGHUP)
    server.wait_event("reload.resumed", within_s=60)
    rollout = eventually(
        lambda: seen if (seen := see(server, "rollout"))["due"] else {}, what="the old ones are due"
    )
    assert (rollout["phase"], rollout["revision"], rollout["completed"]) == ("paused", 2, 1)
    assert rollout["reasons"] == ["generation"]
    after = see(server, "counters")
    assert (after["spawned"], after["replaced"]) == (before["spawned"], before["replaced"])
    assert after["requests"] >= before["requests"] > 0
    wait_answer(server, "one")
    ask(server, "rollout resume")
    wait_completed(server, 2)
    wait_answer(server, "two")
    assert see(server, "reload") == {
        "state": "idle", "failure": "", "asked": 1, "awaiting": [], "retry_in_s": None,
    }  # fmt: skip


def test_a_reload_of_bad_code_is_given_up(begin: Begin, code: CodeApp) -> None:
    """Whoever waits for its revision hears so, and why."""
    server = begin(command=code.command(), env=code.environment(), workers=1)
    code.write("two", at_import="raise RuntimeError('broken')")
    assert ask(server, "reload")["revision"] == 1
    rollout = eventually(
        lambda: seen if (seen := see(server, "rollout"))["aborted"] else {},
        what="it is given up",
        within_s=60,
    )
    assert (rollout["aborted"], rollout["completed"]) == (1, 0)
    assert "broken" in see(server, "reload")["failure"]


def test_orders_that_cross_have_each_their_own_end(begin: Begin, code: CodeApp) -> None:
    """A restart beside a reload of bad code is complete, and the reload never is."""
    server = begin(command=code.command(), env=code.environment(), workers=1)
    code.write("two", at_import="raise RuntimeError('broken')")
    code.hold("import", f"!{server.pid}")
    assert [ask(server, order)["revision"] for order in ("rollout restart", "reload", "rollout restart")] == [
        1, 2, 3,
    ]  # fmt: skip
    code.release("import")
    wait_completed(server, 3)
    server.wait_event("reload.refused")
    rollout = eventually(
        lambda: seen if not (seen := see(server, "rollout"))["open"] else {}, what="all have come to an end"
    )
    (given_up,) = rollout["given_up"]
    assert (rollout["completed"], given_up["revisions"]) == (3, [2])
    assert "broken" in given_up["because"]


def test_a_reload_that_waits_is_given_up(begin: Begin, code: CodeApp) -> None:
    """Code that is not healthy is not tried again, and its preflight ends."""
    options = ["--health-check-path=/health", "--worker-boot-timeout=30"]
    server = begin(*options, command=code.command(), env=code.environment(), workers=1)
    code.write("two", at_health="return 503")
    ask(server, "reload")
    eventually(lambda: see(server, "reload")["state"] == "checking", what="it is tried")
    ask(server, "rollout abort")
    assert see(server, "reload")["state"] == "idle"
    assert see(server, "rollout")["aborted"] == 1
    eventually(lambda: server.process_count() == 1, what="the preflight has ended")
    assert see(server, "server")["generation"] == 1


def test_the_next_code_replaces_who_was_spared(begin: Begin, code: CodeApp) -> None:
    """A rollout of new code that is given up leaves old workers, until the next one."""
    options = ["--health-check-path=/health", "--worker-boot-timeout=60"]
    server = begin(*options, command=code.command(), env=code.environment(), workers=2)
    ask(server, "rollout pause")
    code.write("two")
    ask(server, "reload")
    eventually(lambda: see(server, "rollout")["due"] == 2, what="the new code is in", within_s=60)
    ask(server, "rollout abort")
    ask(server, "rollout resume")
    for _ in range(5):  # each look is a turn
        assert see(server, "rollout")["phase"] == "idle"
    wait_answer(server, "one")
    code.write("three")
    ask(server, "reload")
    wait_completed(server, 2)
    wait_answer(server, "three")


def test_reloads_that_come_while_one_is_tried_are_counted_once(begin: Begin, code: CodeApp) -> None:
    """Also where the last of them is left to the new image; complete is only the last."""
    server = begin(command=code.command(), env=code.environment(), workers=1)
    code.write("two")
    code.hold("import", f"!{server.pid}")
    for revision in (1, 2, 3):
        assert ask(server, "reload")["revision"] == revision
        code.wait_held("import")
    code.write("three")
    code.release("import")
    wait_completed(server, 3)
    wait_answer(server, "three")
    assert see(server, "rollout")["revision"] == see(server, "reload")["asked"] == 3


def test_a_dead_worker_is_no_crash_of_the_numbers(begin: Begin) -> None:
    """A crash is counted as one, and so is who comes for it."""
    server = begin(workers=2)
    os.kill(see(server, "workers")[0]["pid"], signal.SIGKILL)
    eventually(lambda: see(server, "counters")["crashes"] == 1, what="it is counted")
    eventually(lambda: see(server, "pool")["available"] == 2, what="it is made good")
    counters = see(server, "counters")
    assert (counters["spawned"], counters["replaced"], counters["stalls"]) == (3, [], 0)
