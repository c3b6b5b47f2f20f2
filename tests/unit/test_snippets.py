"""
The blocks of code in README and docs that are read, not run: each is what its reader takes.

Those that are run are in tests/process/test_snippets.py and tests/airflow/test_snippets.py.
"""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from gunicorn.config import Config
from harness.deployed import AIRFLOWS
from harness.snippets import FILES, OUTPUT, SHELL, Block, blocks

from airflow_arbiter import settings
from airflow_arbiter.provider_info import get_provider_info

ALL = list(blocks())
UNITS = {"Unit", "Service", "Socket", "Install"}
"""Sections of systemd's files."""


def of(language: str) -> list[Block]:
    """All blocks of a language."""
    return [block for block in ALL if block.language == language]


@pytest.mark.parametrize("block", ALL, ids=str)
def test_what_is_done_with_a_block_is_said(block: Block) -> None:
    """Each block has a language that is known here, and one that is not run has a reason."""
    assert block.language in OUTPUT | SHELL | FILES
    if block.note == "not run":
        assert len(block.value.split()) >= 3, "a reason, in words"
    if block.language in SHELL:
        assert block.commands, "commands begin with $"


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python(block: Block) -> None:
    """Python is Python."""
    compile(block.text, str(block), "exec")


def test_json() -> None:
    """JSON is JSON; a log has one object a line."""
    for block in of("json"):
        for text in [block.text] if block.text.startswith(("{\n", "[")) else block.text.splitlines():
            json.loads(text)


def test_yaml() -> None:
    """YAML is YAML, and what is an object of Kubernetes passes its schema."""
    for block in of("yaml"):
        for document in yaml.safe_load_all(block.text):
            if "apiVersion" in document:
                newest = kubernetes_validate.latest_version()
                kubernetes_validate.validate(document, newest, strict=True)


@pytest.mark.parametrize("block", of("ini"), ids=str)
def test_ini(block: Block) -> None:
    """Airflow's options exist, and ours have values that they can have; the rest is systemd's."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(block.text)
    if set(parser.sections()) <= UNITS:
        return
    ours = get_provider_info()["config"]["api"]["options"]
    for name, value in parser.items("api"):
        assert name in AIRFLOWS | set(ours), name
        if name in Config().settings and value != "":
            settings.apply(Config(), {name: value}, source=str(block))


@pytest.mark.parametrize(
    "block", [block for block in ALL if block.value.endswith("gunicorn.conf.py")], ids=str
)
def test_configuration_files(block: Block, tmp_path: Path) -> None:
    """A gunicorn.conf.py is taken by the server as it is."""
    (tmp_path / "gunicorn.conf.py").write_text(block.text)
    (tmp_path / "hello.py").write_text("async def app(scope, receive, send): ...\n")
    command = [sys.executable, "-m", "airflow_arbiter", "--check-config", "hello:app"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
