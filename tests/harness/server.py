"""A real server under test, seen from outside: its processes, its log, its answers."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.load import Client, ClosedError
from harness.waiting import eventually

_TITLE = re.compile(r"\[(?P<state>\w+)\] airflow-arbiter: worker (?P<age>\d+) gen (?P<generation>\d+) \[.*\]")
_EVENT = re.compile(r"^\S+ \[\w+ *\] (?P<name>[a-z_]+\.[a-z_]+) +\[airflow_arbiter\] ?(?P<values>.*)$")

_FIRST_PORT, _PORTS = 20_000, 12_000
_ports = (_FIRST_PORT + number % _PORTS for number in itertools.count(os.getpid() * 997))
"""Below the ports that the system gives, beginning elsewhere in each process of a test run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenWorker:
    """A worker process, as its title tells."""

    pid: int
    state: str
    age: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenEvent:
    """A line of the log that is one of our events."""

    name: str
    values: dict[str, str]


class Server:
    """
    A server that was started by a test.

    :param popen: its master.
    :param port: where it listens, on 127.0.0.1.
    :param log: what it prints.
    """

    def __init__(self, popen: subprocess.Popen[bytes], *, port: int, log: Path) -> None:
        self._popen = popen
        self._seen_pids: set[int] = set()
        self.port = port
        self.log_path = log
        self.pid = popen.pid

    # -- processes -------------------------------------------------------------------------------------------

    def workers(self) -> list[SeenWorker]:
        """The living workers, oldest first."""
        seen = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    self._seen_pids.add(child.pid)
                    title = _TITLE.match(" ".join(child.cmdline()))
                    if title:
                        state, age, generation = title.group("state", "age", "generation")
                        seen.append(
                            SeenWorker(pid=child.pid, state=state, age=int(age), generation=int(generation))
                        )
        return sorted(seen, key=lambda worker: worker.age)

    def process_count(self) -> int:
        """How many child processes exist, whatever they do, the dead ones that are not reaped left out."""
        children = psutil.Process(self.pid).children()
        self._seen_pids.update(child.pid for child in children)
        return sum(is_alive(child.pid) for child in children)

    def zombies(self) -> list[int]:
        """Child processes that are dead and not reaped."""
        return [child.pid for child in psutil.Process(self.pid).children() if not is_alive(child.pid)]

    def listening(self) -> list[int]:
        """The pids of workers that are ready and hold the listening socket open."""
        inodes = _listening_inodes(self.port)
        return [w.pid for w in self.workers() if w.state == "ready" and inodes & _socket_inodes(w.pid)]

    def ready(self, generation: int | None = None) -> list[SeenWorker]:
        """The workers that say they are ready, of one generation or of all."""
        return [
            worker
            for worker in self.workers()
            if worker.state == "ready" and generation in (None, worker.generation)
        ]

    def wait_ready(
        self, count: int, generation: int | None = None, within_s: float = 60.0
    ) -> list[SeenWorker]:
        """Wait for just this many ready workers."""

        def found() -> list[SeenWorker]:
            code = self._popen.poll()
            assert code is None, f"server ended with {code}"
            ready = self.ready(generation)
            return ready if len(ready) == count else []

        return eventually(found, what=f"{count} ready workers of generation {generation}", within_s=within_s)

    def send(self, sig: signal.Signals) -> None:
        """Send the master a signal."""
        os.kill(self.pid, sig)

    def send_each(self, sig: signal.Signals, *, times: int) -> None:
        """Send the master a signal several times, each after the last was taken: pending ones are merged."""
        name = sig.name.removeprefix("SIG").lower()
        taken = self.log().count(f"Handling signal: {name}")
        for number in range(1, times + 1):
            self.send(sig)
            eventually(
                lambda: self.log().count(f"Handling signal: {name}") == taken + number,  # noqa: B023
                what=f"{sig.name} taken",
            )

    def kill_a_worker(self) -> None:
        """End the oldest worker as the kernel's out-of-memory killer would."""
        os.kill(self.workers()[0].pid, signal.SIGKILL)

    def wait_exit(self, within_s: float = 30.0) -> int:
        """Wait for the master to end, and return its exit code."""
        return self._popen.wait(within_s)

    def end(self, within_s: float = 60.0) -> int:
        """Ask it to end, as an operator does, and return its exit code. For servers that are not ours."""
        self.process_count()
        self.send(signal.SIGTERM)
        code = self.wait_exit(within_s)
        eventually(lambda: not self.orphans(), what="its children are gone")
        return code

    def stop(self) -> None:
        """End whatever is left, by pid."""
        if self._popen.poll() is None:
            self.workers()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
                os.kill(self.pid, signal.SIGQUIT)
            try:
                self._popen.wait(20)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()

    def orphans(self) -> list[int]:
        """Workers that were seen, and have outlived the master."""
        return [pid for pid in self._seen_pids if is_alive(pid)]

    # -- log -------------------------------------------------------------------------------------------------

    def log(self) -> str:
        """All lines that were printed; the last may be half-written and is left for the next look."""
        whole, newline, _ = self.log_path.read_text(errors="replace").rpartition("\n")
        return whole + newline

    def events(self, name: str) -> list[SeenEvent]:
        """Our events of one name, in order."""
        events = []
        for line in self.log().splitlines():
            event = read_event(line)
            if event and event.name == name:
                events.append(event)
        return events

    def wait_event(self, name: str, count: int = 1, within_s: float = 30.0) -> list[SeenEvent]:
        """Wait until an event has come this often."""
        return eventually(
            lambda: events if len(events := self.events(name)) >= count else [],
            what=f"{count} x {name}",
            within_s=within_s,
        )

    # -- answers ---------------------------------------------------------------------------------------------

    def get(self, path: str = "/", timeout_s: float = 30.0) -> tuple[int, bytes]:
        """Ask once, on a new connection."""
        return Client(self.port, keep_alive=False, timeout_s=timeout_s).get(path)

    def answers(self, path: str = "/") -> bool:
        """Whether it takes a connection and answers 200."""
        try:
            return self.get(path)[0] == 200
        except (OSError, ClosedError):
            return False

    def while_rolling(self, look: Callable[[], None], *, rollouts: int = 1, within_s: float = 60.0) -> None:
        """Look again and again until this many rollouts are complete."""

        def is_done() -> bool:
            look()
            return len(self.events("rollout.completed")) >= rollouts

        eventually(is_done, what=f"{rollouts} complete rollouts", within_s=within_s)


def read_event(line: str) -> SeenEvent | None:
    """Read a line of the log, in either format; None if it is no event of ours."""
    if line.startswith("{"):
        values = {key: str(value) for key, value in json.loads(line).items()}
        return (
            SeenEvent(name=values["event"], values=values) if values["logger"] == "airflow_arbiter" else None
        )
    match = _EVENT.match(line)
    if not match:
        return None
    return SeenEvent(
        name=match["name"], values=dict(pair.split("=", 1) for pair in shlex.split(match["values"]))
    )


def free_port() -> int:
    """
    A TCP port of 127.0.0.1 that nobody uses now.

    Not one that the system gives to whoever asks for any: it is free for as long as a server takes to start.
    """
    for port in itertools.islice(_ports, _PORTS):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _listening_inodes(port: int) -> set[str]:
    """Inodes of the sockets that listen on a port. Source: proc(5), /proc/net/tcp."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1] == f"0100007F:{port:04X}" and row[3] == "0A"}


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                target = str(link.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[len("socket:[") : -1])
    return inodes
