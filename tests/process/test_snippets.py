"""The commands of README and docs do what the pages say: each page is done from its beginning to its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.snippets import ROOT, Block, stories
from harness.story import Story

STORIES = stories(airflow=False)


@pytest.mark.parametrize("blocks", STORIES.values(), ids=STORIES)
def test_commands(blocks: list[Block], tmp_path: Path) -> None:
    """Commands end as they should, servers answer, and end well; what is written into docs/ is current."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "GUNICORN"))}
    Story(tmp_path, env, path="/", within_s=30).tell(blocks)
    for made in (tmp_path / "docs").rglob("*.*"):
        committed = ROOT / made.relative_to(tmp_path)
        assert made.read_text() == committed.read_text(), f"{committed.name} is not what its command makes"
