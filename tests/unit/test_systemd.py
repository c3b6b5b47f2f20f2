"""What systemd is told, worked out from reports, and sent to a real socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.reports import a_report, a_worker

from airflow_arbiter.report import ReloadReport, Report
from airflow_arbiter.systemd import Notifier, Told, hushed, news, tell, words

FULL = a_report(a_worker(), a_worker())
FULL_WORDS = "2 of 2 workers available"


def _told(*reports: Report, told: Told | None = None) -> list[str]:
    """Every message of some reports in a row, with the report's number as the time."""
    messages: list[str] = []
    told = told or Told()
    for now_us, report in enumerate(reports):
        said, told = news(report, told, now_us=now_us)
        messages += said
    return messages


# -- what there is to tell
# -------------------------------------------------------------------------------------------------------


def test_a_server_is_ready_with_its_first_worker_that_has_proved_itself() -> None:
    """Neither processes nor workers that only listen are a service."""
    assert _told(
        a_report(),
        a_report(a_worker("booting")),
        a_report(a_worker("listening")),
        a_report(a_worker("ready")),
        a_report(a_worker(), a_worker("booting")),
        FULL,
    ) == [
        "STATUS=0 of 2 workers available",
        "STATUS=0 of 2 workers available; 1 booting",
        "STATUS=0 of 2 workers available",
        "READY=1",
        "STATUS=1 of 2 workers available; 1 booting",
        f"STATUS={FULL_WORDS}",
    ]


def test_nothing_new_is_not_told() -> None:
    """The same again is no news, whatever the clock and the counters say."""
    later = a_report(a_worker(uptime_s=61.0, requests=11), a_worker(), server={"uptime_s": 61.0})
    assert _told(FULL, later, later) == [f"READY=1\nSTATUS={FULL_WORDS}"]


def _reloading(state: str, asked: int, failure: str = "") -> Report:
    reload = ReloadReport(state=state, failure=failure, asked=asked)  # type: ignore[arg-type]
    return a_report(a_worker(), a_worker(), reload=reload)


READY = Told(is_ready=True, status=FULL_WORDS)


@pytest.mark.parametrize(
    ("reports", "messages"),
    [
        pytest.param(
            [_reloading("checking", 1), _reloading("idle", 1)],
            [
                f"RELOADING=1\nMONOTONIC_USEC=0\nSTATUS={FULL_WORDS}; trying new code",
                f"READY=1\nSTATUS={FULL_WORDS}",
            ],
            id="ready again once the code is in",
        ),
        pytest.param(
            [_reloading("checking", 1), _reloading("idle", 1, "no such module")],
            [
                f"RELOADING=1\nMONOTONIC_USEC=0\nSTATUS={FULL_WORDS}; trying new code",
                f"READY=1\nSTATUS={FULL_WORDS}; reload failed: no such module",
            ],
            id="ready again once the code is refused",
        ),
        pytest.param(
            [_reloading("checking", 1), _reloading("waiting", 1, "no memory")],
            [
                f"RELOADING=1\nMONOTONIC_USEC=0\nSTATUS={FULL_WORDS}; trying new code",
                f"READY=1\nSTATUS={FULL_WORDS}; reload failed: no memory",
            ],
            id="ready while it waits for the next try",
        ),
        pytest.param(
            [_reloading("idle", 1)],
            ["RELOADING=1\nMONOTONIC_USEC=0", "READY=1"],
            id="both when it was over within a turn",
        ),
        pytest.param(
            [_reloading("checking", 1), _reloading("checking", 2), _reloading("idle", 2)],
            [
                f"RELOADING=1\nMONOTONIC_USEC=0\nSTATUS={FULL_WORDS}; trying new code",
                "RELOADING=1\nMONOTONIC_USEC=1",
                f"READY=1\nSTATUS={FULL_WORDS}",
            ],
            id="with a new time for who asks meanwhile",
        ),
        pytest.param(
            [_reloading("checking", 1)],
            [f"RELOADING=1\nMONOTONIC_USEC=0\nSTATUS={FULL_WORDS}; trying new code"],
            id="reloading without an end yet",
        ),
    ],
)
def test_a_reload(reports: list[Report], messages: list[str]) -> None:
    """Systemd waits for a time after it has asked, and for ready."""
    assert _told(*reports, told=READY) == messages


