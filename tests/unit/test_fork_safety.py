"""The audit: what is there, and who made it."""

from __future__ import annotations

import asyncio
import gc
import socket
import sqlite3
import threading
import types
from collections.abc import Iterator

import pytest

from airflow_arbiter import fork_safety
from airflow_arbiter.errors import ForkSafetyError
from airflow_arbiter.fork_safety import Audit, Finding
from airflow_arbiter.makers import BEFORE, UNKNOWN

HERE = f"{__name__} ({__file__}:"


@pytest.fixture
def audit() -> Audit:
    gc.collect()  # sockets that earlier tests have left in cycles would be closed while we look
    return Audit()


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    """Ends the threads of a test."""
    event = threading.Event()
    yield event
    event.set()


def found(audit: Audit, kind: str) -> list[Finding]:
    return [finding for finding in audit.findings() if finding.kind == kind]


def test_a_thread_is_named_with_its_maker(audit: Audit, ended: threading.Event) -> None:
    """One that was started while somebody listened is traced to the line that started it."""
    with audit.listening():
        threading.Thread(target=ended.wait, name="a-poller").start()
    (thread,) = (finding for finding in found(audit, "thread") if finding.what == "'a-poller'")
    assert thread.made_by.startswith(HERE)


def test_a_thread_from_before_has_no_maker(audit: Audit, ended: threading.Event) -> None:
    """One that nobody saw start is told all the same."""
    threading.Thread(target=ended.wait, name="an-old-one").start()
    (thread,) = (finding for finding in found(audit, "thread") if finding.what == "'an-old-one'")
    assert thread.made_by == UNKNOWN


def test_a_thread_from_before_is_named_with_what_it_runs(audit: Audit, ended: threading.Event) -> None:
    """The module of its code is the next best thing to its maker."""

    def poll() -> None:
        ended.wait()

    threading.Thread(target=poll, name="an-older-one").start()
    (thread,) = (finding for finding in found(audit, "thread") if finding.what == "'an-older-one'")
    assert thread.made_by == f"{__name__} ({BEFORE})"


def test_what_is_gone_is_no_finding(audit: Audit) -> None:
    """A thread that has ended and a socket that is closed cannot hurt."""
    with audit.listening():
        thread = threading.Thread(target=int, name="a-short-one")
        thread.start()
        thread.join()
        socket.socket().close()
    assert [finding for finding in audit.findings() if HERE in finding.made_by] == []


def test_a_socket_is_named_with_its_peer(audit: Audit) -> None:
    """A connection is told by where it goes."""
    with socket.create_server(("127.0.0.1", 0)) as server, audit.listening():
        address = server.getsockname()
        with socket.create_connection(address):
            sockets = found(audit, "socket")
    (connection,) = (finding for finding in sockets if finding.made_by != UNKNOWN)
    assert connection.what == f"INET connected to 127.0.0.1:{address[1]}"
    assert connection.made_by.startswith(HERE)


def test_a_socket_that_is_meant_for_children_is_no_finding() -> None:
    """Where we listen, and what came over an exec, crosses the fork; a connection from before must not."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as old,
    ):
        before = {finding.what for finding in found(Audit(), "socket")}
        address = ":".join(map(str, server.getsockname()))
        connection = f"INET connected to {address}"
        assert connection in before
        old.set_inheritable(True)
        assert connection not in {finding.what for finding in found(Audit(), "socket")}
        assert f"INET bound to {address}" not in before


def test_a_datagram_socket_is_no_finding(audit: Audit) -> None:
    """What StatsD and syslog send stays whole, however many processes send it."""
    with audit.listening(), socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))
        assert found(audit, "socket") == []


def test_a_running_loop_is_traced_to_its_thread(audit: Audit) -> None:
    """An event loop that runs in a thread belongs to who started the thread; one that is idle is none."""
    loop = asyncio.new_event_loop()
    assert found(audit, "event loop") == []
    with audit.listening():
        thread = threading.Thread(target=loop.run_forever, name="a-loop")
        thread.start()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)
    (running,) = found(audit, "event loop")
    assert running.made_by.startswith(HERE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_loop_without_frames_is_traced_to_its_thread(audit: Audit) -> None:
    """uvloop's runs in C: what is left to look at is the thread, which runs a method of the loop's."""
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    with audit.listening():
        thread = threading.Thread(target=loop.run_forever, name="a-loop")
        thread.start()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)
    (running,) = found(audit, "event loop")
    assert running.made_by.startswith(HERE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_the_sockets_of_an_event_loop_are_told_as_such(audit: Audit) -> None:
    """A loop of asyncio's wakes itself by a pair of sockets, which go nowhere."""
    with audit.listening():
        loop = asyncio.SelectorEventLoop()
    (pair,) = [finding for finding in found(audit, "socket") if finding.made_by != UNKNOWN]
    assert pair.what == "of an event loop"
    assert pair.made_by.startswith(HERE)
    loop.close()


