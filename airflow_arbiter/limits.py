"""
What a single value of an option may be, and in which words a wrong one is refused.

Owns the bounds of our settings and of gunicorn's. A limit reads a value as it comes, text included, and
returns what it means, or raises with the reason. Knows nobody; gunicorn's own validators come after these.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

YEAR_S = 31_536_000
"""The longest duration: nobody waits for more, and no sum with a clock comes near an overflow."""

STOP_MARGIN_S = 2
"""What the server keeps, of the time that a platform gives it to stop, for its own end after the workers'."""

SHORTEST_GRACE_S = STOP_MARGIN_S + 1
"""Leaves the workers one second, which is the shortest ``graceful_timeout`` that is a time at all."""

MOST_WORKERS = 1_000
MOST_REQUESTS = 1_000_000_000
LARGEST_SIZE = 2**50
LAST_PORT = 65_535
LAST_INT = 2**31 - 1
LAST_ID = 2**32 - 2
"""Of users and groups: the one above means "leave it as it is" to the system."""

LONGEST_CONTROL_PATH = 105
"""Bytes: what a Unix socket's path may have on Linux, less the ``.2`` of a second master."""

LEVELS = ("critical", "error", "warning", "info", "debug", "trace")

_SHOWN_LENGTH = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_FREE_TEXT = ("raw_env", "access_log_format")
"""Where a line break or a tab makes sense."""


@dataclass(frozen=True, slots=True)
class Limit:
    """
    A reader of values, usable as the validator of a setting.

    :param read: returns what a value means, or raises what has the reason as its text.
    :param allowed: in words, what it takes.
    """

    read: Callable[[Any], Any]
    allowed: str

    def __call__(self, value: Any) -> Any:
        return self.read(value)


# -- numbers
# -------------------------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Limit:
    """Make a limit for whole numbers, also as text."""
    return Limit(partial(_read_whole, low, high), f"a whole number from {low} to {high}")


def number(low: float, high: float) -> Limit:
    """Make a limit for numbers, also as text."""
    return Limit(partial(_read_number, low, high), f"a number from {low} to {high}")


def number_above(low: float, high: float) -> Limit:
    """Make a limit for numbers that leaves out the lowest."""
    return Limit(partial(_read_above, low, high), f"a number above {low}, up to {high}")


def number_or_zero(low: float, high: float) -> Limit:
    """Make a limit for numbers that also has 0, for "none"."""
    return Limit(partial(_read_or_zero, low, high), f"0, or a number from {low} to {high}")


def _within(read: Any, low: float, high: float) -> Any:
    if read < low:
        raise ValueError(f"below {low}")
    if not read <= high:  # nan is not above either
        raise ValueError(f"above {high}" if read > high else "not a number")
    return read


def _read_whole(low: int, high: int, value: Any) -> int:
    read = _read_int(value) if isinstance(value, str) else value
    if isinstance(read, bool) or not isinstance(read, int):
        raise ValueError("not a whole number")
    return int(_within(read, low, high))


def _read_int(text: str) -> int:
    """Read 08 as 8, as a command line has it, and 0x10 as 16, as a configuration file has it."""
    try:
        return int(text)
    except ValueError:
        return int(text, 0)


