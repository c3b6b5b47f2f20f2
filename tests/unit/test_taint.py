"""What a warm-up can leave, and how it is named."""

from __future__ import annotations

import _thread
import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_arbiter.taint import Traces


class Client:
    """Stands for what is bound to the event loop on which it is made."""

    def __init__(self) -> None:
        self.bound_to = asyncio.get_running_loop()


class Keeper:
    """Stands for what keeps others."""

    kept: object


async def make_client() -> Client:
    return Client()


async def wait_for(event: asyncio.Event) -> None:
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait({waiting}, timeout=0)
    waiting.cancel()


@pytest.fixture
def traces() -> Traces:
    gc.collect()
    return Traces(lambda _thread: "somebody")


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Ends the threads of a test."""
    event = threading.Event()
    yield event
    event.set()


def run(traces: Traces, coroutine: Any) -> Any:
    """Run it on an event loop that ends, as the warm-up's does."""
    loop = asyncio.new_event_loop()
    traces.follow(loop)
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def test_nothing_is_left(traces: Traces) -> None:
    """An event loop that nobody holds is no finding, whatever cycles it was in."""
    run(traces, asyncio.sleep(0))
    assert traces.left() == ""


def test_garbage_is_nothing_left(traces: Traces) -> None:
    """What holds the event loop and is held by nobody has only not been collected yet."""
    gc.disable()
    try:
        client = run(traces, make_client())
        client.itself = client
        del client
        assert traces.left() == ""
    finally:
        gc.enable()


def test_what_holds_the_event_loop_is_named(traces: Traces) -> None:
    """By the type of the object that a person would look for, however it is kept."""
    kept = {"clients": [run(traces, make_client())]}
    assert traces.left() == f"an event loop, held by {__name__}.Client"
    kept.clear()
    assert traces.left() == ""


def test_holders_far_away_are_named(traces: Traces) -> None:
    """Containers say nothing: who has them is looked for."""
    keeper = Keeper()
    keeper.kept = [({"loop": run(traces, make_client()).bound_to},)]
    assert traces.left() == f"an event loop, held by {__name__}.Keeper"


def test_a_few_holders_are_named(traces: Traces) -> None:
    """Where a whole framework is bound to the event loop, three are enough."""
    client = run(traces, make_client())
    others = [type(f"Other{number}", (Keeper,), {})() for number in range(4)]
    for other in others:
        other.kept = client.bound_to
    assert traces.left().count(",") == 1 + 2


def test_what_asyncio_binds_is_named(traces: Traces) -> None:
    """Its locks and queues belong to the first event loop on which somebody waits for them."""
    event = asyncio.Event()
    run(traces, wait_for(event))
    assert traces.left() == "an event loop, held by asyncio.locks.Event"


def test_threads_are_named(traces: Traces, released: threading.Event) -> None:
    """With whoever made them."""
    threading.Thread(target=released.wait, name="a-late-one").start()
    assert traces.left() == "thread 'a-late-one' of somebody"


def test_threads_that_python_does_not_know(traces: Traces, released: threading.Event) -> None:
    """They are seen as the system has them."""
    _thread.start_new_thread(released.wait, ())
    assert traces.left().startswith("native thread '")


def test_threads_that_are_about_to_end_are_waited_for(traces: Traces) -> None:
    """The system knows a thread for a moment longer than Python does."""
    _thread.start_new_thread(time.sleep, (0.1,))
    assert traces.left() == ""


def test_threads_from_before_are_none_of_it(released: threading.Event) -> None:
    """The audit tells of those."""
    threading.Thread(target=released.wait, name="an-old-one").start()
    assert Traces(lambda _thread: "somebody").left() == ""
