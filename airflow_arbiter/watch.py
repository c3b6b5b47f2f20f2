"""
Whether the content of folders has changed.

Owns what counts as content, and how often one looks. By names and content, because network volumes send no
inotify events and copies keep their times; in an errand, because a network volume may hang.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from airflow_arbiter import events
from airflow_arbiter.errand import Errand

LIMIT_S = 60.0
"""What one look may take; after that it is given up, and said."""

_LEFT_OUT_SUFFIXES = ("~", ".pyc", ".pyo", ".swp", ".swo", ".swx", ".tmp")
_LEFT_OUT_NAMES = frozenset({"__pycache__", "4913"})
"""Caches and what editors leave for a moment; 4913 is how vim tries whether it may write."""


class FolderWatch:
    """
    Looks at folders again and again.

    :param folders: what is looked at; one that is not there is empty.
    :param interval_s: seconds between two looks.
    """

    def __init__(self, folders: Sequence[Path], *, interval_s: float) -> None:
        self._folders = folders
        self._interval_s = interval_s
        self._look_at = time.monotonic() + interval_s
        self._errand: Errand | None = None
        self._last = ""
        self._settled = fingerprint(folders)
        self._is_told = False

    @property
    def wake_in_s(self) -> float:
        """Seconds until there is something to do; what is under way wakes by its descriptor."""
        at = self._look_at if self._errand is None else self._errand.ends_at
        return max(0.0, at - time.monotonic())

    def turn(self, *, watch: Callable[[int], None], forget: Callable[[int], None]) -> bool:
        """
        Go one step on.

        :param watch: called with a descriptor that ends the loop's sleep when there is something to read.
        :param forget: called with the same one, when it is closed.
        :return: whether two looks in a row have seen the same new content. It is told once.
        """
        if self._errand is None:
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + self._interval_s  # also where no process can be had
                try:
                    self._errand = Errand(self._tell, limit_s=LIMIT_S)
                except OSError as error:
                    self._miss(str(error))
                else:
                    watch(self._errand.fd)
            return False
        seen = self._errand.collect()
        if seen is None and not self._errand.is_late:
            return False
        self.close(forget=forget)
        self._look_at = time.monotonic() + self._interval_s
        if not seen:
            self._miss("it was ended" if seen is not None else f"it took more than {LIMIT_S:g} s")
            return False
        self._is_told = False
        return self._compare(seen.decode().strip())

    def close(self, *, forget: Callable[[int], None]) -> None:
        """End the look that is under way."""
        if self._errand is not None:
            forget(self._errand.fd)
            self._errand.close()
            self._errand = None

    def _miss(self, because: str) -> None:
        """Tell, once, that a look came to nothing."""
        if not self._is_told:
            folders = [str(path) for path in self._folders]
            events.publish("watch.failed", level="warning", folders=folders, because=because)
        self._is_told = True

    def _compare(self, seen: str) -> bool:
        last, self._last = self._last, seen
        if seen == self._settled or seen != last:
            return False
        self._settled = seen
        return True

    def _tell(self, fd: int) -> None:
        """Look. Runs in the errand."""
        os.nice(10)
        os.write(fd, fingerprint(self._folders).encode() + b"\n")


def fingerprint(folders: Sequence[Path]) -> str:
    """
    Sum up the names and the content of all files in folders.

    :return: a hash, as text.
    """
    whole = hashlib.sha256()
    for folder in folders:
        for path in _files(folder, set()):
            name = str(path.relative_to(folder)).encode(errors="surrogateescape")
            try:
                content = hashlib.sha256(path.read_bytes()).digest()
            except OSError as error:
                content = type(error).__name__.encode()  # that, too, may change
            whole.update(len(name).to_bytes(4, "big") + name + content)
    return whole.hexdigest()


def _files(folder: Path, seen: set[str]) -> Iterator[Path]:
    """The files that count, sorted; links are followed, once."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        name = entry.name
        if name.startswith((".", "#")) or name.endswith(_LEFT_OUT_SUFFIXES) or name in _LEFT_OUT_NAMES:
            continue
        if entry.is_dir():
            yield from _files(entry, seen)
        elif entry.is_file():
            yield entry
