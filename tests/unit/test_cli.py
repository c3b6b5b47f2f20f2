"""The command line for a server that runs."""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gunicorn.ctl.protocol import ControlProtocol, make_response

from airflow_arbiter import __main__, cli, commandline, examination, screen
from airflow_arbiter.client import NoServerError


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AIRFLOW_HOME", "XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))


def test_the_first_word_says_who_is_meant() -> None:
    """``airflow-arbiter`` takes the names of all commands for commands, and everything else for an app."""
    names = sorted(command.name for command in cli.COMMANDS)
    assert names == sorted(__main__.COMMANDS)
    assert ", ".join(names) in commandline.COMMANDS_HELP


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


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said what is wanted."""
    with pytest.raises(SystemExit):
        cli.main(["reload", "--wait", f"--timeout={text}"])
    assert f"--timeout: '{text}' is no number of seconds above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "because"),
    [
        ("status --watch --output yaml", "--watch goes with --output table or json"),
        ("rollout restart --timeout 5", "--timeout is how long --wait waits: it goes with that"),
        ("rollout status --timeout 5", "--timeout is how long --wait waits: it goes with that"),
        ("reload --timeout 5", "--timeout is how long --wait waits: it goes with that"),
    ],
)
def test_arguments_that_do_not_go_together(
    line: str, because: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and one line, before anybody is asked."""
    assert cli.main(line.split()) == 2
    assert capsys.readouterr().err == f"airflow-arbiter: error: {because}\n"


@pytest.mark.parametrize(
    ("words", "server"),
    [
        ([], []),
        (["hello:app", "--preload"], ["hello:app", "--preload"]),
        (["--preload"], ["--preload"]),
        (["--workers", "3", "hello:app", "--", "x"], ["--workers", "3", "hello:app", "--", "x"]),
        (["--", "--preload", "hello:app"], ["--preload", "hello:app"]),
        (["-c", "conf.py", "--help"], ["-c", "conf.py", "--help"]),
    ],
)
def test_what_follows_doctor_is_the_servers(
    monkeypatch: pytest.MonkeyPatch, words: list[str], server: list[str]
) -> None:
    """All of it, options too, with ``--`` before it or without."""
    asked = []

    def examine(arguments: list[str]) -> None:
        asked.append(arguments)
        raise NoServerError("enough")

    monkeypatch.setattr(examination, "examine", examine)
    assert cli.main(["doctor", *words]) == 1
    assert asked == [server]


def test_doctor_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Of its own, which says what it leaves alone."""
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    assert "Master hooks, log files and metrics" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "command", ["status", "rollout status", "rollout restart", "reload --wait", "rollout status --wait"]
)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"status": "ok"}, id="another-shape"),
        pytest.param({"server": 3, "pool": [], "rollout": {}, "workers": None}, id="other-types"),
        pytest.param([1], id="a-list"),
        pytest.param({"revision": "1"}, id="a-word-for-a-number"),
    ],
)
def test_answers_of_another_version(
    capsys: pytest.CaptureFixture[str], place: Path, command: str, data: object
) -> None:
    """One line on standard error, exit code 1; gunicorn's own server is such a one."""
    path = place / "named"
    with _answering(path, data):
        assert cli.main([*command.split(), "--socket", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "a server of another version" in captured.err


@contextlib.contextmanager
def _answering(path: Path, data: object) -> Iterator[None]:
    """A server that answers everything in the same way."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    ControlProtocol.read_message(sock)
                    ControlProtocol.write_message(sock, make_response(1, data))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_bug_of_ours_is_not_taken_for_an_answer() -> None:
    """What is wrong with us is not put down to the server."""

    def run(_args: argparse.Namespace) -> int:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        cli.perform(run, argparse.Namespace())


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
