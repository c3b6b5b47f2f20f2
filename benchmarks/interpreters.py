"""
What each interpreter gives: the memory and the start of the real Airflow with 4 workers, side by side.

    python benchmarks/interpreters.py .venv310/bin/python .venv313/bin/python

Each is the Python of an environment that ``make bench PYTHON=...`` has made; they are measured one after the
other, each beside Airflow's own modes on the same Python. Writes docs/benchmarks/interpreters.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.report import facts
from bench.results import OURS, Results

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks" / "interpreters.md"
CASE = "memory 4"
MODES = {"airflow": "Airflow's gunicorn mode", "uvicorn": "Airflow's uvicorn mode"}
SAME_FOR_ALL = ("day", "processors", "model", "memory", "system")

HEAD = f"""\
# What each interpreter gives

Made by

    python benchmarks/interpreters.py PYTHON ...

The real Airflow API server with 4 workers, measured once for each: PSS of all processes after 200 requests
over 5 endpoints, and after 200 more with the OpenAPI schema among them; private memory of a worker after
both; seconds to the first answer. In brackets, ours as a part of {" and of ".join(MODES.values())},
on the same Python. How it is measured is in [benchmarks/README.md](../../benchmarks/README.md), and why 3.12
makes a difference in [ADR 24](../adr/0024-what-is-preloaded-is-immortal.md).
"""

COLUMNS = (
    ("all processes, MiB", "asked_tree_mib", "{:.0f}"),
    ("with the schema, MiB", "schema_tree_mib", "{:.0f}"),
    ("a worker's own, MiB", "schema_worker_private_mib", "{:.0f}"),
    ("first answer, s", "first_answer_s", "{:.1f}"),
)


def measure(python: str) -> dict[str, Any]:
    """Take the figures of one interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        wanted = ["--quick", "--only", "memory", *(f"--only={name}" for name in (OURS, *MODES))]
        subprocess.run(
            [python, str(HERE), *wanted, "--json", str(figures)], check=True, stdout=subprocess.DEVNULL
        )
        data: dict[str, Any] = json.loads(figures.read_text())
    return data


def page(found: list[dict[str, Any]]) -> str:
    """Make the page of the figures of all interpreters."""
    lines = [HEAD, "| Python | " + " | ".join(title for title, _, _ in COLUMNS) + " |", "|---" * 5 + "|"]
    for data in found:
        results = Results(data["cases"])
        cells = [_cell(results, key, form) for _, key, form in COLUMNS]
        lines.append(f"| {data['machine']['Python']} | {' | '.join(cells)} |")
    machine = {name: found[0]["machine"][name] for name in SAME_FOR_ALL}
    lines += ["", "## Machine", "", *facts({"machine": machine, "took_s": {}}, Results({}))[:-1]]
    return "\n".join(lines) + "\n"


def _cell(results: Results, key: str, form: str) -> str:
    median = results.median(CASE, OURS, key)
    if median is None:
        return "-"
    ratios = [results.ratio(CASE, OURS, key, mode) for mode in MODES]
    return (
        f"{form.format(median)} ({', '.join('-' if ratio is None else f'{ratio:.2f}' for ratio in ratios)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    found = []
    for python in parser.parse_args().pythons:
        print(f"measuring with {python}", file=sys.stderr, flush=True)
        found.append(measure(python))
    PAGE.write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
