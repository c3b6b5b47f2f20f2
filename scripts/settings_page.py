"""
Write the reference of our settings from the settings themselves.

    python scripts/settings_page.py            write it into docs/settings.md
    python scripts/settings_page.py --check    only say whether it is current
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pages
from gunicorn.config import Setting

from airflow_arbiter import ignored, limits, settings
from airflow_arbiter.provider_info import get_provider_info

PAGE = pages.DOCS / "settings.md"

AIRFLOWS = ("worker_refresh_interval", "worker_refresh_batch_size")
"""Those of our settings that Airflow has options for itself."""


def parts() -> dict[str, str]:
    """The parts of the page, by name."""
    options = get_provider_info()["config"]["api"]["options"]
    return {
        "settings": "\n\n".join(_entry(setting, {*AIRFLOWS, *options}) for setting in settings.OURS),
        "bounds": _bounds(),
        "ignored": _ignored(),
        "options": _options(options),
    }


def _entry(setting: type[Setting], airflows: set[str]) -> str:
    """Describe one setting."""
    rows = [
        ("flag", f"`{setting.cli[0]}`" if setting.action else f"`{setting.cli[0]} {setting.meta}`"),
        ("default", _value(setting.default)),
        ("allowed", settings.allowed(setting())),
        ("Airflow", f"`[api] {setting.name}`" if setting.name in airflows else "none"),
    ]
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    return f"### {setting.name}\n\n{_markdown(setting.desc)}\n\n| | |\n|---|---|\n{table}"


def _value(value: Any) -> str:
    return "none" if value in (None, []) else f"`{value:g}`" if type(value) is float else f"`{value}`"


def _markdown(text: str) -> str:
    """Turn what gunicorn shows in ``--help`` into Markdown, a line for each paragraph."""
    paragraphs = textwrap.dedent(text).strip().replace("``", "`").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _bounds() -> str:
    rows = [f"| `{name}` | {limit.allowed} |" for name, limit in sorted(limits.GUNICORNS.items())]
    return "\n".join(["| setting | allowed |", "|---|---|", *rows])


def _ignored() -> str:
    reasons: dict[str, list[str]] = {}
    for name, reason in ignored.IGNORED.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    rows = [f"| {reason} | {', '.join(names)} |" for reason, names in reasons.items()]
    return "\n".join(["| why | settings |", "|---|---|", *rows])


def _options(options: dict[str, Any]) -> str:
    rows = [
        f"| `{name}` | {_value(option['default'] or None)} | {_markdown(option['description'])} |"
        for name, option in options.items()
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


if __name__ == "__main__":
    pages.main(PAGE, parts, Path(__file__).name, sys.argv[1:])
