"""What counts as a change of a folder's content, and when it is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_arbiter.watch import FolderWatch, fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, a folder in it, and another file there."""
    folder = tmp_path / "plugins"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.py").write_text("a = 1")
    (folder / "inner" / "b.py").write_text("b = 1")
    return folder


def _replace_link(folder: Path) -> None:
    (folder / "new").symlink_to(folder / "v2")
    (folder / "new").rename(folder / "current")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: (folder / "a.py").write_text("a = 2"), id="content"),
        pytest.param(lambda folder: (folder / "inner" / "b.py").write_text("b = 2"), id="content-below"),
        pytest.param(lambda folder: (folder / "c.py").touch(), id="a-new-file-though-empty"),
        pytest.param(lambda folder: (folder / "a.py").unlink(), id="a-file-less"),
        pytest.param(lambda folder: (folder / "a.py").rename(folder / "c.py"), id="a-name"),
        pytest.param(lambda folder: (folder / "a.py").rename(folder / "inner" / "a.py"), id="a-place"),
        pytest.param(lambda folder: (folder / "data.json").write_text("{}"), id="what-is-no-python"),
    ],
)
def test_names_and_content_count(folder: Path, change: Callable[[Path], object]) -> None:
    """A change of any of them changes the fingerprint, and putting it back restores it."""
    before = fingerprint([folder])
    change(folder)
    assert fingerprint([folder]) != before


@pytest.mark.parametrize(
    "name",
    [
        "a.pyc",
        "a.pyo",
        "a.py~",
        ".a.py.swp",
        "a.swo",
        "a.swx",
        "a.tmp",
        "4913",
        ".hidden",
        ".#a.py",
        "#a.py#",
        ".git/HEAD",
        "__pycache__/a.py",
        "inner/__pycache__/b.cpython-311.pyc.4711",
    ],
)
def test_caches_and_what_editors_leave_do_not(folder: Path, name: str) -> None:
    """Such a name changes nothing, whatever is in it."""
    before = fingerprint([folder])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert fingerprint([folder]) == before


def test_times_and_modes_do_not(folder: Path) -> None:
    """A copy that is the same is the same."""
    before = fingerprint([folder])
    os.utime(folder / "a.py", (1, 1))
    (folder / "a.py").chmod(0o600)
    (folder / "empty").mkdir()
    assert fingerprint([folder]) == before


def test_the_content_of_two_files_is_told_apart(folder: Path) -> None:
    """The end of one file and the beginning of the next are no matter of taste."""
    (folder / "x").write_text("12")
    (folder / "y").write_text("3")
    before = fingerprint([folder])
    (folder / "x").write_text("1")
    (folder / "y").write_text("23")
    assert fingerprint([folder]) != before


def test_links_are_followed_as_kubernetes_swaps_them(folder: Path) -> None:
    """A link to a folder that is put in another one's place is a change of content."""
    for version in ("v1", "v2"):
        (folder / version).mkdir()
        (folder / version / "plugin.py").write_text(version)
    (folder / "current").symlink_to(folder / "v1")
    before = fingerprint([folder / "current"])
    _replace_link(folder)
    assert fingerprint([folder / "current"]) != before


def test_links_in_a_circle_end(folder: Path) -> None:
    """A folder is looked at once, by whatever name; a link that leads nowhere is no file."""
    (folder / "inner" / "up").symlink_to(folder)
    (folder / "nowhere").symlink_to(folder / "missing")
    (folder / "self").symlink_to(folder / "self")
    assert fingerprint([folder])


def test_what_is_no_file_is_left_alone(folder: Path) -> None:
    """A pipe, which nobody writes to, does not hold the look."""
    before = fingerprint([folder])
    os.mkfifo(folder / "pipe")
    assert fingerprint([folder]) == before


def test_a_name_in_no_known_encoding(folder: Path) -> None:
    """Names are bytes."""
    before = fingerprint([folder])
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.py")).touch()
    assert fingerprint([folder]) != before


def test_a_folder_that_is_missing_is_empty(tmp_path: Path) -> None:
    """It may come later."""
    missing = tmp_path / "missing"
    before = fingerprint([missing])
    missing.mkdir()
    assert fingerprint([missing]) == before
    (missing / "a.py").touch()
    assert fingerprint([missing]) != before


def test_it_is_told_once_two_looks_agree(folder: Path) -> None:
    """One look may have seen half of a change."""
    watch = FolderWatch([folder], interval_s=60.0)
    looks = [fingerprint([folder]), "half", "whole", "whole", "whole", fingerprint([folder])]
    assert [watch._compare(look) for look in looks] == [False, False, False, True, False, False]
    assert watch._compare(fingerprint([folder])), "the way back is a change as well"
