"""A process tells what it is doing, whatever it is doing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from harness.waiting import eventually

from airflow_arbiter import stacks
from airflow_arbiter.stacks import HeldRequest
from airflow_arbiter.status import StatusPage

HELD = (
    HeldRequest(method="GET", path="/old", age_s=9.0),
    HeldRequest(method="POST", path="/new", age_s=1.0),
)


@pytest.fixture
def page() -> Iterator[StatusPage]:
    status = StatusPage()
    yield status
    status.close()


def ask(page: StatusPage, life: Callable[[], None], held: tuple[HeldRequest, ...] = HELD) -> stacks.Answer:
    """Ask a child that lives this life, and take its answer."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            stacks.answer_with(page.fd, lambda: held)
            os.write(tell, b".")
            life()
        finally:
            os._exit(0)
    os.read(told, 1)
    os.close(told)
    os.close(tell)

    def has_answered() -> bool:
        stacks.clear(page.fd)
        os.kill(child, stacks.SIGNAL)
        eventually(lambda: "most recent call first" in stacks.read(page.fd).stacks, what="a stack")
        with contextlib.suppress(AssertionError):
            # Asked again before it has told the requests, it would tell of the telling.
            eventually(lambda: stacks.read(page.fd).requests is not None, what="requests", within_s=1)
        return f"in {life.__name__}" in stacks.read(page.fd).stacks  # it may not have got there yet

    try:
        eventually(has_answered, what="an answer")
        return stacks.read(page.fd)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def sleep_in_python() -> None:
    while True:
        time.sleep(60)


def compute() -> None:
    while True:
        pass


def stay_in_c() -> None:
    sum(range(10**18))


@pytest.mark.parametrize("life", [sleep_in_python, compute])
def test_stacks_and_requests(page: StatusPage, life: Callable[[], None]) -> None:
    """A main thread that sleeps or computes in Python tells where it is, and what it holds."""
    answer = ask(page, life)
    assert f"in {life.__name__}" in answer.stacks
    assert answer.requests == HELD


def test_a_thread_that_never_returns_from_c(page: StatusPage) -> None:
    """Its stack is told all the same; its requests cannot be."""
    answer = ask(page, stay_in_c)
    assert "in stay_in_c" in answer.stacks
    assert answer.requests is None


def test_second_answer_takes_the_place_of_the_first(page: StatusPage) -> None:
    """Nothing is left of an answer when the next is asked for, and the status words stay."""
    ask(page, sleep_in_python)
    answer = ask(page, compute, held=())
    assert "sleep_in_python" not in answer.stacks
    assert answer.requests == ()
    assert page.read().requests == 0


def test_more_requests_than_there_is_room_for(page: StatusPage) -> None:
    """The oldest are told."""
    many = tuple(
        HeldRequest(method="GET", path="/" + "x" * 500, age_s=float(number)) for number in range(1000)
    )
    answer = ask(page, sleep_in_python, held=many)
    assert answer.requests is not None
    assert len(answer.requests) > 50
    assert [request.age_s for request in answer.requests] == [
        float(number) for number in range(999, 999 - len(answer.requests), -1)
    ]


def test_nothing_told(page: StatusPage) -> None:
    """Who was never asked has told nothing."""
    assert stacks.read(page.fd) == stacks.Answer(stacks="", requests=None)


@pytest.mark.parametrize(
    ("written", "requests"),
    [
        pytest.param(b"[{", None, id="half-an-answer"),
        pytest.param(b'[{"method": "GET"}]', None, id="a-fact-is-missing"),
        pytest.param(
            b'[{"method": "GET", "path": "/", "age_s": 1.0, "new": 1}]\0{"rest"', 1, id="of-a-later-version"
        ),
    ],
)
def test_an_answer_that_is_not_understood(page: StatusPage, written: bytes, requests: int | None) -> None:
    """What another version wrote, or what is left of an older answer, is no error for who must kill."""
    stacks.clear(page.fd)
    os.pwrite(page.fd, written, stacks.HELD_AT)
    told = stacks.read(page.fd).requests
    assert (None if told is None else len(told)) == requests