def test_a_hint_tells_why_a_thread_was_there_before(audit: Audit, ended: threading.Event) -> None:
    """Where the app knows which option of its own has started it."""

    def poll() -> None:
        ended.wait()

    audit.hints = {__name__: "an option starts it"}
    threading.Thread(target=poll, name="by-an-option").start()
    (thread,) = (finding for finding in found(audit, "thread") if finding.what == "'by-an-option'")
    assert thread.made_by == f"{__name__} ({BEFORE}); an option starts it"


def test_a_connection_of_sqlite_is_found_without_a_pool(audit: Audit) -> None:
    """One that a module keeps is told with the module; a closed one is none."""
    module = types.ModuleType("keeping")
    module.__dict__["kept"] = sqlite3.connect(":memory:")
    (connection,) = found(audit, "database connection")
    assert (connection.what, connection.made_by) == ("of sqlite3", "keeping (which keeps it)")
    module.kept.close()
    assert found(audit, "database connection") == []


def test_what_was_told_is_no_news(audit: Audit, ended: threading.Event) -> None:
    """A second look tells what has come since the first."""
    audit.news()
    threading.Thread(target=ended.wait, name="a-new-one").start()
    assert [finding.what for finding in audit.news()] == ["'a-new-one'"]
    assert audit.news() == ()


def test_a_database_connection_is_found_until_it_is_closed(audit: Audit) -> None:
    """SQLAlchemy's pools are heard, whoever made them; closed connections are forgotten."""
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="only Airflow brings SQLAlchemy")
    with audit.listening():
        engine = sqlalchemy.create_engine("sqlite://")
        with engine.connect():
            pass
        found_now = found(audit, "database connection")
        assert [finding.what for finding in found_now] == [f"of {sqlite3.Connection.__module__}"]
        engine.dispose()
    assert found(audit, "database connection") == []


def test_everything_is_put_back(audit: Audit) -> None:
    """Outside of the listening, threads and sockets are Python's own again, after an error too."""
    before = threading.Thread.start, socket.socket.__init__
    with pytest.raises(RuntimeError), audit.listening():
        raise RuntimeError
    assert (threading.Thread.start, socket.socket.__init__) == before


def test_what_others_put_around_ours_stays(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that wraps the starting of threads while it is imported keeps its wrapper."""
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)  # puts it back after the test

    def wrapped(thread: threading.Thread) -> None:
        traced(thread)

    with audit.listening():
        traced = threading.Thread.start
        threading.Thread.start = wrapped  # type: ignore[method-assign, assignment]
    assert threading.Thread.start is wrapped


def test_a_loop_that_is_not_whole_is_passed_over(audit: Audit) -> None:
    """Objects of anybody's classes are looked at; what they raise ends no start."""
    unfinished = type("Unfinished", (asyncio.AbstractEventLoop,), {})()
    assert found(audit, "event loop") == []
    del unfinished


def test_strict_names_all() -> None:
    """One error has every finding; none, no error."""
    fork_safety.check(())
    findings = (
        Finding(kind="thread", what="'a'", made_by="m (m.py:1)"),
        Finding(kind="socket", what="b", made_by="n"),
    )
    with pytest.raises(
        ForkSafetyError, match=r"thread 'a', made by m \(m.py:1\); socket b, made by n. Make these"
    ):
        fork_safety.check(findings)


@pytest.mark.parametrize(
    ("maker", "kind"),
    [
        ("opentelemetry.sdk.trace (x.py:1)", "exporter's thread"),
        ("statsd (x.py:1)", "exporter's thread"),
        ("statsd_helper (x.py:1)", "thread"),
        ("my.plugin (x.py:1)", "thread"),
    ],
)
def test_exporters_are_called_so(maker: str, kind: str) -> None:
    """What sends measurements in the background is told apart."""
    assert fork_safety._kind("thread", maker) == kind
