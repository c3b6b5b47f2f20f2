"""The status page: one writer, one reader, no lock."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from airflow_arbiter.pool import Reason
from airflow_arbiter.status import Field, StatusPage, WorkerStatus

NOTHING = WorkerStatus(
    listening_at=None,
    ready_at=None,
    beat_at=None,
    draining_at=None,
    requests=0,
    in_flight=0,
    retire_reason=None,
    retire_at=None,
    probe_at=None,
    probe_code=0,
)
FULL = WorkerStatus(
    listening_at=1.5,
    ready_at=2.5,
    beat_at=3.5,
    draining_at=4.5,
    requests=2**40,
    in_flight=7,
    retire_reason="memory",
    retire_at=5.5,
    probe_at=6.5,
    probe_code=1200,
)
MOMENTS = [
    Field.LISTENING_AT,
    Field.READY_AT,
    Field.BEAT_AT,
    Field.DRAINING_AT,
    Field.RETIRE_AT,
    Field.PROBE_AT,
]


@pytest.fixture
def page() -> Iterator[StatusPage]:
    page = StatusPage()
    yield page
    page.close()


def fill(page: StatusPage) -> None:
    page.write(Field.LISTENING_AT, 1.5)
    page.write(Field.READY_AT, 2.5)
    page.write(Field.BEAT_AT, 3.5)
    page.write(Field.DRAINING_AT, 4.5)
    page.write(Field.REQUESTS, 2**40)
    page.write(Field.IN_FLIGHT, 7)
    page.retire("memory", 5.5)
    page.write(Field.PROBE_AT, 6.5)
    page.write(Field.PROBE_CODE, 1200)


def test_new_page_tells_nothing(page: StatusPage) -> None:
    """What has not happened is None, what can be counted is 0."""
    assert page.read() == NOTHING


def test_round_trip(page: StatusPage) -> None:
    """Each word is read as it was written."""
    fill(page)
    assert page.read() == FULL


@pytest.mark.parametrize("moment", MOMENTS)
def test_moment_zero_is_a_moment(page: StatusPage, moment: Field) -> None:
    """The clock may begin at 0, which is not never."""
    page.write(moment, 0.0)
    assert getattr(page.read(), moment.name.lower()) == 0.0


@pytest.mark.parametrize("moment", MOMENTS)
def test_write_once_keeps_the_first(page: StatusPage, moment: Field) -> None:
    """A moment that counts once is the first one, also if that is 0."""
    page.write_once(moment, 0.0)
    page.write_once(moment, 9.0)
    assert getattr(page.read(), moment.name.lower()) == 0.0


def test_write_takes_the_last(page: StatusPage) -> None:
    """A heartbeat is the last one."""
    page.write(Field.BEAT_AT, 1.0)
    page.write(Field.BEAT_AT, 2.0)
    assert page.read().beat_at == 2.0


@pytest.mark.parametrize("reason", ["age", "requests", "memory", "generation", "command"])
def test_first_reason_to_retire_stays(page: StatusPage, reason: Reason) -> None:
    """A worker that has asked to be replaced has asked."""
    page.retire(reason, 1.0)
    page.retire("requests" if reason != "requests" else "age", 2.0)
    status = page.read()
    assert (status.retire_reason, status.retire_at) == (reason, 1.0)


def test_two_processes_share_the_page(page: StatusPage) -> None:
    """What the child writes, the master reads; and the child's copy of the page is the same memory."""
    child = os.fork()
    if child == 0:
        try:
            fill(page)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    assert page.read() == FULL


def test_page_outlives_its_writer(page: StatusPage) -> None:
    """A worker that dies without a word leaves what it has told."""
    child = os.fork()
    if child == 0:
        page.write(Field.BEAT_AT, 8.0)
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert page.read().beat_at == 8.0


def test_pages_are_apart(page: StatusPage) -> None:
    """Each worker has its own memory."""
    other = StatusPage()
    fill(other)
    other.close()
    assert page.read() == NOTHING


def test_closed_page_is_an_error() -> None:
    """After the end of the worker nothing is read that might be another's."""
    page = StatusPage()
    page.close()
    with pytest.raises(ValueError, match="released"):
        page.read()
