"""
The address of a host whose name is known, looked up without waiting.

Owns the errand: the system's resolver may take half a minute to say that nobody answers. Others ask it in a
thread, which a master that forks must not have.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from airflow_arbiter.errand import Errand

LIMIT_S = 60.0
"""What the resolver gets; it gives up by itself long before, unless told to be patient."""


@dataclass(frozen=True, slots=True)
class Address:
    """
    Where to send datagrams.

    :param family: the kind of socket for it.
    :param name: as that socket has it.
    """

    family: int
    name: Any


def known(host: str, port: int) -> Address | None:
    """Tell the address at once, where no name needs to be looked up."""
    with contextlib.suppress(socket.gaierror):
        return _ask(host, port, flags=socket.AI_NUMERICHOST)
    return None


class Lookup:
    """
    One name that is being looked up.

    :param host: the name.
    :ivar fd: has something to read when it is time for :meth:`collect`.
    :raises OSError: when no process or pipe can be had.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._errand = Errand(self._run, limit_s=LIMIT_S)
        self.fd = self._errand.fd

    def _run(self, pipe: int) -> None:
        try:
            found = _ask(self._host, self._port)
            told: dict[str, Any] = {"family": found.family, "name": found.name}
        except (OSError, ValueError) as error:  # a name that nobody knows, or that is none
            told = {"error": str(error)}
        os.write(pipe, json.dumps(told).encode() + b"\n")

    def collect(self) -> Address | None:
        """
        Take the answer, if there is one; None before.

        :raises OSError: when there is none, and will be none.
        """
        told = self._errand.collect()
        if told is None and not self._errand.is_late:
            return None
        if not told:
            raise OSError("nobody has answered")
        answer = json.loads(told)
        if "error" in answer:
            raise OSError(answer["error"])
        # JSON has no tuples.
        return Address(answer["family"], tuple(answer["name"]))

    def close(self) -> None:
        """End it, if it goes on."""
        self._errand.close()


def _ask(host: str, port: int, *, flags: int = 0) -> Address:
    family, _, _, _, name = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags)[0]
    return Address(int(family), name)