def _read_number(low: float, high: float, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not a number")
    return float(_within(float(value), low, high))


def _read_above(low: float, high: float, value: Any) -> float:
    read = _read_number(low, high, value)
    if read == low:
        raise ValueError(f"not above {low}")
    return read


def _read_or_zero(low: float, high: float, value: Any) -> float:
    return _read_number(low, high, value) if _read_number(0, high, value) else 0.0


def _read_mode(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"0[0-7]+", value):
        value = int(value, 8)  # as umask(1) and gunicorn's command line have it
    return _read_whole(0, 0o777, value)


def _read_id(value: Any) -> Any:
    """Read the number of a user or group; names, and None, are left to gunicorn."""
    is_number = isinstance(value, (bool, int, float)) or (isinstance(value, str) and value.isdigit())
    return _read_whole(0, LAST_ID, int(value) if isinstance(value, str) else value) if is_number else value


def _read_size(value: Any) -> int:
    """Read a number of bytes, also as text that ends in K, M or G (powers of 1,024)."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:iB|B)?", value.strip(), re.IGNORECASE)
        if match is None:
            raise ValueError("not a size")
        value = round(float(match[1]) * 1024.0 ** " KMG".index(match[2].upper() or " "))
    return _read_whole(0, LARGEST_SIZE, value)


# -- text
# -------------------------------------------------------------------------------------------------------


def _read_path(value: Any) -> str | None:
    """Read a URL path; an empty one means none."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not re.fullmatch(r"/[!-~]*", value):
        raise ValueError("not a path of printable ASCII characters that starts with '/'")
    return value


def _read_paths(value: Any) -> list[str]:
    """Read URL paths; empty ones are left out, so that a default can be taken back."""
    paths = value if isinstance(value, (list, tuple)) else [value]
    return [path for path in map(_read_path, paths) if path is not None]


def _read_fork_safety(value: Any) -> str:
    if value not in ("warn", "strict", "off"):
        raise ValueError("not a mode")
    return str(value)


def _read_log_format(value: Any) -> str | None:
    if value not in (None, "console", "json"):
        raise ValueError("not a format")
    return None if value is None else str(value)


def _read_level(value: Any) -> str:
    if not isinstance(value, str) or value.strip().lower() not in LEVELS:
        raise ValueError("not a level")
    return value


def _read_networks(value: str) -> None:
    for network in filter(None, value.split(",")):
        if network.strip() != "*":
            ipaddress.ip_network(network.strip())


def check_text(name: str, value: Any) -> None:
    """
    Refuse text that no option has a use for, alone or in a list.

    :param name: the option.
    :raises ValueError: for control characters, and for what cannot be written as UTF-8.
    """
    for text in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(text, str):
            if "\0" in text or (name not in _FREE_TEXT and _CONTROL.search(text)):
                raise ValueError("it has control characters")
            text.encode()


# -- places in the file system
# -------------------------------------------------------------------------------------------------------


def _read_directory(access: int, value: Any) -> Any:
    if value:
        if not Path(value).is_dir():
            raise ValueError("no such directory")
        if not os.access(value, access):
            raise ValueError("permission denied")
    return value


def _read_folders(value: Any) -> Any:
    for path in value:
        if not path:
            raise ValueError("a folder without a name")
        _read_directory(os.R_OK | os.X_OK, path)
    return value


def _read_file(value: Any) -> Any:
    if value:
        if not Path(value).is_file():
            raise ValueError("no such file")
        if not os.access(value, os.R_OK):
            raise ValueError("permission denied")
    return value


def _read_new_file(value: Any) -> Any:
    if value is not None:
        if not value or Path(value).is_dir():
            raise ValueError("not the name of a file")
        _read_directory(os.W_OK | os.X_OK, Path(value).parent)
    return value


def _read_socket_path(value: Any) -> str:
    """Read where the control socket is to be; nothing means a private folder."""
    if value is not None and not isinstance(value, str):
        raise ValueError("not text")
    if len(os.fsencode(value or "")) > LONGEST_CONTROL_PATH:
        raise ValueError("too long for a socket")
    return (value or "").strip()


# -- the table
# -------------------------------------------------------------------------------------------------------

SECONDS = number(0, YEAR_S)
SECONDS_ABOVE_0 = number_above(0, YEAR_S)
WHOLE_SECONDS = whole(0, YEAR_S)
FRACTION = number(0, 1)
WORKERS = whole(1, MOST_WORKERS)
SIZE = Limit(_read_size, f"a number of bytes from 0 to {LARGEST_SIZE}, or such as 512M or 1.5G")
PATH = Limit(_read_path, "a path that starts with '/', or nothing")
PATHS = Limit(_read_paths, "paths that start with '/'")
FORK_SAFETY = Limit(_read_fork_safety, "warn, strict or off")
LOG_FORMAT = Limit(_read_log_format, "console or json")
NEW_FILE = Limit(_read_new_file, "a file in a directory that exists and can be written to")
_FILE = Limit(_read_file, "a file that can be read")
_DIRECTORY = Limit(partial(_read_directory, os.W_OK | os.X_OK), "a directory that can be written to")
_MODE = Limit(_read_mode, "a mode from 0 to 0o777")

GUNICORNS: Mapping[str, Limit] = {
    "workers": WORKERS,
    "backlog": whole(0, LAST_INT),
    "timeout": WHOLE_SECONDS,
    "graceful_timeout": WHOLE_SECONDS,
    "keepalive": WHOLE_SECONDS,
    "max_requests": whole(0, MOST_REQUESTS),
    "max_requests_jitter": whole(0, MOST_REQUESTS),
    "umask": _MODE,
    "control_socket": Limit(
        _read_socket_path, f"a path of at most {LONGEST_CONTROL_PATH} bytes, or nothing for a private folder"
    ),
    "control_socket_mode": _MODE,
    "user": Limit(_read_id, f"the name of a user, or a whole number from 0 to {LAST_ID}"),
    "group": Limit(_read_id, f"the name of a group, or a whole number from 0 to {LAST_ID}"),
    "cert_reqs": whole(0, 2),
    "loglevel": Limit(_read_level, ", ".join(LEVELS)),
    "chdir": Limit(partial(_read_directory, os.X_OK), "a directory"),
}
"""Where gunicorn takes more than can be served with."""

PLACES: Mapping[str, Limit] = {
    "pidfile": NEW_FILE,
    "worker_tmp_dir": _DIRECTORY,
    "reload_path": Limit(_read_folders, "folders that can be read"),
    "certfile": _FILE,
    "keyfile": _FILE,
    "ca_certs": _FILE,
    "logconfig": _FILE,
    "logconfig_json": _FILE,
}
"""What must be there; looked at when the working directory is known."""

ENVIRONMENT: Mapping[str, Limit] = {
    "WEB_CONCURRENCY": Limit(lambda value: _read_whole(0, LAST_INT, int(value)), WORKERS.allowed),
    "FORWARDED_ALLOW_IPS": Limit(_read_networks, "IP addresses or networks with commas between, or *"),
}
"""Where gunicorn has defaults from, and without a word of the variable cannot even be imported or set up."""


# -- words
# -------------------------------------------------------------------------------------------------------


def refusal(name: str, value: object, reason: object, allowed: str) -> str:
    """
    Say, in one line, that an option cannot have a value.

    :param name: the option.
    :param reason: why not.
    :param allowed: what it may be.
    """
    return f"{name} cannot be {_shown(value)} ({one_line(str(reason))}); allowed: {one_line(allowed)}"


def _shown(value: object) -> str:
    try:
        return one_line(repr(value))
    except Exception:
        # Python does not print numbers of more than some thousand digits; others' objects do as they like.
        return f"this {type(value).__name__}"


def one_line(text: str) -> str:
    """Show a text in one line, without its middle where it is long."""
    line = "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
    if len(line) <= _SHOWN_LENGTH:
        return line
    return f"{line[: _SHOWN_LENGTH // 2]}...{line[-_SHOWN_LENGTH // 4 :]}"
