"""What each command of the control socket does."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.ctl.protocol import make_request
from harness.reports import REPORT, as_json

from airflow_arbiter.app import AirflowGunicornApp
from airflow_arbiter.dispatch import Dispatcher
from airflow_arbiter.errors import CommandError
from airflow_arbiter.meeting import Peer
from airflow_arbiter.report import Report
from airflow_arbiter.steering import Steering

PEER = Peer(pid=7, uid=1000)


class Wheel(Steering):
    """Remembers how it was turned."""

    def __init__(self) -> None:
        self.control_socket = ""
        self.turned: list[tuple[object, ...]] = []

    def report(self) -> Report:
        return REPORT

    def restart(self) -> int:
        self.turned.append(("restart",))
        return 6

    def reload(self) -> int:
        self.turned.append(("reload",))
        return 7

    def pause(self) -> None:
        self.turned.append(("pause",))

    def resume(self) -> None:
        raise CommandError("it is not paused")

    def abort(self) -> None:
        self.turned.append(("abort",))

    def scale(self, workers: int) -> None:
        self.turned.append(("scale", workers))

    def stop_worker(self, pid: int) -> None:
        self.turned.append(("stop_worker", pid))


@pytest.fixture
def wheel() -> Wheel:
    return Wheel()


@pytest.fixture
def ask(wheel: Wheel) -> Any:
    """Give a command, and return the data or the error."""
    app = AirflowGunicornApp({"wsgi_app": "no_such_module:app"})
    master = SimpleNamespace(
        cfg=app.cfg,
        LISTENERS=[],
        WORKERS={},
        pid=100,
        num_workers=2,
        dirty_arbiter_pid=0,
        _stats={"reloads": 3},
    )
    dispatcher = Dispatcher(master, wheel)

    def give(command: str, *arguments: Any) -> Any:
        answer = dispatcher.answer(make_request(9, command, list(arguments)), PEER)
        assert answer["id"] == 9
        return answer["data"] if answer["status"] == "ok" else answer["error"]

    return give


@pytest.mark.parametrize(
    ("command", "turned", "answer"),
    [
        ("rollout restart", ("restart",), {"revision": 6}),
        ("rollout pause", ("pause",), {"success": True}),
        ("ROLLOUT ABORT", ("abort",), {"success": True}),
        ("reload", ("reload",), {"status": "reloading", "revision": 7}),
        ("scale 5", ("scale", 5), {"success": True}),
        ("worker stop 101", ("stop_worker", 101), {"success": True}),
        ("worker kill 101", ("stop_worker", 101), {"success": True, "replacing": 101}),
        ("worker add", ("scale", 3), {"added": 1, "previous": 2, "total": 3}),
        ("worker add 4", ("scale", 6), {"added": 4, "previous": 2, "total": 6}),
        ("worker remove 1", ("scale", 1), {"removed": 1, "previous": 2, "total": 1}),
        ("worker remove 9", ("scale", 1), {"removed": 1, "previous": 2, "total": 1}),
    ],
)
def test_commands_that_steer(
    ask: Any, wheel: Wheel, command: str, turned: tuple[object, ...], answer: object
) -> None:
    """gunicorn's own go the same way as ours."""
    assert ask(command) == answer
    assert wheel.turned == [turned]


@pytest.mark.parametrize(
    ("command", "arguments", "error"),
    [
        ("", (), "Empty command"),
        ("bogus", (), "Unknown command: 'bogus'; see help"),
        ("rollout", (), "Unknown command: 'rollout'; see help"),
        ("scale", (), "usage: scale N"),
        ("scale 1 2", (), "usage: scale N"),
        ("worker add 1 2", (), "usage: worker add [N]"),
        ("worker stop", ("x",), "a whole number is wanted, not 'x'"),
        ("scale", (-1,), "a whole number is wanted, not '-1'"),
        ("scale", ("²",), "a whole number is wanted, not '²'"),
        ("scale", ("9" * 4000,), f"a whole number is wanted, not '{'9' * 100}'"),
        ("say 'hello", (), "the command cannot be read: No closing quotation"),
        ("shutdown now", (), "usage: shutdown [graceful|quick]"),
        ("rollout resume", (), "it is not paused"),
        ("dirty add", (), "Unknown command: 'dirty add'; see help"),
    ],
)
def test_commands_that_are_refused(
    ask: Any, wheel: Wheel, command: str, arguments: tuple[Any, ...], error: str
) -> None:
    """In one line, and nothing has happened."""
    assert ask(command, *arguments) == error
    assert wheel.turned == []


@pytest.mark.parametrize("request_", [{"command": 5}, {"command": "help", "args": "x"}, {"command": None}])
def test_requests_of_another_form(wheel: Wheel, request_: dict[str, Any]) -> None:
    """They are told the form."""
    answer = Dispatcher(SimpleNamespace(), wheel).answer(request_, PEER)
    assert answer["error"] == "a request has a command, which is text, and perhaps args, which are a list"


def test_a_bug_is_told(ask: Any, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    """To who asked, and in the log."""

    def fail() -> Report:
        raise OSError(5, "no such thing")

    monkeypatch.setattr(wheel, "report", fail)
    assert ask("show workers") == "it could not be done (OSError: [Errno 5] no such thing)"


def test_status_is_the_report(ask: Any) -> None:
    """All of it."""
    assert ask("status") == as_json()


def test_gunicorns_questions(ask: Any, wheel: Wheel) -> None:
    """They are answered from the report, in gunicorn's form."""
    wheel.control_socket = "/run/a.sock"
    shown = ask("show workers")
    assert shown["count"] == 2
    assert shown["workers"][0] == {
        "pid": 101,
        "age": 3,
        "requests": 12345,
        "booted": True,
        "aborted": False,
        "last_heartbeat": 0.4,
        "state": "available",
        "generation": 1,
    }
    assert (shown["workers"][1]["booted"], shown["workers"][1]["last_heartbeat"]) == (False, None)
    left_early = replace(REPORT.workers[1], state="draining")
    wheel.report = lambda: replace(REPORT, workers=(left_early,))  # type: ignore[method-assign]
    assert [worker["booted"] for worker in ask("show workers")["workers"]] == [False]
    del wheel.report
    assert [worker["pid"] for worker in ask("show all")["web_workers"]] == [101, 102]
    stats = ask("show stats")
    names = ("pid", "uptime", "workers_current", "workers_target", "workers_spawned", "reloads")
    assert [stats[name] for name in names] == [100, 90_000.0, 3, 2, 7, 3]
    assert ask("show dirty")["enabled"] is False
    assert ask("show config")["control_socket"] == "/run/a.sock"
    assert ask("show config")["worker_boot_timeout"] == 120.0
    assert "worker stop <PID>" in ask("help")["commands"]


def test_who_has_steered_is_told(ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Commands are in the log with who gave them; questions are not."""
    caplog.set_level("INFO")
    ask("status")
    ask("scale", 5)
    told = [(r.__dict__["command"], r.__dict__["peer_uid"]) for r in caplog.records if "control" in r.message]
    assert told == [("scale 5", 1000)]


@pytest.mark.parametrize(("mode", "sig"), [("", signal.SIGTERM), ("quick", signal.SIGINT)])
def test_shutdown_is_a_signal(ask: Any, mode: str, sig: signal.Signals) -> None:
    """The master takes it from its own queue, as from anybody."""
    heard: list[int] = []
    old = signal.signal(sig, lambda number, _: heard.append(number))
    try:
        ask(f"shutdown {mode}")
        os.getpid()  # the handler runs between two steps of the interpreter
    finally:
        signal.signal(sig, old)
    assert heard == [sig]
