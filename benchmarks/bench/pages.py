"""The pages: everything that a run found as Markdown, and the plots beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.results import Results

PAGE = "results.md"
REMARKS = "remarks.md"
"""What a person says of the figures, if there is such a page beside them."""

_HOW = """\
in an environment that `make bench` makes; it can be run again there. What each figure means, and how it is
taken, is in [benchmarks/README.md](../../benchmarks/README.md). A cell is the median (smallest to largest), x
its ratio to airflow_arbiter's, and n how often it was measured; where requests are counted by their outcome,
it is the sum."""


def write(data: Mapping[str, Any], folder: Path | None) -> str:
    """
    Make the pages.

    :param data: as in the JSON file.
    :param folder: where they go; None writes nothing.
    :return: the Markdown.
    """
    results = Results(data["cases"])
    pictures: dict[str, str] = {}
    if folder is not None and importlib.util.find_spec("matplotlib") is not None:
        from bench.plots import draw

        folder.mkdir(parents=True, exist_ok=True)
        pictures = draw(results, folder)
    has_remarks = folder is not None and (folder / REMARKS).exists()
    text = "\n".join(
        [*_head(data, has_remarks=has_remarks), *_body(results, pictures), *_foot(data, results)]
    )
    text += "\n"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PAGE).write_text(text)
    return text


def _head(data: Mapping[str, Any], *, has_remarks: bool) -> list[str]:
    remarks = f"How far to trust them, and what limits them, is in [{REMARKS}]({REMARKS})."
    return [
        "# airflow_arbiter beside the others",
        "",
        "Made by one run of",
        "",
        f"    {data['command']}",
        "",
        _HOW,
        "",
        *([remarks, ""] if has_remarks else []),
    ]


def _body(results: Results, pictures: Mapping[str, str]) -> list[str]:
    lines = ["## Goals", "", *report.goals(results), ""]
    for key, title, table in report.sections(results):
        lines += [f"## {title}", "", *table, ""]
        for name, words in pictures.items():
            if name.startswith(f"{key}-"):  # below the table that it shows
                lines += [f"![{words}]({name})", ""]
    return lines


def _foot(data: Mapping[str, Any], results: Results) -> list[str]:
    notes = [f"- {note}" for note in results.notes()]
    return [
        "## Machine",
        "",
        *report.facts(data, results),
        *(["", "## What could not be taken", "", *notes] if notes else []),
    ]
