"""
Clients that keep a pace, or go as fast as they are answered, and tell how long each request took.

A process of its own, ``python -m bench.pace``, on one event loop: unlike threads of Python, it costs less
than the server it asks. Each client of a pace knows when its next request is due; how long it took is counted
from then, so that a server that stands still is charged for the requests that it has kept from being asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop

from bench.load import OK, kind_of

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

HERE = Path(__file__).resolve().parents[1]
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """
    One request.

    :param due_at: when it was to be sent, on the monotonic clock.
    :param took_s: from then to the end of its answer.
    :param outcome: ``ok``, or in which way it failed.
    """

    due_at: float
    took_s: float
    outcome: str


class Pace:
    """
    Clients that ask at a pace, as a context manager; the samples are there after it.

    Every second client connects anew for each request, the others keep their connection as long as they may.

    :param port: of 127.0.0.1.
    :param clients: how many.
    :param period_s: between two requests of one client.
    :param paths: asked in turn.
    :param token: sent as a bearer's, if there is one.
    """

    def __init__(
        self, port: int, *, clients: int, period_s: float, paths: tuple[str, ...] = ("/",), token: str = ""
    ) -> None:
        self.samples: list[Sample] = []
        self._options = [f"--port={port}", f"--clients={clients}", f"--period={period_s}", *paths]
        self._environment = {**os.environ, "PYTHONPATH": str(HERE), "BENCH_TOKEN": token}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.pace", *self._options],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            written, _nothing = self._process.communicate(timeout=TIMEOUT_S + 5)
            self.samples = [
                Sample(due_at=due_at, took_s=took_s, outcome=outcome)
                for due_at, took_s, outcome in json.loads(written)
            ]
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()


def flood(port: int, *, clients: int, window_s: float) -> tuple[int, float]:
    """
    Ask without pause on kept connections.

    :return: all answers, and answers per second of the window, which begins when the server is warm.
    """
    options = [f"--port={port}", f"--clients={clients}", f"--window={window_s}", "/"]
    found = subprocess.run(
        [sys.executable, "-m", "bench.pace", *options],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=window_s + TIMEOUT_S,
    )
    answers, per_s = json.loads(found.stdout)
    if not answers:
        raise ConnectionError(f"nobody answered on port {port}")
    return answers, per_s


# -- in the process ------------------------------------------------------------------------------------------


class _Client:
    """One client that keeps a pace."""

    def __init__(self, options: argparse.Namespace, number: int) -> None:
        self.samples: list[tuple[float, float, str]] = []
        self._options = options
        self._number = number
        self._keeps = number % 2 == 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        period_s = self._options.period
        due_at = time.monotonic() + period_s * self._number / self._options.clients
        turn = self._number
        while not stop.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, due_at - time.monotonic()))
                break
            outcome = await self._outcome(self._options.paths[turn % len(self._options.paths)])
            self.samples.append((due_at, time.monotonic() - due_at, outcome))
            due_at += period_s
            turn += 1
        self._hang_up()

    async def _outcome(self, path: str) -> str:
        try:
            status, is_last = await asyncio.wait_for(self._ask(path), TIMEOUT_S)
        except asyncio.TimeoutError:
            outcome = "timeout"
        except (OSError, EOFError) as error:
            outcome = kind_of(error)
        else:
            if is_last or not self._keeps:
                self._hang_up()
            return OK if status == "200" else f"status {status}"
        self._hang_up()
        return outcome

    async def _ask(self, path: str) -> tuple[str, bool]:
        """Put one request; tell its status, and whether the server closes."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._options.port)
        reader, writer = self._streams
        writer.write(_request(path, keeps=self._keeps))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, _, after = head.partition(b"content-length:")
        await reader.readexactly(int(after.split(b"\r\n", 1)[0]))
        return head[9:12].decode("ascii", "replace"), b"connection: close" in head

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class _Flooding(asyncio.Protocol):
    """One client that asks again as soon as it is answered; the answers are all of the same length."""

    def __init__(self) -> None:
        self.answers = 0
        self._request = _request("/", keeps=True)
        self._waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by inheritance
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        if self._waiting.endswith(b"\r\n\r\nok"):
            self._waiting = b""
            self.answers += 1
            self._transport.write(self._request)


def _request(path: str, *, keeps: bool) -> bytes:
    token = os.environ.get("BENCH_TOKEN")
    headers = ["Host: 127.0.0.1"]
    headers += [f"Authorization: Bearer {token}"] if token else []
    headers += [] if keeps else ["Connection: close"]
    return "\r\n".join([f"GET {path} HTTP/1.1", *headers, "", ""]).encode()


async def _keep_pace(options: argparse.Namespace) -> list[tuple[float, float, str]]:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(sys.stdin.fileno())
        stop.set()

    loop.add_reader(sys.stdin.fileno(), end)  # readable when it is closed
    clients = [_Client(options, number) for number in range(options.clients)]
    await asyncio.gather(*(client.run(stop) for client in clients))
    return [sample for client in clients for sample in client.samples]


async def _flood(options: argparse.Namespace) -> tuple[int, float]:
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(_Flooding, "127.0.0.1", options.port))[1]
        for _ in range(options.clients)
    ]
    await asyncio.sleep(options.window / 10)
    began_at, before = time.perf_counter(), sum(client.answers for client in clients)
    await asyncio.sleep(options.window)
    answers = sum(client.answers for client in clients)
    return answers, (answers - before) / (time.perf_counter() - began_at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--period", type=float)
    parser.add_argument("--window", type=float)
    parser.add_argument("paths", nargs="+")
    options = parser.parse_args()
    uvloop.install()
    print(json.dumps(asyncio.run(_keep_pace(options) if options.period else _flood(options))))


if __name__ == "__main__":
    main()
