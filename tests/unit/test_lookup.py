"""A host's name, looked up without waiting."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest
from harness.waiting import eventually

from airflow_arbiter import lookup
from airflow_arbiter.lookup import Address, Lookup


@pytest.fixture
def look_up() -> Iterator[Callable[[str], Lookup]]:
    """Look names up; the errands are ended and reaped after the test."""
    lookups: list[Lookup] = []

    def begin(host: str) -> Lookup:
        lookups.append(Lookup(host, 8125))
        return lookups[-1]

    yield begin
    for one in lookups:
        one.close()
        os.waitpid(one._errand.pid, 0)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        pytest.param("127.0.0.1", Address(socket.AF_INET, ("127.0.0.1", 8125)), id="number"),
        pytest.param("::1", Address(socket.AF_INET6, ("::1", 8125, 0, 0)), id="number-of-6"),
        pytest.param("localhost", None, id="name"),
        pytest.param("no name", None, id="no-name"),
    ],
)
def test_what_is_known_at_once(host: str, address: Address | None) -> None:
    """A number is no name."""
    assert lookup.known(host, 8125) == address


def test_a_name_is_found(look_up: Callable[[str], Lookup]) -> None:
    """The address is one that a socket takes."""
    found = eventually(look_up("localhost").collect, what="an answer")
    assert found is not None
    with socket.socket(found.family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", found.name)


def test_a_name_that_nobody_knows(look_up: Callable[[str], Lookup]) -> None:
    """Why is told."""
    asked = look_up("." * 300)
    with pytest.raises(OSError, match="label"):
        eventually(asked.collect, what="an answer")
