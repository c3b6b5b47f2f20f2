"""The commands of README and docs that need Airflow do what the pages say."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.snippets import Block, stories
from harness.story import Story

STORIES = stories(airflow=True)


@pytest.mark.parametrize("blocks", STORIES.values(), ids=STORIES)
def test_commands(blocks: list[Block], airflow_env: dict[str, str], tmp_path: Path) -> None:
    """Commands end as they should, and Airflow's API server answers, and ends well."""
    Story(tmp_path, airflow_env, path="/api/v2/version", within_s=120).tell(blocks)
