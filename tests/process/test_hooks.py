"""A hook of the operator's that raises: what it may end, and what is survived; always told in the log."""

from __future__ import annotations

import os
import signal
import ssl
from pathlib import Path

import pytest
from gunicorn.config import KNOWN_SETTINGS
from harness.load import Load
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually

ARGUMENTS = {
    "on_starting": "server",
    "on_reload": "server",
    "when_ready": "server",
    "pre_fork": "server, worker",
    "post_fork": "server, worker",
    "post_worker_init": "worker",
    "worker_int": "worker",
    "worker_abort": "worker",
    "pre_exec": "server",
    "pre_request": "worker, request",
    "post_request": "worker, request, environ, response",
    "child_exit": "server, worker",
    "worker_exit": "server, worker",
    "nworkers_changed": "server, new, old",
    "on_exit": "server",
    "ssl_context": "config, default_factory",
}
ENDS_THE_START = {"on_starting": 1, "when_ready": 1, "pre_fork": 3, "post_fork": 3, "post_worker_init": 3}
"""Which hooks must do well at the first start, and the exit code where they do not."""

STALLS = ("pre_fork", "post_fork", "post_worker_init")
"""Without which no worker can be made."""

SURVIVED = ("child_exit", "worker_exit", "on_reload", "nworkers_changed", "on_exit")
AT_AN_UPGRADE = ("pre_exec", "on_starting", "when_ready")
NEVER_CALLED = ("worker_int", "worker_abort", "pre_request", "post_request", "ssl_context")
"""By no ASGI worker: they are of gunicorn's own workers."""


def raising(hook: str, error: str = "RuntimeError") -> str:
    """A configuration in which a hook raises."""
    return f"def {hook}({ARGUMENTS[hook]}): raise {error}('hook is broken')"


def test_every_hook_is_tested() -> None:
    """Each of gunicorn's hooks is in one of the lists here."""
    hooks = {setting.name for setting in KNOWN_SETTINGS if setting.section == "Server Hooks"}
    assert set(ARGUMENTS) == hooks
    assert hooks == {*ENDS_THE_START, *STALLS, *SURVIVED, *AT_AN_UPGRADE, *NEVER_CALLED}


@pytest.mark.parametrize("hook", ENDS_THE_START)
def test_hook_that_breaks_the_first_start_ends_it(start: Start, tmp_path: Path, hook: str) -> None:
    """The server ends at once, with an exit code and the hook's error, and leaves no process behind."""
    server = start(f"--config={_config(tmp_path, hook)}", workers=2)
    assert server.wait_exit(20) == ENDS_THE_START[hook]
    assert "hook is broken" in server.log()
    assert server.orphans() == []


@pytest.mark.parametrize("hook", SURVIVED)
def test_hook_that_raises_is_reported_and_survived(start: Start, tmp_path: Path, hook: str) -> None:
    """A rollout, a scaling and a stop go well although the hook raises each time, and the log tells of it."""
    server = start(f"--config={_config(tmp_path, hook)}", workers=2)
    _live(server)
    assert "hook is broken" in server.log()


def test_hooks_of_other_workers_are_never_called(
    start: Start, tmp_path: Path, certificate: tuple[list[str], ssl.SSLContext]
) -> None:
    """Hooks that have no part in ASGI workers harm nobody, because nobody calls them."""
    options, tls = certificate
    server = start(f"--config={_config(tmp_path, *NEVER_CALLED)}", *options, workers=2)
    for worker, sig in zip(server.wait_ready(2), (signal.SIGINT, signal.SIGABRT), strict=True):
        os.kill(worker.pid, sig)
    server.wait_event("worker.exited", 2)
    _live(server, tls)
    assert "hook is broken" not in server.log()


@pytest.mark.parametrize("hook", AT_AN_UPGRADE)
def test_hook_that_breaks_an_upgrade_ends_only_the_new_master(
    start: Start, tmp_path: Path, hook: str
) -> None:
    """Where a hook keeps the second master from its start, the first and its workers serve on."""
    config = tmp_path / "conf.py"
    config.write_text("")
    server = start(f"--config={config}", workers=2)
    old = server.wait_ready(2)
    config.write_text(raising(hook))
    if hook == "pre_exec":  # one of the first master's own
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        old = server.ready()
    with Load(server.port, clients=4) as load:
        server.send(signal.SIGUSR2)
        eventually(lambda: "hook is broken" in server.log(), what="the failure is told")
        eventually(lambda: server.process_count() == 2, what="the second master is gone")
        before = load.answered
        eventually(lambda: load.answered > before + 100, what="clients are served")
    assert load.failures == {}
    assert server.ready() == old
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


@pytest.mark.parametrize("error", ["RuntimeError", "SystemExit"])
@pytest.mark.parametrize("hook", STALLS)
def test_hook_that_breaks_new_workers_stalls_the_rollout(
    start: Start, tmp_path: Path, hook: str, error: str
) -> None:
    """Where no new worker can be made any more, the old ones serve on, and all is well once the hook is."""
    config = tmp_path / "conf.py"
    config.write_text("")
    server = start(f"--config={config}", workers=2)
    old = server.wait_ready(2)
    config.write_text(raising(hook, error))
    with Load(server.port, clients=4) as load:
        server.send(signal.SIGHUP)
        server.wait_event("rollout.stalled", 2)
        assert server.ready() == old
        config.write_text("")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        eventually(lambda: all(worker.generation == 3 for worker in server.workers()), what="all are new")
    assert load.failures == {}


def test_scaling_survives_a_refused_reload(start: Start, tmp_path: Path) -> None:
    """A configuration that is refused does not take back what SIGTTIN has given."""
    config = tmp_path / "conf.py"
    config.write_text("")
    server = start(f"--config={config}", workers=1)
    server.wait_ready(1)
    server.send_each(signal.SIGTTIN, times=1)
    both = server.wait_ready(2)
    config.write_text("raise RuntimeError")
    server.send(signal.SIGHUP)
    server.wait_event("reload.refused")
    server.send(signal.SIGHUP)
    server.wait_event("reload.refused", 2)
    assert server.ready() == both
    assert server.events("worker.drain_requested") == []


def _config(folder: Path, *hooks: str) -> Path:
    config = folder / "conf.py"
    config.write_text("\n".join(map(raising, hooks)))
    return config


def _live(server: Server, tls: ssl.SSLContext | None = None) -> None:
    """Roll, scale and stop under load, and lose nothing."""
    server.wait_ready(2)
    with Load(server.port, clients=4, tls=tls) as load:
        before = load.answered
        eventually(lambda: load.answered > before + 50, what="clients are busy")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        server.send_each(signal.SIGTTIN, times=1)
        server.wait_ready(3)
    assert load.failures == {}
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