def test_a_new_image_is_ready_and_asks_for_nothing() -> None:
    """Reloads that an earlier image was asked for are not told again."""
    assert _told(_reloading("idle", 7)) == [f"READY=1\nSTATUS={FULL_WORDS}"]


def test_a_server_that_wants_no_worker_is_ready() -> None:
    """A daemon whose workers were all sent away has done what it was asked to."""
    assert _told(a_report(target=0)) == ["READY=1\nSTATUS=0 of 0 workers available"]


def test_stopping() -> None:
    """It is told once, with what is left."""
    assert _told(
        a_report(a_worker("draining"), a_worker("draining"), server={"stopping": True}),
        a_report(a_worker("draining"), server={"stopping": True}),
        a_report(server={"stopping": True}),
        told=READY,
    ) == [
        "STOPPING=1\nSTATUS=Stopping; workers left: 2",
        "STATUS=Stopping; workers left: 1",
        "STATUS=Stopping; workers left: 0",
    ]


def test_a_master_that_leaves_to_its_successor_names_it_last() -> None:
    """Until then it answers for the service; after that nothing of it is heard."""
    leaving = {"stopping": True, "successor_pid": 200}
    assert _told(
        a_report(a_worker("draining"), server=leaving),
        a_report(server=leaving),
        a_report(server=leaving),
        told=READY,
    ) == [
        "STATUS=Handing over to 200; workers left: 1",
        "MAINPID=200\nWATCHDOG=1\nSTATUS=Handing over to 200; workers left: 0",
    ]


def test_a_successor_is_silent_until_it_is_alone() -> None:
    """What it says while systemd takes the other one for the main process would be refused."""
    assert _told(a_report(a_worker(), a_worker(), server={"predecessor_pid": 50}), FULL) == [
        f"MAINPID=100\nREADY=1\nSTATUS={FULL_WORDS}"
    ]


@pytest.mark.parametrize(
    ("rollout", "status"),
    [
        ({"phase": "progressing", "replaced": 1, "due": 3}, "replacing: 1 of 4"),
        (
            {"phase": "stalled", "because": "exit\ncode 1", "retry_in_s": 3.0},
            "replacing is held up: exit code 1",
        ),
        ({"phase": "paused"}, "replacing is paused"),
    ],
)
def test_words_of_a_rollout(rollout: dict[str, object], status: str) -> None:
    """Its phase and progress, in one line, without clocks."""
    report = a_report(a_worker(), a_worker("draining"), rollout=rollout)
    assert words(report) == f"1 of 2 workers available; 1 draining; {status}"


# -- the edge
# -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """What systemd listens on, and its name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if request.param == "path":
            name = str(tmp_path / "notify")
            receiver.bind(name)
        else:
            name = f"@airflow-arbiter-test-{os.getpid()}"
            receiver.bind("\0" + name[1:])
        receiver.setblocking(False)
        yield receiver, name


def _received(receiver: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_messages_arrive(systemd: tuple[socket.socket, str]) -> None:
    """At a path and at an abstract name."""
    receiver, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.turn(FULL)
    notifier.turn(FULL)
    assert _received(receiver) == [f"READY=1\nSTATUS={FULL_WORDS}"]
    notifier.close()
    notifier.turn(a_report())
    assert _received(receiver) == []


def test_what_could_not_be_sent_is_told_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With nobody there, nothing is lost, nobody waits, and the log says so once."""
    name = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.turn(FULL)
    notifier.turn(FULL)
    assert [record.message for record in caplog.records] == ["systemd.unreachable"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        receiver.setblocking(False)
        notifier.turn(FULL)
        assert _received(receiver) == [f"READY=1\nSTATUS={FULL_WORDS}"]
    notifier.close()


def test_a_systemd_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """A full queue is not waited for; what did not fit comes once there is room."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        receiver.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1"})
        began = time.monotonic()
        for number in range(2000):
            notifier.turn(a_report(a_worker(), target=number))
        assert time.monotonic() - began < 5
        assert len(_received(receiver)) < 2000
        notifier.turn(FULL)
        assert f"STATUS={FULL_WORDS}" in "\n".join(_received(receiver))
    notifier.close()


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234"])
def test_no_systemd(name: str) -> None:
    """Outside a service, or with a socket of another kind, nothing happens."""
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000"})
    notifier.turn(FULL)
    assert (notifier.is_on, notifier.wake_in_s) == (False, float("inf"))


