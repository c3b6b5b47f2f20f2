"""What the documentation says is there is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_reliability_names_tests_that_exist() -> None:
    """Each test that proves a promise is one of ours."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^ *(?:async )?def (test_\w+)\(", code, re.MULTILINE))
    assert len(named) > 40
    assert named - defined == set()


def test_links_lead_somewhere() -> None:
    """Each link to a file of ours has its file."""
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


QUIET = {"publish", "Event", "_tell", "_order"}
TELLERS = QUIET | {"publish_exception", "_warning", "_waiting", "warning", "error", "critical"}
"""What an event is made or logged with; by the first of these as information, unless a level is named."""

_NAME = re.compile(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*")


def _events() -> Iterator[tuple[str, bool]]:
    """The events that the code has, and whether they are only told as information."""
    for path in (ROOT / "airflow_arbiter").glob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            function = call.func
            teller = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            keywords = {word.arg: word.value for word in call.keywords}
            for given in [*call.args, keywords.get("name")] if teller in TELLERS else []:
                if isinstance(given, ast.Constant) and _NAME.fullmatch(str(given.value)):
                    level = keywords.get("level")
                    is_quiet = teller in QUIET if level is None else getattr(level, "value", "") == "info"
                    yield str(given.value), is_quiet


def test_each_event_is_documented() -> None:
    """A warning or an error is a symptom in docs/troubleshooting.md; what is only told is in docs/log.md."""
    events = list(_events())
    log, troubles = ((ROOT / "docs" / f"{page}.md").read_text() for page in ("log", "troubleshooting"))
    troubling = {name for name, is_quiet in events if not is_quiet}
    assert {"worker.exited", "rollout.stalled", "thread.failed", "settings.lowered"} <= troubling
    assert {name for name in troubling if f"`{name}`" not in troubles} == set()
    assert {name for name, is_quiet in events if is_quiet and f"`{name}`" not in log} == set()


def test_no_event_is_documented_that_is_not_there() -> None:
    """Each event that is named in the pages about them is in the code."""
    code = "\n".join(path.read_text() for path in (ROOT / "airflow_arbiter").glob("*.py"))
    families = "|".join({name.partition(".")[0] for name, _ in _events()})
    for page in ("log", "troubleshooting", "rollout"):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        named = set(re.findall(rf"`((?:{families})\.(?!py)[a-z_]+)`", text))
        assert named
        assert {name for name in named if f'"{name}"' not in code} == set()
