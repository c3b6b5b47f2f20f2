"""A server of statsd, which adds up what it is sent."""

from __future__ import annotations

import socket
import threading
from collections import Counter


class Collector:
    """
    Collects from a UDP port of 127.0.0.1.

    :ivar counters: sums, by name.
    :ivar gauges: the last values, by name.
    :ivar history: all values of gauges, by name.
    :ivar tags: every text that has come behind a value.
    """

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}
        self.history: dict[str, list[float]] = {}
        self.tags: set[str] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        while data := self._socket.recv(65536):
            for line in data.decode().splitlines():
                name, rest = line.split(":", 1)
                value, kind, *more = rest.split("|")
                self.tags.update(more)
                if kind == "c":
                    self.counters[name] += int(value)
                elif kind == "g":
                    self.gauges[name] = float(value)
                    self.history.setdefault(name, []).append(float(value))

    def close(self) -> None:
        """Collect no more."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()
