"""Equal pages that the kernel may merge again (KSM)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from harness.server import Server
from harness.starting import Start

DAEMON = Path("/sys/kernel/mm/ksm/run")

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/ksm_stat").exists(), reason="this kernel does not tell of KSM"
)


def may_merge(pid: int) -> bool:
    """Whether a process has asked for it. Source: the kernel's Documentation/filesystems/proc.rst."""
    return "ksm_merge_any: yes" in Path(f"/proc/{pid}/ksm_stat").read_text()


def pids(server: Server) -> list[int]:
    return [worker.pid for worker in server.ready()]


def test_master_and_workers_ask_for_it(serve: Start) -> None:
    """With `memory_merge` all pages of all processes may be merged; where nobody does it, that is told."""
    server = serve("--memory-merge", workers=1)
    assert may_merge(server.pid)
    assert all(may_merge(pid) for pid in pids(server))
    is_told = server.events("memory_merge.unavailable") != []
    assert is_told == (DAEMON.read_text().strip() != "1")


def test_it_is_off_unless_wanted(serve: Start) -> None:
    """By default the kernel is not asked, and nothing is said."""
    server = serve(workers=1)
    assert not may_merge(server.pid)
    assert server.events("memory_merge.unavailable") == []


def test_a_reload_takes_the_wish_back(serve: Start, tmp_path: Path) -> None:
    """What SIGHUP finds in the configuration holds, for the master and the workers that come then."""
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("memory_merge = True\n")
    server = serve(f"--config={config}", workers=1)
    config.write_text("")
    old = server.ready()
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    assert not set(server.ready()) & set(old)
    assert not any(map(may_merge, [server.pid, *pids(server)]))
