"""The command line, as a person meets it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import airflow_arbiter
from airflow_arbiter import __main__, commandline, settings

ROOT = str(Path(airflow_arbiter.__file__).parent.parent)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty folder, so that no gunicorn.conf.py is found."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def run(
    folder: Path, *arguments: str, path: str = ROOT, options: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path, "GUNICORN_CMD_ARGS": options, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "airflow_arbiter", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=60,
    )


def test_help_lists_our_options(here: Path) -> None:
    """Our options stand in a section of their own, each with its description."""
    ended = run(here, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: airflow-arbiter [OPTIONS] [APP_MODULE]\n")
    section = re.split(r"^(?=\S.*:$)", ended.stdout, flags=re.MULTILINE)
    ours = [part for part in section if part.startswith("Airflow arbiter:\n")]
    assert len(ours) == 1
    flags = re.findall(r"^  (--[\w-]+)", ours[0], flags=re.MULTILINE)
    assert sorted(flags) == sorted(setting.cli[0] for setting in settings.OURS)
    assert all(" ".join(str(setting.short).split()) in " ".join(ours[0].split()) for setting in settings.OURS)


def test_help_says_what_it_does_without_a_word(here: Path) -> None:
    """Serving, and what else there is, before all the options."""
    about, _ = " ".join(run(here, "--help").stdout.split()).split(" options: ", 1)
    assert "without any word at all, the Airflow API server" in about
    assert commandline.COMMANDS_HELP in about


@pytest.mark.parametrize(
    ("word", "near"), [("stauts", "status"), ("rolout", "rollout"), ("docter", "doctor"), ("scael", "scale")]
)
def test_a_command_that_is_misspelt(monkeypatch: pytest.MonkeyPatch, word: str, near: str) -> None:
    """It is not taken for an app, and the near one is named."""
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    assert __main__._misspelt([word, "--output", "json"]) == near


@pytest.mark.parametrize(
    "line",
    ["", "--workers 3", "hello", "stauts:app", "pkg.stauts", "statist", "stauts --chdir=/srv", "stauts -c x"],
)
def test_what_may_be_an_app_is_served(here: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Whatever is no near miss, or can be imported, or may be elsewhere."""
    monkeypatch.chdir(here)
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    (here / "statist.py").touch()
    assert __main__._misspelt(line.split()) == ""


def test_a_misspelt_command_ends_with_2(here: Path) -> None:
    """In one line, before anything is served."""
    environment = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
    ended = subprocess.run(
        [sys.executable, "-c", "from airflow_arbiter.__main__ import console; console()", "stauts"],
        capture_output=True,
        text=True,
        cwd=here,
        env={**environment, "PYTHONPATH": ROOT},
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "airflow-arbiter: error: 'stauts' is no command, and there is no such module to serve: "
        "did you mean 'status'?\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--worker-refresh-batch-size=-1", "a:app"],
            "command line: worker_refresh_batch_size cannot be '-1' (below 0); "
            "allowed: a whole number from 0 to 1000",
            id="negative",
        ),
        pytest.param(
            ["--worker-refresh-interval=inf", "a:app"],
            "command line: worker_refresh_interval cannot be 'inf' (above 31536000); "
            "allowed: a number from 0 to 31536000",
            id="infinite",
        ),
        pytest.param(
            ["--health-check-path=health", "a:app"],
            "command line: health_check_path cannot be 'health' "
            "(not a path of printable ASCII characters that starts with '/'); "
            "allowed: a path that starts with '/', or nothing",
            id="no-path",
        ),
        pytest.param(
            ["--workers=0", "a:app"],
            "command line: workers cannot be '0' (below 1); allowed: a whole number from 1 to 1000",
            id="no-workers",
        ),
        pytest.param(
            ["--config=none.py", "a:app"],
            "config: none.py could not be read "
            "(FileNotFoundError: [Errno 2] No such file or directory: 'none.py')",
            id="no-file",
        ),
    ],
)
def test_bad_value(here: Path, arguments: list[str], message: str) -> None:
    """A wrong option is one line and exit code 2, and nothing is started."""
    ended = run(here, *arguments)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", f"airflow-arbiter: error: {message}\n", 2)


def test_bad_value_in_the_environment(here: Path) -> None:
    """The line names GUNICORN_CMD_ARGS."""
    ended = run(here, "a:app", options="--worker-refresh-jitter=2")
    assert (ended.stdout, ended.stderr, ended.returncode) == (
        "",
        (
            "airflow-arbiter: error: GUNICORN_CMD_ARGS: worker_refresh_jitter cannot be '2' (above 1); "
            "allowed: a number from 0 to 1\n"
        ),
        2,
    )


def test_bad_value_in_the_file_of_the_folder(here: Path) -> None:
    """gunicorn.conf.py of the folder is read, and named."""
    (here / "gunicorn.conf.py").write_text("min_ready_seconds = 'soon'")
    ended = run(here, "a:app")
    assert (ended.stdout, ended.returncode) == ("", 2)
    assert re.fullmatch(
        r"airflow-arbiter: error: \S*gunicorn\.conf\.py: min_ready_seconds cannot be 'soon' "
        r"\(could not convert string to float: 'soon'\); allowed: a number from 0 to 31536000\n",
        ended.stderr,
    )


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        pytest.param("--no-such-option", "unrecognized arguments: --no-such-option", id="unknown"),
        pytest.param("--min-ready", "argument --min-ready-seconds: expected one argument", id="no-value"),
        pytest.param(
            "--worker-refresh=1", "ambiguous option: --worker-refresh=1 could match ", id="ambiguous"
        ),
    ],
)
def test_what_the_parser_refuses(here: Path, argument: str, reason: str) -> None:
    """What is no option ends with one line of ours and exit code 2, whichever command line it is in."""
    ended = run(here, "a:app", argument)
    assert (ended.stdout, ended.returncode) == ("", 2)
    assert re.fullmatch(rf"airflow-arbiter: error: command line: {reason}.*; see --help\n", ended.stderr)
    ended = run(here, "a:app", options=argument)
    assert (ended.stdout, ended.returncode) == ("", 2)
    assert re.fullmatch(rf"airflow-arbiter: error: GUNICORN_CMD_ARGS: {reason}.*; see --help\n", ended.stderr)


@pytest.mark.parametrize("version", ["24.1.1", "28.0.0"])
def test_unsupported_gunicorn(here: Path, tmp_path: Path, version: str) -> None:
    """Another gunicorn is told in one line, before anything of it is imported."""
    fake = tmp_path / "fake"
    metadata = fake / f"gunicorn-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: gunicorn\nVersion: {version}\n")
    (fake / "gunicorn.py").write_text("raise ImportError('a gunicorn that we cannot work with')")
    ended = run(here, "a:app", path=f"{fake}{os.pathsep}{ROOT}")
    assert (ended.stdout, ended.stderr, ended.returncode) == (
        "",
        (
            "airflow-arbiter: error: airflow-arbiter supports gunicorn >=25.2,<28, and "
            f"{version} is installed; install a supported one: pip install 'gunicorn>=25.2,<28'\n"
        ),
        2,
    )


def test_version(here: Path) -> None:
    """--version ends well."""
    assert run(here, "--version").returncode == 0