@pytest.mark.parametrize(
    ("environ", "is_watched"),
    [
        ({"WATCHDOG_USEC": "2000000"}, True),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "ours"}, True),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1", "GUNICORN_PID": "1"}, True),
        ({"WATCHDOG_USEC": "0"}, False),
        ({"WATCHDOG_USEC": "-1"}, False),
        ({"WATCHDOG_USEC": "soon"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_who_is_watched(
    systemd: tuple[socket.socket, str], environ: dict[str, str], is_watched: bool
) -> None:
    """The process that the watchdog is meant for, or the one that has come in its place."""
    receiver, name = systemd
    ours = {key: str(os.getpid()) for key, value in environ.items() if value == "ours"}
    notifier = Notifier({"NOTIFY_SOCKET": name, **environ, **ours})
    notifier.turn(FULL)
    assert ("WATCHDOG=1" in _received(receiver)) is is_watched
    assert (notifier.wake_in_s < 1.01) is is_watched
    notifier.close()


def test_pings_come_at_half_the_interval(systemd: tuple[socket.socket, str]) -> None:
    """Not with every turn, and not too late."""
    receiver, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"})
    notifier.turn(FULL)
    notifier.turn(FULL)
    assert _received(receiver)[1:] == ["WATCHDOG=1"]
    deadline = time.monotonic() + 0.1
    assert 0 < notifier.wake_in_s <= 0.1
    while time.monotonic() < deadline:
        time.sleep(notifier.wake_in_s)
    notifier.turn(FULL)
    assert _received(receiver) == ["WATCHDOG=1"]
    notifier.close()


def test_a_silence_that_is_announced(systemd: tuple[socket.socket, str]) -> None:
    """Systemd's patience is stretched for it, and is what it was afterwards, also in a new image."""
    receiver, name = systemd
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"}
    notifier = Notifier(environ)
    notifier.turn(FULL)
    _received(receiver)
    notifier.stretch(3.0)
    notifier.turn(FULL)
    usual = "WATCHDOG_USEC=200000\nWATCHDOG=1"
    assert _received(receiver) == ["WATCHDOG_USEC=3200000", usual]
    notifier.close()
    resumed = Notifier(environ, is_resumed=True)
    resumed.turn(FULL)
    assert _received(receiver)[1:] == [usual]
    resumed.close()


def test_a_successor_does_not_ping_for_the_other(systemd: tuple[socket.socket, str]) -> None:
    """While there are two masters, one answers for the service."""
    receiver, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1"})
    notifier.turn(a_report(server={"predecessor_pid": 50}))
    assert _received(receiver) == []
    notifier.close()


def test_one_thing_is_told(systemd: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without an arbiter."""
    receiver, name = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    tell("STOPPING=1")
    assert _received(receiver) == ["STOPPING=1"]


def test_gunicorn_is_hushed_for_a_moment(
    systemd: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gunicorn itself tells does not get out, and the environment is as it was."""
    from gunicorn.systemd import sd_notify

    receiver, name = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with hushed():
        sd_notify("READY=1", None)
    assert _received(receiver) == []
    assert os.environ["NOTIFY_SOCKET"] == name
    sd_notify("READY=1", None)
    assert _received(receiver) == ["READY=1"]
