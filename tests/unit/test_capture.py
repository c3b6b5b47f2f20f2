"""What Python prints by itself goes into the log."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging.config, threading, warnings
from airflow_arbiter import capture, logconfig
logging.config.dictConfig(logconfig.build(level="info", log_format="json"))
capture.install()
warnings.warn("something is old", stacklevel=1)
thread = threading.Thread(target=lambda: 1 / 0, name="a-thread")
thread.start()
thread.join()
class Broken:
    def __del__(self):
        raise KeyError("in a finalizer")
Broken()
raise RuntimeError("nobody catches me")
"""


def test_every_line_is_in_the_format() -> None:
    """A warning, a thread's error, a finalizer's and an uncaught one: one object each, nothing beside."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (ended.returncode, ended.stdout) == (1, "")
    assert [(line["level"], line["logger"], line["event"]) for line in lines] == [
        ("warning", "py.warnings", "something is old"),
        ("error", "airflow_arbiter", "thread.failed"),
        ("error", "airflow_arbiter", "exception.ignored"),
        ("critical", "airflow_arbiter", "process.failed"),
    ]
    assert lines[0]["category"] == "UserWarning"
    assert lines[1]["in_thread"] == "a-thread"
    errors = [line["exception"][0]["exc_value"] for line in lines[1:]]
    assert errors == ["division by zero", "'in a finalizer'", "nobody catches me"]


def test_hooks_of_others_stay() -> None:
    """Whoever has set a hook before us keeps it, as Airflow does for warnings."""
    program = (
        "import sys, warnings; from airflow_arbiter import capture\n"
        "mine = lambda *_: None\n"
        "sys.excepthook = warnings.showwarning = mine\n"
        "capture.install()\n"
        "assert sys.excepthook is mine and warnings.showwarning is mine\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0
