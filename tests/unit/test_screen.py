"""What a person, or a program, sees of a report."""

from __future__ import annotations

import io
import json

import pytest
import yaml
from harness.reports import as_json
from rich.console import Console
from rich.progress import Progress

from airflow_arbiter import screen


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.04, "0.0s"),
        (59.94, "59.9s"),
        (60, "1m 00s"),
        (3725, "1h 02m"),
        (90_000, "1d 01h"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    """In the two largest units."""
    assert screen.duration(seconds) == words


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that an operator asks for, with brackets in an error left as they are."""
    screen.OUTPUTS["table"](as_json(reload={"state": "waiting", "failure": "[red] is no tag"}))
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown[:6] == [
        "Server   faulty:app, pid 100, up 1d 01h",
        "Listens  http://127.0.0.1:8080",
        "Pool     2 of 2 available, 3 live, 1 booting, 0 draining, surge 1",
        "Rollout  progressing, 1 of 2 replaced, because of command, for 12.0s",
        "Reload   waiting, [red] is no tag",
        "",
    ]
    names, _, *workers = [[cell.strip() for cell in line.split("|")] for line in shown[6:]]
    assert names == [
        "pid", "age", "generation", "state", "uptime", "requests", "in_flight", "private", "last_beat",
        "last_probe", "due",
    ]  # fmt: skip
    assert workers == [
        [
            "101", "3", "1", "available", "1h 02m", "12345", "2", "150.0 MiB", "0.4s ago",
            "passed 1m 01s ago", "command",
        ],
        ["102", "4", "2", "booting", "1.5s", "0", "0", "", "", "", ""],
    ]  # fmt: skip


def test_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Each cell is one word, so that awk(1) finds its column; what is not known is a dash."""
    screen.OUTPUTS["plain"](as_json())
    names, *workers = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [dict(zip(names, worker, strict=True)) for worker in workers] == [
        {
            "pid": "101",
            "age": "3",
            "generation": "1",
            "state": "available",
            "uptime": "1h_02m",
            "requests": "12345",
            "in_flight": "2",
            "private": "150.0_MiB",
            "last_beat": "0.4s_ago",
            "last_probe": "passed_1m_01s_ago",
            "due": "command",
        },
        {
            "pid": "102",
            "age": "4",
            "generation": "2",
            "state": "booting",
            "uptime": "1.5s",
            "requests": "0",
            "in_flight": "0",
            "private": "-",
            "last_beat": "-",
            "last_probe": "-",
            "due": "-",
        },
    ]


def test_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON and YAML have the whole report, numbers as numbers."""
    report = json.loads(json.dumps(as_json()))
    screen.OUTPUTS["json"](report)
    assert json.loads(capsys.readouterr().out) == report
    screen.OUTPUTS["yaml"](report)
    assert yaml.safe_load(capsys.readouterr().out) == report


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phase": "idle", "reasons": (), "replaced": 0, "due": 0, "running_s": None}, "idle"),
        (
            {"phase": "stalled", "reasons": ("age",), "because": "exit code 3", "retry_in_s": 4.0},
            "stalled, 1 of 2 replaced, because of age, for 12.0s, exit code 3, next try in 4.0s",
        ),
    ],
)
def test_a_rollout_in_words(changes: dict[str, object], words: str) -> None:
    """What it is, how far, why, and what comes next."""
    assert screen.rollout_words(as_json(rollout=changes)) == words


def test_what_a_rollout_says_of_new_code() -> None:
    """Who asks for the replacing alone hears what the last reload failed of."""
    words = screen.rollout_words(as_json(reload={"failure": "SyntaxError"}))
    assert words.endswith(", for 12.0s, the last reload failed: SyntaxError")


ESCAPE = "\x1b]0;title\x07\x1b[2J\nnext\x9b31m"


@pytest.mark.parametrize("output", ["table", "plain"])
def test_a_foreign_text_commands_no_terminal(capsys: pytest.CaptureFixture[str], output: str) -> None:
    """What an app says when it fails stays in its line, and is shown and not obeyed."""
    seen = as_json(reload={"failure": ESCAPE, "state": "waiting"}, rollout={"because": ESCAPE})
    seen["workers"][0]["probe"] = ESCAPE
    screen.OUTPUTS[output](seen)
    with screen.progress() as tell:
        tell(seen, is_complete=False)
    captured = capsys.readouterr()
    assert all(line.isprintable() for line in (captured.out + captured.err).split("\n"))
    assert screen.rollout_words(seen).isprintable()
    assert len(captured.err.splitlines()) == 1


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each change, on standard error."""
    with screen.progress() as tell:
        tell(as_json(reload={"state": "checking"}, rollout={"replaced": 0, "due": 0}), is_complete=False)
        tell(as_json(reload={"state": "waiting", "failure": "no memory"}), is_complete=False)
        tell(as_json(), is_complete=False)
        tell(as_json(), is_complete=False)
        tell(as_json(rollout={"replaced": 2, "due": 0}), is_complete=False)
        tell(as_json(rollout={"phase": "idle", "replaced": 0, "due": 0}), is_complete=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "reload: checking",
        "reload: waiting: no memory, 1 of 2 replaced",
        "progressing, 1 of 2 replaced",
        "progressing, 2 of 2 replaced",
    ]


def test_a_bar_does_not_fall_back() -> None:
    """A rollout that is over counts nobody; the bar stands where it was, and is full if all were replaced."""
    with Progress(auto_refresh=False, console=Console(file=io.StringIO())) as drawn:
        tell = screen._Bar(drawn)
        (task,) = drawn.tasks
        tell(as_json(rollout={"replaced": 5, "due": 1}), is_complete=False)
        assert (task.completed, task.total) == (5, 6)
        over = as_json(rollout={"phase": "idle", "replaced": 0, "due": 0})
        tell(over, is_complete=False)
        assert (task.completed, task.total) == (5, 6)
        tell(over, is_complete=True)
        assert (task.completed, task.total) == (6, 6)
