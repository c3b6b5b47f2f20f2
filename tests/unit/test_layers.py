"""Who may import what: the planner knows nobody, and few know Airflow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import airflow_arbiter

PACKAGE = Path(airflow_arbiter.__file__).parent

PLANNER = {"rollout", "history", "conditions", "deadlines", "probation", "pool", "orders"}
HARMLESS = {"__future__", "collections", "dataclasses", "math", "typing"}
"""What a rule needs of Python: no clock, no luck, nothing of the system."""

KNOW_AIRFLOW = {"provider", "api_server", "metadata_database"}


def test_the_planner_knows_nobody() -> None:
    """Rules import rules, and nothing that could do anything."""
    for name in PLANNER:
        imported = set(_imported(PACKAGE / f"{name}.py"))
        ours = {module.partition(".")[2] for module in imported if module.startswith("airflow_arbiter")}
        assert ours <= PLANNER, name
        assert {module.partition(".")[0] for module in imported} - {"airflow_arbiter"} <= HARMLESS, name


def test_few_import_airflow() -> None:
    """Also inside of functions."""
    paths = PACKAGE.rglob("*.py")
    know = {
        path.stem
        for path in paths
        if any(module.partition(".")[0] == "airflow" for module in _imported(path))
    }
    assert know == KNOW_AIRFLOW


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "airflow_arbiter":
            yield from (f"airflow_arbiter.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
