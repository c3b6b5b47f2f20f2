"""
The blocks of code in README and docs, with what a comment before each says of it.

A comment in HTML stands in the line before the block, and may be one of:

- ``<!-- not run: REASON -->``: it cannot be run here, or not by anybody who is no operator;
- ``<!-- file: NAME -->``: it is the content of a file, which later blocks of the page use;
- ``<!-- airflow -->``: it needs Airflow, and is run with the tests of Airflow;
- ``<!-- exit: CODE -->``: its last command ends with this code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))

_FENCE = re.compile(
    r"^(?:<!--[ ]*(?P<note>(?:not run|file|airflow|exit)\b.*?)[ ]*-->\n)?"
    r"(?P<indent>[ ]*)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)

OUTPUT = {"text", "mermaid", "json", "{toctree}"}
"""Languages of what is shown, not done."""

SHELL = {"console", "bash", "sh"}
FILES = {"python", "ini", "yaml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """
    A block of code.

    :param line: of its first fence.
    :param note: the kind of the comment before it: ``not run``, ``file``, ``airflow``, ``exit``, or nothing.
    :param value: what follows the colon of the comment.
    """

    page: Path
    line: int
    language: str
    text: str
    note: str = ""
    value: str = ""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a block: in ``console``, the lines after a prompt, continued ones joined."""
        if self.language != "console":
            return [self.text]
        joined = self.text.replace("\\\n", " ")
        return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def blocks(pages: tuple[Path, ...] = PAGES) -> Iterator[Block]:
    """All blocks of all pages, in their order."""
    for page in pages:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            note, _, value = (match["note"] or "").partition(":")
            yield Block(
                page=page,
                line=text.count("\n", 0, match.start("indent")) + 1,
                language=match["language"].strip(),
                text=match["text"],
                note=note.strip(),
                value=value.strip(),
            )


def stories(*, airflow: bool) -> dict[str, list[Block]]:
    """
    The pages that have commands, each with the blocks that are run or written in its course.

    :param airflow: those that need Airflow, or those that do not.
    """
    told: dict[str, list[Block]] = {}
    for page in PAGES:
        mine = [block for block in blocks((page,)) if block.note != "not run"]
        if any(block.language in SHELL and (block.note == "airflow") == airflow for block in mine):
            told[page.name] = [
                block
                for block in mine
                if block.note == "file" or (block.language in SHELL and (block.note == "airflow") == airflow)
            ]
    return told
