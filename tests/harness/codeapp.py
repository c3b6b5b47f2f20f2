"""An app on disk that a test changes while it is served, and that can be held where a test wants to look."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.server import Server, is_alive
from harness.waiting import eventually


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place that a process has come to."""

    place: str
    pid: int


class CodeApp:
    """
    A package with an ASGI app, named ``codeapp:app``, that answers what it was last written to.

    :param folder: where it lives: the package in ``site``, and beside it what processes tell of themselves.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.package = self.site / "codeapp"
        self.package.mkdir(parents=True)
        (folder / "early").mkdir()
        (folder / "early" / "sitecustomize.py").write_text(_SITE)
        self._saved_at = time.time() - 10_000
        self.write("one")

    def command(self, *, preload: bool = True) -> list[str]:
        """The command that serves it."""
        line = [sys.executable, "-m", "airflow_arbiter", "codeapp:app", f"--chdir={self.site}"]
        return [*line, "--preload"] if preload else line

    def environment(self) -> dict[str, str]:
        """What lets a test hold an interpreter that starts, before it knows of us."""
        path = [str(self.folder / "early"), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(path), "CODEAPP": str(self.folder)}

    def write(
        self,
        answer: str,
        *,
        at_import: str = "",
        at_startup: str = "pass",
        at_shutdown: str = "pass",
        at_health: str = "return 200",
    ) -> None:
        """Write new code."""
        head = f"ANSWER = {answer!r}\nFOLDER = {str(self.folder)!r}\n"
        hooks = "".join(
            f"\n\nasync def {name}():\n    {body}\n"
            for name, body in (("startup", at_startup), ("shutdown", at_shutdown), ("health", at_health))
        )
        self.save(self.package / "__init__.py", head + _APP.replace("AT_IMPORT", at_import) + hooks)

    def save(self, path: Path, text: str) -> None:
        """
        Put a file in place, at once.

        Each is a second younger than the last: Python compares times in seconds before it reads a file anew.
        """
        new = self.folder / "new"
        new.write_text(text)
        self._saved_at += 1
        os.utime(new, (self._saved_at, self._saved_at))
        new.rename(path)

    def hold(self, place: str, who: str) -> None:
        """
        Hold processes at a place, until :meth:`release`.

        :param place: ``interpreter``, ``config``, ``import`` or ``health``.
        :param who: a pid, or ``!`` and a pid for everybody else.
        """
        (self.folder / "new").write_text(who)
        (self.folder / "new").rename(self.folder / f"hold-{place}")

    def release(self, place: str) -> None:
        """Let them go on."""
        (self.folder / f"hold-{place}").unlink()

    def marks(self, place: str) -> list[Mark]:
        """Who has come to a place, in order."""
        try:
            lines = (self.folder / "marks").read_text().splitlines()
        except FileNotFoundError:
            return []
        marks = [Mark(place=line.split()[0], pid=int(line.split()[1])) for line in lines]
        return [mark for mark in marks if mark.place == place]

    def wait_held(self, place: str) -> int:
        """Wait until a process is held, and return its pid."""
        path = self.folder / f"held-{place}"
        return int(eventually(lambda: path.exists() and path.read_text(), what=f"somebody is at {place}"))

    def pids(self) -> set[int]:
        """Every process that has ever had the app."""
        return {mark.pid for mark in self.marks("import")}


def wait_answer(server: Server, answer: str, within_s: float = 30.0) -> None:
    """Wait until all workers that serve answer so: asked on new connections, many times in a row."""

    def is_everywhere() -> bool:
        return all(server.get("/") == (200, answer.encode()) for _ in range(20))

    eventually(is_everywhere, what=f"the answer {answer!r}", within_s=within_s)


def reload_ok(server: Server) -> int:
    """How many reloads have brought a new image."""
    return len(server.events("reload.resumed"))


def title(pid: int) -> str:
    """A process's title."""
    return " ".join(psutil.Process(pid).cmdline()).strip()


def assert_gone(pids: Iterable[int]) -> None:
    """No process is left."""
    eventually(lambda: not [pid for pid in pids if is_alive(pid)], what="all processes are gone")


_HOLD = """
import os as _os, time as _time
from pathlib import Path as _Path


def _mark(place):
    with open(_Path(FOLDER) / "marks", "a") as marks:
        marks.write(f"{place} {_os.getpid()}\\n")


def _is_held(place):
    try:
        who = (_Path(FOLDER) / f"hold-{place}").read_text()
    except FileNotFoundError:
        return False
    return who == str(_os.getpid()) or (who[0] == "!" and who[1:] != str(_os.getpid()))


def _hold(place):
    _mark(place)
    while _is_held(place):
        (_Path(FOLDER) / f"held-{place}.{_os.getpid()}").write_text(str(_os.getpid()))
        _os.rename(_Path(FOLDER) / f"held-{place}.{_os.getpid()}", _Path(FOLDER) / f"held-{place}")
        _time.sleep(0.01)
"""

_SITE = f"""
import os
if "CODEAPP" in os.environ:
    FOLDER = os.environ["CODEAPP"]
{_HOLD.replace(chr(10), chr(10) + "    ")}
    _hold("interpreter")
"""

CONFIG = f"""
import os
FOLDER = os.environ["CODEAPP"]
{_HOLD}
_hold("config")
"""
"""A configuration file that can be held."""

_APP = (
    _HOLD
    + """
import asyncio, os, sys, time

_hold("import")
AT_IMPORT


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if await startup() == "failed":
            await send({"type": "lifespan.startup.failed", "message": "startup is broken"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await shutdown()
        await send({"type": "lifespan.shutdown.complete"})
        return
    seconds = float(scope["query_string"] or 0)
    if scope["path"] == "/hold":
        await asyncio.sleep(seconds)
    if scope["path"] == "/block":
        time.sleep(seconds)
    if scope["path"] == "/health":
        _mark("health")
        while _is_held("health"):
            (_Path(FOLDER) / "held-health").write_text(str(os.getpid()))
            await asyncio.sleep(0.01)
    status = await health() if scope["path"] == "/health" else 200
    body = ANSWER.encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
)
