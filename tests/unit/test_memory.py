"""What is read of a process's memory, and of its container's."""

from __future__ import annotations

import math
import mmap
import os
import signal
from pathlib import Path

import pytest

from airflow_arbiter import memory
from airflow_arbiter.memory import Container, Samples

MIB = 2**20


def test_private_memory_is_what_nobody_shares() -> None:
    """What was there before the fork is not the child's; what it writes is."""
    shared = bytearray(os.urandom(MIB) * 32)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        grown = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, len(grown), 4096):
            grown[at] = 1
        os.write(tell, b".")
        signal.pause()
    try:
        os.read(told, 1)
        held = memory.private_bytes(child)
        assert 64 * MIB <= held < (64 + 30) * MIB, "its own 64 MiB, and not the 32 it shares"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)
        del shared


def test_samples_count_in_a_row() -> None:
    """A sample that is not above the limit begins anew."""
    samples = Samples()
    for now, held in enumerate([5, 11, 12], start=1):
        samples.add(held, limit_bytes=10, now=float(now))
    assert (samples.over, samples.over_since, samples.private_bytes) == (2, 2.0, 12)
    samples.add(10, limit_bytes=10, now=4.0)
    assert (samples.over, samples.over_since, samples.private_bytes) == (0, math.inf, 10)


def test_without_a_limit_nothing_is_above_it() -> None:
    """No number of bytes is too many where nobody has said so."""
    samples = Samples()
    samples.add(10**12, limit_bytes=0, now=1.0)
    assert samples.over == 0


def test_a_sample_an_interval() -> None:
    """Each process is read once in an interval; one that is gone is no error, and holds nobody up."""
    gone, here = Samples(), Samples()
    processes = [(2**22 - 1, gone), (os.getpid(), here)]
    memory.sample(processes, interval_s=3600, limit_bytes=1)
    memory.sample(processes, interval_s=3600, limit_bytes=1)
    assert (gone.private_bytes, here.over) == (None, 1)
    memory.sample(processes, interval_s=0, limit_bytes=1)
    assert here.over == 2


def group(folder: Path, *, limit: str, current: int = 0, inactive_file: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file}\nactive_file 7\n")
    return folder


@pytest.mark.parametrize(
    ("limits", "room"),
    [
        pytest.param({"": ("1000", 600, 0)}, 400, id="what-is-left"),
        pytest.param({"": ("1000", 600, 150)}, 550, id="pages-of-files-are-free"),
        pytest.param({"": ("max", 600, 0)}, None, id="no-limit"),
        pytest.param({"": ("1000", 600, 0), "pod/app": ("max", 5, 0)}, 400, id="a-limit-further-up"),
        pytest.param(
            {"": ("1000", 600, 0), "pod": ("500", 480, 0), "pod/app": ("900", 5, 0)}, 20, id="the-narrowest"
        ),
        pytest.param({"": ("1000", 1200, 0)}, 0, id="never-less-than-nothing"),
    ],
)
def test_room(tmp_path: Path, limits: dict[str, tuple[str, int, int]], room: int | None) -> None:
    """What may still be taken is what the narrowest of the groups has left."""
    for path, (limit, current, inactive_file) in limits.items():
        group(tmp_path / path, limit=limit, current=current, inactive_file=inactive_file)
    container = Container(tmp_path, "/pod/app" if len(limits) > 1 else "/")
    assert container.room_bytes() == room
    assert container.is_limited == (room is not None)


def test_no_cgroups(tmp_path: Path) -> None:
    """A machine without them has no limit."""
    assert Container(tmp_path / "nowhere", "/").room_bytes() is None


def test_a_limit_that_goes_away(tmp_path: Path) -> None:
    """A limit that is lifted, or a group that is gone, is none."""
    folder = group(tmp_path, limit="1000", current=10)
    container = Container(tmp_path, "/")
    assert container.room_bytes() == 990
    (folder / "memory.max").write_text("max\n")
    assert container.room_bytes() is None
