"""The benchmarks run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_quick_run_measures_and_writes(tmp_path: Path) -> None:
    """A roll and its lost requests, of ours alone, come with their figures and a page."""
    only = [word for name in ("roll", "lost", "ours") for word in ("--only", name)]
    figures = tmp_path / "figures.json"
    written = subprocess.run(
        [sys.executable, str(BENCHMARKS), "--quick", *only, "--json", str(figures)],
        check=True,
        capture_output=True,
        text=True,
        timeout=150,
    ).stdout
    cases = json.loads(figures.read_text())["cases"]
    assert {case: set(servers) for case, servers in cases.items()} == {"roll 4": {"ours"}, "lost 4": {"ours"}}
    (roll,), (lost,) = cases["roll 4"]["ours"], cases["lost 4"]["ours"]
    assert roll["seconds"] > 0
    assert roll["longest_turn_ms"] > 0
    assert lost["requests"] > 0
    assert lost["failed"] == 0
    assert "| requests lost in rolls under load | at most 0 | 0 | met |" in written
