"""Watched folders: a change of content brings in new code, and nothing else does."""

from __future__ import annotations

import os
import signal
import time

import pytest
from harness.codeapp import CodeApp, wait_answer
from harness.load import Load
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually

INTERVAL_S = 0.3


def _serve(start: Start, code: CodeApp, *, preload: bool = True) -> Server:
    watched = (f"--reload-path={code.package}", f"--reload-check-interval={INTERVAL_S}")
    server = start(*watched, command=code.command(preload=preload), workers=2)
    server.wait_ready(2)
    return server


@pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "plain"])
def test_changed_code_comes_in_by_itself(start: Start, code: CodeApp, preload: bool) -> None:
    """Under load the new answer appears, once, and nothing is lost."""
    server = _serve(start, code, preload=preload)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        code.write("second")
        server.wait_event("rollout.completed")
        wait_answer(server, "second")
        code.write("third!!")
        server.wait_event("rollout.completed", 2)
        wait_answer(server, "third!!")
    assert load.failures == {}
    assert load.bodies == {b"one", b"second", b"third!!"}
    assert [event.values["reason"] for event in server.events("reload.started")] == ["folder changed"] * 2
    server.wait_ready(2, generation=3)


def test_what_is_no_content_changes_nothing(start: Start, code: CodeApp) -> None:
    """Caches, what editors leave, hidden files, new times and unreadable links ask for no reload."""
    server = _serve(start, code)
    for name in (".#init.py", ".hidden", "#init.py#", "__init__.py~", ".x.swp", "4913", "x.pyc", "x.tmp"):
        (code.package / name).write_text("x")
    (code.package / "__pycache__").mkdir(exist_ok=True)
    (code.package / "__pycache__" / "x.py").write_text("x")
    (code.package / "loop").symlink_to(code.package)
    os.utime(code.package / "__init__.py")
    text = (code.package / "__init__.py").read_text()
    code.save(code.package / "__init__.py", text)  # another file with the same content
    _wait_looks(4)
    assert server.events("reload.started") == []
    code.write("two")
    server.wait_event("reload.resumed")
    wait_answer(server, "two")
    assert len(server.events("reload.started")) == 1


def test_a_change_while_a_reload_runs_is_not_lost(start: Start, code: CodeApp) -> None:
    """In the preflight and while the new image loads: what was written last is served in the end."""
    server = _serve(start, code)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        code.hold("import", f"!{server.pid}")
        code.write("two")
        code.wait_held("import")
        code.write("three")  # and the preflight of "two" is over
        eventually(lambda: len(server.events("reload.started")) == 2, what="a new preflight")
        code.hold("import", str(server.pid))
        eventually(lambda: code.wait_held("import") == server.pid, what="the new image loads")
        code.write("fourth")  # after it has read the file, before it serves
        code.release("import")
        wait_answer(server, "fourth")
        server.wait_ready(2, generation=3)
    assert load.failures == {}
    assert len(server.events("reload.resumed")) == 2
    assert b"two" not in load.bodies


def test_two_quick_changes_are_one(start: Start, code: CodeApp) -> None:
    """Two looks must agree: of changes within one interval only the last is taken in, or both in order."""
    server = _serve(start, code)
    code.write("two")
    code.write("third")
    wait_answer(server, "third")
    server.wait_event("rollout.completed")
    assert 1 <= len(server.events("reload.resumed")) <= 2


def test_code_that_breaks_and_heals(start: Start, code: CodeApp) -> None:
    """Refused once, whatever the number of looks; taken in once mended, or put back as it was."""
    server = _serve(start, code)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        code.write("bad", at_import="x =")
        server.wait_event("reload.refused")
        looks_until = time.monotonic() + 4 * INTERVAL_S
        eventually(
            lambda: time.monotonic() > looks_until, what="time passes: that nothing happens is the fact"
        )
        assert len(server.events("reload.started")) == 1
        code.write("one")
        server.wait_event("rollout.completed")
    assert load.failures == {}
    assert load.bodies == {b"one"}
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


def _wait_looks(count: int) -> None:
    """Wait for so many looks, because that nothing happens is the fact."""
    ends_at = time.monotonic() + count * INTERVAL_S
    eventually(lambda: time.monotonic() > ends_at, what="time passes")
