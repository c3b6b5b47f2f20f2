"""Errands: one child process, one message, and nothing left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from harness.server import is_alive
from harness.waiting import eventually

from airflow_arbiter.errand import Errand

Send = Callable[..., Errand]


@pytest.fixture
def send() -> Iterator[Send]:
    """Send errands, which are ended and reaped after the test."""
    errands: list[Errand] = []

    def send_one(run: Callable[[int], None], *, limit_s: float = 30.0) -> Errand:
        errands.append(Errand(run, limit_s=limit_s))
        return errands[-1]

    yield send_one
    for errand in errands:
        errand.close()
        os.waitpid(errand.pid, 0)


def _message(errand: Errand) -> bytes:
    told: list[bytes] = []

    def has_told() -> bool:
        message = errand.collect()
        if message is not None:
            told.append(message)
        return bool(told)

    eventually(has_told, what="a message")
    return told[0]


def test_a_message_comes_whole(send: Send) -> None:
    """However long it is and in however many pieces, it is told once it has ended."""

    def run(fd: int) -> None:
        for _ in range(200):
            os.write(fd, b"x" * 1000)
        os.write(fd, b"\n")

    assert _message(send(run)) == b"x" * 200_000 + b"\n"


def test_nothing_is_told_before_its_end(send: Send) -> None:
    """A message without its end is none yet, and asking for it does not wait."""

    def run(fd: int) -> None:
        os.write(fd, b"half")
        time.sleep(60)

    errand = send(run)
    eventually(lambda: (errand.collect(), errand._message)[1] == b"half", what="half a message")
    assert errand.collect() is None
    assert not errand.is_late


def test_a_death_without_a_word_is_an_empty_message(send: Send) -> None:
    """Killed, or ended by what it ran."""
    assert _message(send(lambda _: os._exit(0))) == b""
    assert _message(send(lambda _: os.kill(os.getpid(), signal.SIGKILL))) == b""


def test_what_it_raises_stays_in_it(send: Send, capfd: pytest.CaptureFixture[str]) -> None:
    """An exception, SystemExit too, ends the child and no more; its traceback is shown."""
    errand = send(lambda _: sys.exit("away"))
    assert _message(errand) == b""
    assert "SystemExit: away" in capfd.readouterr().err


def test_a_child_that_holds_the_pipe_holds_nobody_up(send: Send) -> None:
    """The message has ended with its line, though a process that was left behind could still write."""

    def run(fd: int) -> None:
        if os.fork() == 0:
            time.sleep(60)
        os.write(fd, b"done\n")

    errand = send(run)
    assert _message(errand) == b"done\n"


def test_its_children_end_with_it() -> None:
    """Closing it ends all of its process group, though it is gone itself."""

    def run(fd: int) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(60)
        os.write(fd, f"{child}\n".encode())

    errand = Errand(run, limit_s=30.0)
    child = int(_message(errand))
    assert is_alive(child)
    errand.close()
    eventually(lambda: not is_alive(child), what="the child is gone")
    os.waitpid(errand.pid, 0)


def test_it_is_late_after_its_limit(send: Send) -> None:
    """Who has the patience is the caller."""
    errand = send(lambda _: time.sleep(60), limit_s=0.05)
    eventually(lambda: errand.is_late, what="it is late")
    assert errand.collect() is None


def test_it_ends_by_itself_without_a_caller(send: Send) -> None:
    """An alarm is set, for a master that is gone; and every signal does what it does by default."""

    def run(fd: int) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        os.write(fd, f"{signal.alarm(0)} {handler == signal.SIG_DFL} {len(blocked)}\n".encode())

    old = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert _message(send(run, limit_s=10)) in (b"15 True 0\n", b"14 True 0\n")
    finally:
        signal.signal(signal.SIGTERM, old)


def test_the_callers_signals_are_as_before(send: Send) -> None:
    """Its mask is restored, and its pipe stays out of other programs."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    errand = send(lambda _: None)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert not os.get_inheritable(errand.fd)
    assert psutil.pid_exists(errand.pid)
