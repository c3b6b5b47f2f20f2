"""The units that we ship: systemd takes every line, and their numbers fit the server's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from airflow_arbiter import limits
from airflow_arbiter.provider_info import get_provider_info
from airflow_arbiter.settings import WorkerBootTimeout

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
AIRFLOWS_WORKER_TIMEOUT_S = 120


def _read(unit: str) -> dict[str, list[str]]:
    """The lines of a unit, by section and key; a key may come more than once."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (UNITS / unit).read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


SERVICE, SOCKET = _read("airflow-arbiter.service"), _read("airflow-arbiter.socket")


def _environment() -> dict[str, str]:
    return dict(line.split("=", 1) for line in SERVICE["Service.Environment"])


def _seconds(key: str) -> int:
    (value,) = SERVICE[f"Service.{key}"]
    return int(value)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_takes_every_line(tmp_path: Path) -> None:
    """Its own check has nothing to say; the program that is not installed is put aside."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace(SERVICE["Service.ExecStart"][0], "/bin/true")
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_is_told_when_we_serve() -> None:
    """The master alone speaks, gets the one SIGTERM, and takes in new code where it is asked to."""
    assert [SERVICE[f"Service.{key}"] for key in ("Type", "NotifyAccess", "KillMode", "ExecReload")] == [
        ["notify"],
        ["main"],
        ["mixed"],
        ["/bin/kill -HUP $MAINPID"],
    ]


def test_a_worker_that_runs_out_of_memory_does_not_end_the_service() -> None:
    """systemd's own way is to stop all of it."""
    assert SERVICE["Service.OOMPolicy"] == ["continue"]


def test_the_times_fit() -> None:
    """A first boot and a last drain fit into what systemd gives, and the server knows of it."""
    assert _seconds("TimeoutStartSec") >= 2 * WorkerBootTimeout.default
    assert _seconds("TimeoutStopSec") >= AIRFLOWS_WORKER_TIMEOUT_S + limits.STOP_MARGIN_S
    assert _environment()["AIRFLOW__API__TERMINATION_GRACE_PERIOD"] == str(_seconds("TimeoutStopSec"))


def test_options_are_options() -> None:
    """What it sets for Airflow's section are options that the provider declares."""
    ours = get_provider_info()["config"]["api"]["options"]
    named = {name.removeprefix("AIRFLOW__API__").lower() for name in _environment() if "API" in name}
    assert named
    assert named <= set(ours)


def test_the_program_is_ours() -> None:
    """The command is one that the package brings, and the socket is the one of the service."""
    (command,) = SERVICE["Service.ExecStart"]
    assert f"\n{Path(command).name} = " in (ROOT / "pyproject.toml").read_text()
    assert SOCKET["Socket.ListenStream"] == ["8080"]
    assert {unit.stem for unit in UNITS.iterdir()} == {"airflow-arbiter"}
