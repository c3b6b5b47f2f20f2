"""Parts of the documentation that are made from the code: their places, and whether they are current."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def exchanged(page: str, parts: Mapping[str, str], maker: str) -> str:
    """
    Give a page with its made parts exchanged; each stands between two comments that name it.

    :param parts: text by the name of the part.
    :param maker: the script that makes them.
    :raises ValueError: for a part that has no place in the page.
    """
    for name, text in parts.items():
        begin, end = f"<!-- {name}: made by scripts/{maker} -->", f"<!-- end of {name} -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"no place for {name!r}; it would stand between {begin} and {end}")
        page = f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}"
    return page


def main(path: Path, make: Callable[[], Mapping[str, str]], maker: str, arguments: Sequence[str]) -> None:
    """
    Bring a page up to date, or, with ``--check``, say whether it is.

    :raises SystemExit: with 1 and a line where it is not.
    """
    page = path.read_text()
    current = exchanged(page, make(), maker)
    if "--check" not in arguments:
        path.write_text(current)
    elif page != current:
        sys.exit(f"{path.name} is not what the code says; run python scripts/{maker}")
