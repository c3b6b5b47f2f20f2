"""Who is named for what was made."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from airflow_arbiter.makers import Awaited, name_maker

LIBRARY = """
import sys

def make():
    return look(sys._getframe())

def make_later():
    import greenlet

    made = []
    greenlet.greenlet(lambda: made.append(make())).switch()
    return made[0]
"""
PLUGIN = """
import a_library

def on_load():
    return a_library.make()

def in_a_greenlet():
    return a_library.make_later()
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plugin, which has a library do its work."""
    library, folder = tmp_path / "site-packages", tmp_path / "plugins"
    for place, name, text in ((library, "a_library", LIBRARY), (folder, "a_plugin", PLUGIN)):
        place.mkdir()
        (place / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(place)
    for name in ("a_library", "a_plugin", "outer"):
        sys.modules.pop(name, None)
    return folder


def load(look: Any) -> ModuleType:
    """Import the plugin; its library calls `look` with its own frame."""
    plugin = importlib.import_module("a_plugin")
    plugin.a_library.look = look
    return plugin


@pytest.mark.parametrize("call", ["on_load", "in_a_greenlet"])
def test_the_plugin_is_named_beside_the_library(plugins: Path, call: str) -> None:
    """Whoever has made it, and the operator's code on whose behalf, also from another greenlet."""
    pytest.importorskip("greenlet")
    told = getattr(load(lambda frame: name_maker(frame, [plugins])), call)()
    assert told.startswith(f"a_library ({plugins.parent}/site-packages/a_library.py:")
    assert f", called by a_plugin ({plugins}/a_plugin.py:" in told


def test_without_a_folder_it_is_what_is_not_installed(plugins: Path) -> None:
    """Whoever is innermost of that."""
    told = load(name_maker).on_load()
    assert f", called by a_plugin ({plugins}/a_plugin.py:" in told


def test_the_outermost_of_a_folder(plugins: Path) -> None:
    """A plugin may have modules beside it that many share."""
    (plugins / "outer.py").write_text("import a_plugin\n\ndef go():\n    return a_plugin.on_load()\n")

    def look(frame: FrameType) -> str:
        return name_maker(frame, [plugins])

    load(look)
    assert f", called by outer ({plugins}/outer.py:4)" in importlib.import_module("outer").go()


def test_a_module_is_awaited(plugins: Path) -> None:
    """What is to be done is done once the module is there, by whoever it is imported."""
    done: list[bool] = []
    awaited = Awaited("a_library", lambda: done.append(hasattr(sys.modules["a_library"], "make")))
    awaited.begin()
    importlib.import_module("a_plugin")
    assert done == [True]
    assert awaited not in sys.meta_path


def test_a_module_that_never_comes() -> None:
    """Nobody waits for it any longer than wanted."""
    awaited = Awaited("never", lambda: None)
    awaited.begin()
    awaited.end()
    awaited.end()
    assert awaited not in sys.meta_path
