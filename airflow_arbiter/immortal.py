"""
Immortal objects: keeps Python's counting of references off the memory that workers share.

Owns the marking, before the fork, of what the app has made. To look at an object is to count a reference,
which writes to the object's page, and a page that a worker writes to is its own copy from then on. From
Python 3.12 on, an object may have a fixed count that nobody writes (PEP 683): its page stays shared. Python
marks its own constants so; for other objects there is no public way, so that the count is written in place.

What is immortal is never freed, in no process, and what it refers to neither. Nothing of that is lost: the
master would hold the same memory for its workers anyway. What has something to do at its end, such as a file
that must be flushed, stays mortal.

Source: PEP 683, "Avoiding Copy-on-Write"; ``gc.immortalize_heap()`` of Meta's Cinder, for the same servers;
``Include/object.h`` of CPython 3.12 and 3.13.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from types import CodeType, FrameType

VERSIONS = ((3, 12), (3, 13))
"""Those whose objects begin with a count of 64 bits, the lower 32 of which tell that it is fixed."""

_FIXED = 0xFFFF_FFFF
_WORD_BYTES = 4
_ADDRESS_SPACE_BYTES = 1 << 47
"""What a process can have, on all 64-bit processors with 4 levels of page tables. Source: Linux, mm.rst."""

_BATCH = 2_000
"""Objects whose referents are looked at together: enough to be quick, and too few to need much memory."""

_PARTS_OF_CODE = (
    "co_consts",
    "co_names",
    "co_filename",
    "co_name",
    "co_qualname",
    "co_linetable",
    "co_exceptiontable",
)

# Not kind.__mro__: a metaclass may answer for that with code of its own.
_mro_of = type.__dict__["__mro__"].__get__
_dict_of = type.__dict__["__dict__"].__get__


def reason_against() -> str:
    """
    Tell why objects cannot be made immortal here.

    :return: the reason; empty where they can.
    """
    version = sys.version_info[:2]
    if sys.implementation.name != "cpython" or version not in VERSIONS:
        known = " and ".join(f"{major}.{minor}" for major, minor in VERSIONS)
        return f"it is known for CPython {known} only"
    if sys.maxsize < 1 << 32 or sys.byteorder != "little":
        return "this machine is not a 64-bit one with the lower half of a number first"
    if sysconfig.get_config_var("Py_GIL_DISABLED") or sysconfig.get_config_var("Py_TRACE_REFS"):
        return "objects of this build of Python begin with something else than their count"
    # The proof: Python's own immortal objects look as we expect it.
    if sys.getrefcount(None) != _FIXED or ctypes.c_uint32.from_address(id(None)).value != _FIXED:
        return "this Python counts references in another way"
    return ""


def immortalize_heap() -> None:
    """
    Make all objects immortal that the garbage collector knows, and all that they refer to.

    Before ``gc.freeze()``, which hides them. Takes half a second for a million objects.

    :raises RuntimeError: where :func:`reason_against` has a reason.
    """
    if because := reason_against():
        raise RuntimeError(because)
    tracked = gc.get_objects()
    marker = _Marker()
    marker.mark(tracked)
    for begin in range(0, len(tracked), _BATCH):
        objects = tracked[begin : begin + _BATCH]
        while objects := marker.mark(_referents(objects)):
            pass


class _Marker:
    """Writes the fixed count into objects."""

    def __init__(self) -> None:
        words = _ADDRESS_SPACE_BYTES // _WORD_BYTES
        self._memory = (ctypes.c_uint32 * words).from_address(0)
        self._stays_mortal = _MortalKinds()

    def mark(self, objects: Iterable[object]) -> list[object]:
        """
        Make some objects immortal.

        :return: those that were not immortal yet.
        """
        getrefcount, stays_mortal, memory = sys.getrefcount, self._stays_mortal, self._memory
        fresh = [item for item in objects if getrefcount(item) < _FIXED and not stays_mortal[type(item)]]
        for address in map(id, fresh):
            memory[address // _WORD_BYTES] = _FIXED
        return fresh


class _MortalKinds(dict[type, bool]):
    """By type, whether its objects do something at their end. Filled as types are met."""

    def __missing__(self, kind: type) -> bool:
        # Frames, for they hold whatever is going on right now.
        is_mortal = kind is FrameType or any("__del__" in _dict_of(base) for base in _mro_of(kind))
        self[kind] = is_mortal
        return is_mortal


def _referents(objects: Sequence[object]) -> list[object]:
    """What objects refer to, with those parts of code that its garbage collector's visit leaves out."""
    found = gc.get_referents(*objects)
    for item in objects:
        if type(item) is CodeType:
            found += [getattr(item, part) for part in _PARTS_OF_CODE]
    return found
