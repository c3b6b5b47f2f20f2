"""
Whether the content of folders has changed.

Owns what counts as content, and how often one looks. By names and content, because network volumes send no
inotify events and copies keep their times; in an errand, because a network volume may hang.
"""

from __future__ import annotations

import hashlib
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from airflow_arbiter import events
from airflow_arbiter.errand import Errand

LIMIT_S = 60.0
"""What one look may take; after that it is given up, and said."""

SETTLE_S = 5.0
"""What is waited for the very first look."""

_BLOCK_BYTES = 1 << 20

_LEFT_OUT_SUFFIXES = ("~", ".pyc", ".pyo", ".swp", ".swo", ".swx", ".tmp")
_LEFT_OUT_NAMES = frozenset({"__pycache__", "4913"})
"""Caches and what editors leave for a moment; 4913 is how vim tries whether it may write."""

_COUNTED_NAMES = frozenset({".airflowignore"})
"""Hidden files that say what is loaded."""


class FolderWatch:
    """
    Looks at folders again and again.

    :param folders: what is looked at; one that is not there is empty.
    :param interval_s: seconds between two looks.
    """

    def __init__(self, folders: Sequence[Path], *, interval_s: float) -> None:
        self.folders = folders
        self.interval_s = interval_s
        self._look_at = time.monotonic()
        self._errand: Errand | None = None
        self._left_pid = 0
        self._last = ""
        self._settled = ""
        self._is_told = False

    def settle(self) -> None:
        """
        Take what is there now for what is loaded: call it before that is.

        Waits for it, but not for ever; a look that takes longer settles it when it comes.
        """
        self._begin()
        ends_at = time.monotonic() + SETTLE_S
        while self._errand is not None and (left_s := ends_at - time.monotonic()) > 0:
            select.select([self._errand.fd], [], [], left_s)
            self.turn(watch=lambda _: None, forget=lambda _: None)

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
            if time.monotonic() >= self._look_at and (fd := self._begin()) >= 0:
                watch(fd)
            return False
        seen = self._errand.collect()
        if seen is None and not self._errand.is_late:
            return False
        self.close(forget=forget)
        self._look_at = time.monotonic() + self.interval_s
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

    def _begin(self) -> int:
        """
        Start a look, unless the last one is still there: what hangs in a volume cannot even be killed.

        :return: where it tells; -1 if there is none.
        """
        self._look_at = time.monotonic() + self.interval_s  # also where no process can be had
        if self._left_pid and _exists(self._left_pid):
            return -1
        try:
            self._errand = Errand(self._tell, limit_s=LIMIT_S)
        except OSError as error:
            self._miss(str(error))
            return -1
        self._left_pid = self._errand.pid
        return self._errand.fd

    def _miss(self, because: str) -> None:
        """Tell, once, that a look came to nothing."""
        if not self._is_told:
            folders = [str(path) for path in self.folders]
            events.publish("watch.failed", level="warning", folders=folders, because=because)
        self._is_told = True

    def _compare(self, seen: str) -> bool:
        last, self._last = self._last, seen
        self._settled = self._settled or seen
        if seen == self._settled or seen != last:
            return False
        self._settled = seen
        return True

    def _tell(self, fd: int) -> None:
        """Look. Runs in the errand."""
        os.nice(10)
        os.write(fd, fingerprint(self.folders).encode() + b"\n")


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
                content = _hash(path)
            except OSError as error:
                content = type(error).__name__.encode()  # that, too, may change
            whole.update(len(name).to_bytes(4, "big") + name + content)
    return whole.hexdigest()


def _hash(path: Path) -> bytes:
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            content.update(block)
    return content.digest()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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
        if name not in _COUNTED_NAMES and (
            name.startswith((".", "#")) or name.endswith(_LEFT_OUT_SUFFIXES) or name in _LEFT_OUT_NAMES
        ):
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:
            is_folder, is_file = False, True  # its content cannot be read either, which is told there
        if is_folder:
            yield from _files(entry, seen)
        elif is_file:
            yield entry
