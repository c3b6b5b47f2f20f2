"""
What a warm-up has left behind that no worker could use, and that would harm it.

Owns what is looked for, and how it is named: threads, whose locks and connections a fork copies as they are
at that moment, and objects of the app that are bound to an event loop which is gone in every worker. Decides
nothing: what is tainted is undone by whoever loads the app, by a fresh image of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

END_LIMIT_S = 0.5
"""Time for a thread that Python knows to have ended to be gone from the system."""

_PAUSE_S = 0.01

_DEPTH = 6
"""How many references away from an event loop its holder is looked for."""

_NAMED = 3
"""Holders that are named, at most."""

_CARRIERS = (
    dict,
    list,
    tuple,
    set,
    frozenset,
    types.CellType,
    types.CoroutineType,
    types.FrameType,
    types.FunctionType,
    types.GeneratorType,
    types.MethodType,
    types.BuiltinMethodType,
    types.ModuleType,
)
"""Types of what lies between two objects, and says nothing."""

_OF_THE_LOOP = (
    "asyncio.",
    "_asyncio.",
    "uvloop.",
    "selectors.",
    "_contextvars.",
    "builtins.",
    "weakref.",
    "functools.",
)
_BOUND = ("asyncio.locks.", "asyncio.queues.")
"""Modules whose objects an event loop has itself, and those among them that the app makes."""


class TaintedError(Exception):
    """The warm-up has left what no fork may copy; the app must be loaded in a process without one."""


class Traces:
    """
    A look before and after a warm-up.

    :param name: tells who has made a thread.
    """

    def __init__(self, name: Callable[[threading.Thread], str]) -> None:
        self._name = name
        self._threads = set(threading.enumerate())
        self._natives = _natives()
        self._loop: ReferenceType[Any] | None = None

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Find out, later, whether anything holds this event loop."""
        with contextlib.suppress(TypeError):  # a class of somebody's, without weak references
            self._loop = ref(loop)

    def left(self) -> str:
        """Name what is there now and was not before; empty where there is nothing."""
        threads = [f"thread {thread.name!r} of {self._name(thread)}" for thread in self._new_threads()]
        if threads:
            return ", ".join(sorted(threads))  # they hold the event loop as well
        if natives := self._new_natives():
            return ", ".join(f"native thread {name!r}" for name in sorted(natives))
        return self._held_loop()

    def _new_threads(self) -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread not in self._threads}

    def _new_natives(self) -> list[str]:
        deadline = time.monotonic() + END_LIMIT_S
        while (found := _natives().keys() - self._natives.keys()) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        names = _natives()
        return [names[ident] for ident in found if ident in names]

    def _held_loop(self) -> str:
        if self._loop is None or self._loop() is None:
            return ""
        gc.collect()  # not at once: for the usual app somebody has just done it, and it takes a while
        loop = self._loop()
        return "" if loop is None else f"an event loop, held by {name_holders(loop)}"


def _natives() -> dict[str, str]:
    """All threads of this process that the system knows: names by number. Source: proc(5)."""
    names = {}
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):
                names[task.name] = (task / "comm").read_text().strip()
    return names


def name_holders(target: object) -> str:
    """Name by type what keeps an object: the app's, and the nearest."""
    layer: list[object] = [target]
    seen = {id(target)}
    for _ in range(_DEPTH):
        ours = {id(layer), id(seen)}
        referrers = [
            item
            for item in gc.get_referrers(*layer)
            if id(item) not in seen and id(item) not in ours and not _is_ours(item)
        ]
        seen.update(map(id, referrers))
        if names := {name for item in referrers if (name := _type_name(item))}:
            return ", ".join(sorted(names)[:_NAMED])
        layer = referrers
        if not layer:
            break
    return "something that an extension module keeps"


def _is_ours(item: object) -> bool:
    """Whether it is a call of this module's, which looks."""
    return type(item) is types.FrameType and item.f_globals is globals()


def _type_name(item: object) -> str:
    """The type of a holder; empty for what says nothing."""
    kind = type(item)
    if issubclass(kind, type):
        return ""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if issubclass(kind, _CARRIERS) or (name.startswith(_OF_THE_LOOP) and not name.startswith(_BOUND)):
        return ""
    return name
