"""How Sphinx makes the pages of this folder into a site: `make docs`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from airflow_arbiter import __version__

DOCS = Path(__file__).parent

project = "airflow-arbiter"
author = "The airflow_arbiter authors"
project_copyright = author
release = __version__

extensions = ["myst_parser", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path: list[str] = []

nitpicky = True
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]


def _read(_app: Any, name: str, source: list[str]) -> None:
    """Prepare a page as GitHub shows it for Sphinx."""
    folder = (DOCS / name).parent

    def out_of_docs(link: re.Match[str]) -> str:
        # Markdown outside of this folder is no page of the site, but a file that can be had.
        is_page = (folder / link[1]).resolve().is_relative_to(DOCS)
        return link[0] if is_page else f"](path:{link[1]})"

    source[0] = re.sub(r"\]\((\.\./[^)#:]+\.md)\)", out_of_docs, source[0])


def setup(app: Any) -> None:
    """Take part in the build."""
    app.connect("source-read", _read)
