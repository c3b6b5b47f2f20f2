"""Waiting on facts, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_S = 0.01


def eventually(fact: Callable[[], T], *, what: str, within_s: float = 30.0) -> T:
    """
    Wait until a fact holds, and return it.

    :param fact: asked again and again; holds when it is true.
    :param what: for the message when it never was.
    """
    deadline = time.monotonic() + within_s
    while not (value := fact()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}; last seen: {value!r}")
        time.sleep(LOOK_S)
    return value
