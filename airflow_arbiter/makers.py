"""
Who has made a thread, a socket or a connection, in words that lead an operator to it.

Owns the reading of stacks: the code that made it, which is often a library's, and the code nearest to the
operator on whose behalf that was done.
"""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

BEFORE = "it was there before the app was loaded"
UNKNOWN = f"unknown: {BEFORE}, or an extension module made it"

_PACKAGE = __package__ or "airflow_arbiter"
_STDLIB = sysconfig.get_path("stdlib")
_INSTALLED = frozenset({"site-packages", "dist-packages"})


def name_maker(frame: FrameType | None, folders: Sequence[Path] = ()) -> str:
    """
    Name who is calling: the innermost code that is not Python's own, and whom an operator would ask.

    :param folders: where the operator has code that somebody loads, such as plugins.
    """
    frames = list(_outwards(frame))
    foreign = [seen for seen in frames if _package(seen) not in sys.stdlib_module_names]
    if not foreign:
        return UNKNOWN
    caller = _place(foreign[0])
    near = _nearest(foreign, folders)
    if near is None or _place(near) == caller:
        return caller
    verb = "imported" if near.f_code.co_name == "<module>" else "called"
    return f"{caller}, {verb} by {_place(near)}"


def _nearest(frames: Sequence[FrameType], folders: Sequence[Path]) -> FrameType | None:
    """The frame that an operator knows best: a plugin's, one that is not installed, or what is imported."""
    plugins = [frame for frame in frames if any(_lies_in(frame, folder) for folder in folders)]
    if plugins:
        return plugins[-1]
    own = (frame for frame in frames if _is_own(frame))
    imported = (frame for frame in frames if frame.f_code.co_name == "<module>")
    return next(own, None) or next(imported, None)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Go from a frame to its callers, until it is us who load the app; also out of greenlets."""
    greenlets: Any = sys.modules.get("greenlet")
    current = greenlets.getcurrent() if greenlets is not None and hasattr(greenlets, "getcurrent") else None
    while True:
        while frame is not None:
            if _package(frame) == _PACKAGE:
                return
            yield frame
            frame = frame.f_back
        current = None if current is None else current.parent
        if current is None:
            return
        frame = current.gr_frame


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?")).partition(".")[0]


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _lies_in(frame: FrameType, folder: Path) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(folder)


def _is_own(frame: FrameType) -> bool:
    """Whether a frame's code is neither installed, nor Python's, nor made up at run time."""
    path = Path(frame.f_code.co_filename)
    return not (
        str(path).startswith("<") or _INSTALLED.intersection(path.parts) or path.is_relative_to(_STDLIB)
    )


class Awaited:
    """
    A finder of modules that waits for one, and is gone.

    :param name: of the module.
    :param then: what to do once it is there.
    """

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def begin(self) -> None:
        """Wait from now on."""
        sys.meta_path.insert(0, self)

    def end(self) -> None:
        """Wait no more. Doing it again changes nothing."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        if name != self._name:
            return None
        self.end()
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                with contextlib.suppress(Exception):  # whoever imports it must not suffer
                    self._then()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one module only
        return spec
