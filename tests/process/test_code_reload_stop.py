"""A signal to end is obeyed in every phase of a reload."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.codeapp import CONFIG, CodeApp, assert_gone
from harness.server import Server
from harness.starting import Start

ENDS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
PLACES = ["interpreter", "config", "import"]


@pytest.fixture
def serve_code(start: Start, code: CodeApp, tmp_path: Path) -> Callable[..., Server]:
    """Serve the app on a Unix socket as well, with all that a master could leave behind."""

    def serve(*arguments: str) -> Server:
        config = tmp_path / "conf.py"
        config.write_text(CONFIG)
        server = start(
            f"--pid={tmp_path / 'pid'}",
            f"--bind=unix:{tmp_path / 'socket'}",
            f"--config={config}",
            *arguments,
            command=code.command(),
            env=code.environment(),
            workers=2,
        )
        server.wait_ready(2)
        return server

    return serve


def _assert_ended(server: Server, code: CodeApp, tmp_path: Path) -> None:
    assert server.wait_exit(20) == 0
    assert_gone([*code.pids(), *(mark.pid for mark in code.marks("interpreter"))])
    assert not (tmp_path / "pid").exists()
    assert not (tmp_path / "socket").exists()
    assert len(server.events("arbiter.stopped")) == 1


@pytest.mark.parametrize(
    ("who", "place", "sig"),
    [
        *((who, place, ENDS[0]) for who in ("preflight", "master") for place in PLACES),
        *(("master", "import", sig) for sig in ENDS[1:]),
    ],
)
def test_the_end_while_code_is_loaded(
    serve_code: Callable[..., Server],
    code: CodeApp,
    tmp_path: Path,
    who: str,
    place: str,
    sig: signal.Signals,
) -> None:
    """Whether the preflight or the new image loads, and what: everything ends, with exit code 0."""
    server = serve_code()
    code.hold(place, str(server.pid) if who == "master" else f"!{server.pid}")
    server.send(signal.SIGHUP)
    held = code.wait_held(place)
    assert (held == server.pid) == (who == "master")
    server.send(sig)
    if who == "master" and place != "import":
        code.release(place)  # nobody can hear yet; the signal waits
    _assert_ended(server, code, tmp_path)


def test_the_end_while_the_preflight_probes(
    serve_code: Callable[..., Server], code: CodeApp, tmp_path: Path
) -> None:
    """A preflight that waits for its app to be healthy ends with the master."""
    server = serve_code("--health-check-path=/health")
    code.hold("health", f"!{server.pid}")
    server.send(signal.SIGHUP)
    held = code.wait_held("health")
    assert held not in {worker.pid for worker in server.workers()}
    server.send(signal.SIGTERM)
    _assert_ended(server, code, tmp_path)


@pytest.mark.parametrize("sig", ENDS[:2])
def test_the_end_at_the_moment_of_the_exec(
    serve_code: Callable[..., Server], code: CodeApp, tmp_path: Path, sig: signal.Signals
) -> None:
    """A signal that comes with the preflight's verdict is obeyed by the old image or by the new one."""
    server = serve_code()
    code.write("two", at_shutdown=f"_os.kill({server.pid}, {sig:d})")
    server.send(signal.SIGHUP)
    _assert_ended(server, code, tmp_path)


def test_the_end_in_the_rollout_after_it(
    serve_code: Callable[..., Server], code: CodeApp, tmp_path: Path
) -> None:
    """A new image stops workers that it has adopted and workers that it has made."""
    server = serve_code()
    server.send(signal.SIGHUP)
    server.wait_event("worker.spawned", 3)
    server.send(signal.SIGTERM)
    _assert_ended(server, code, tmp_path)


def test_the_end_twice_while_code_is_loaded(
    serve_code: Callable[..., Server], code: CodeApp, tmp_path: Path
) -> None:
    """A second signal, while the first is being obeyed, changes nothing."""
    server = serve_code()
    code.hold("import", str(server.pid))
    server.send(signal.SIGHUP)
    code.wait_held("import")
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        server.send(sig)
    _assert_ended(server, code, tmp_path)


def test_the_end_while_a_failure_is_told(
    serve_code: Callable[..., Server], code: CodeApp, tmp_path: Path
) -> None:
    """A signal that comes when the new image's import has just failed ends the workers as well."""
    server = serve_code()
    code.write("two", at_import=_RAISES_WHAT_ENDS_US.format(pid=server.pid))
    server.send(signal.SIGHUP)
    _assert_ended(server, code, tmp_path)


_RAISES_WHAT_ENDS_US = """
class Ends(Exception):
    def __str__(self):
        os.kill(os.getpid(), 15)
        return "told"

if os.getpid() == {pid}:
    raise Ends
"""
