"""A page of the documentation, done from its beginning to its end as a reader would."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.server import Server, free_port
from harness.snippets import ROOT, SHELL, Block
from harness.waiting import eventually

COMMAND_S = 60.0
ONLY_LOOKS = {"--check-config", "--print-config", "--help", "--version"}


def is_server(command: str) -> bool:
    """Whether a command serves until it is told to end."""
    match shlex.split(command, comments=True):
        case ["airflow", "api-server", *_]:
            return True
        case ["python", "-m", "airflow_arbiter", *words] | ["airflow-arbiter", *words]:
            is_client = bool(words) and not words[0].startswith("-") and ":" not in words[0]
            return not is_client and not ONLY_LOOKS.intersection(words)
        case ["python", "serve.py"]:
            return True
        case _:
            return False


class Story:
    """
    Does what the blocks of a page say, in a folder of its own.

    A command that serves goes on behind the others, on a free port, until the next one does or the page ends;
    then it is told to end, and must end well.

    :param folder: where it happens, empty. What is in the checkout can be reached from there by its name.
    :param path: what a server must answer before the page goes on.
    """

    def __init__(self, folder: Path, env: dict[str, str], *, path: str, within_s: float) -> None:
        self.folder = folder
        self._path = path
        self._within_s = within_s
        self._server: Server | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._servers = 0
        self._env = {
            **env,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), env["PATH"])),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH")))),
        }
        # Short, because the paths of sockets must be; and nobody else's servers are found there.
        self._runtime = tempfile.TemporaryDirectory(prefix="story-")
        self._env.update(XDG_RUNTIME_DIR=self._runtime.name, TMPDIR=self._runtime.name)
        for name in ("scripts", "benchmarks", "deploy"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "docs" / "images").mkdir(parents=True)
        self._take_port()

    def tell(self, blocks: list[Block]) -> None:
        """Do it all, and leave nothing behind."""
        try:
            for block in blocks:
                if block.language in SHELL:
                    for command in block.commands:
                        self._run(command, int(block.value) if block.note == "exit" else None)
                else:
                    (self.folder / block.value).write_text(block.text)
            self._end()
        finally:
            if self._server is not None:
                self._server.stop()
            self._runtime.cleanup()

    def _take_port(self) -> None:
        self._port = free_port()
        self._env["GUNICORN_CMD_ARGS"] = f"--bind=127.0.0.1:{self._port}"

    def _run(self, command: str, code: int | None) -> None:
        if code is None and is_server(command):
            self._end()
            self._take_port()
            self._serve(self._here(command))
            return
        if command.startswith("export "):
            for name, _, value in (word.partition("=") for word in shlex.split(command)[1:]):
                self._env[name] = value
            return
        done = subprocess.run(
            ["bash", "-c", self._here(command)],
            cwd=self.folder,
            env=self._env,
            timeout=COMMAND_S,
            capture_output=True,
            text=True,
        )
        assert done.returncode == (code or 0), f"{command}\n{done.stdout}{done.stderr}{self._log()}"

    def _here(self, command: str) -> str:
        for port in ("8000", "8080"):
            command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self._port}")
            command = command.replace(f"--port {port}", f"--port {self._port}")
        return command

    def _serve(self, command: str) -> None:
        self._servers += 1
        log = self.folder / f"output-{self._servers}.txt"
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                shlex.split(command, comments=True),
                cwd=self.folder,
                env=self._env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = self._server = Server(self._popen, port=self._port, log=log)
        popen = self._popen
        eventually(
            lambda: popen.poll() is not None or server.answers(self._path),
            what=f"an answer of {command}",
            within_s=self._within_s,
        )
        assert popen.poll() is None, f"{command}\n{self._log()}"

    def _end(self) -> None:
        """Tell the server to end, where the page has not."""
        if self._server is None or self._popen is None:
            return
        server, popen, self._server, self._popen = self._server, self._popen, None, None
        try:
            if popen.poll() is None:
                server.process_count()
                popen.terminate()
            assert popen.wait(self._within_s) == 0, server.log()
            eventually(lambda: not server.orphans(), what="its children are gone")
        finally:
            server.stop()

    def _log(self) -> str:
        return "" if self._server is None else f"\n--- server\n{self._server.log()}"
