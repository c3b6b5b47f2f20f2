"""The command line for a server that runs."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from airflow_arbiter import __main__, app, cli, screen


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AIRFLOW_HOME", "XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))


def test_the_first_word_says_who_is_meant() -> None:
    """``airflow-arbiter`` takes the names of all commands for commands, and everything else for an app."""
    names = sorted(command.name for command in cli.COMMANDS)
    assert names == sorted(__main__.COMMANDS)
    assert ", ".join(names) in app.COMMANDS_HELP


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "rollout restart",
        "rollout status --wait",
        "rollout pause",
        "rollout resume",
        "rollout abort",
        "reload --wait --timeout 5",
        "scale 3",
        "worker stop 17",
    ],
)
def test_nobody_is_there(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One line on standard error, exit code 1; so for a socket that is named."""
    assert cli.main(command.split()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("airflow-arbiter: error: no server answers in ")
    assert cli.main([*command.split(), "--socket", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "",
        "rollout",
        "status --output xml",
        "scale",
        "scale many",
        "worker stop",
        "reload --timeout 0",
        "reload --timeout nan",
    ],
)
def test_wrong_arguments(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, with the usage."""
    with pytest.raises(SystemExit) as ended:
        cli.main(line.split())
    assert ended.value.code == 2
    assert "usage: airflow-arbiter" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback() -> None:
    """Ctrl-C while one waits ends it as a shell expects."""

    def run(_args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    assert cli.perform(run, argparse.Namespace()) == 130


def test_the_help_names_all_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    """A new one needs no other place."""
    with pytest.raises(SystemExit):
        cli.main(["status", "--help"])
    assert ", ".join(screen.OUTPUTS) in capsys.readouterr().out
