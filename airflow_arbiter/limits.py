"""
What a single value of an option may be.

Owns the readers of values, which take them as they come, text included, and return what they mean. Knows
nobody.
"""

from __future__ import annotations

import math
import re
from typing import Any


def whole_number(value: Any) -> int:
    """Accept a whole number, 0 or more, also as text."""
    read = int(value, 0) if isinstance(value, str) else value
    if isinstance(read, bool) or not isinstance(read, int) or read < 0:
        raise ValueError("not a whole number, 0 or more")
    return read


def number(value: Any) -> float:
    """Accept a finite number, 0 or more, also as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not a number")
    read = float(value)
    if not 0 <= read < math.inf:
        raise ValueError("not a finite number, 0 or more")
    return read


def positive_number(value: Any) -> float:
    above = number(value)
    if not above:
        raise ValueError("not above 0")
    return above


def fraction(value: Any) -> float:
    part = number(value)
    if part > 1:
        raise ValueError("above 1")
    return part


def size(value: Any) -> int:
    """Accept a number of bytes, 0 or more, also as text that ends in K, M or G (powers of 1,024)."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:iB|B)?", value.strip(), re.IGNORECASE)
        if match is None:
            raise ValueError("not a size")
        value = round(float(match[1]) * 1024.0 ** " KMG".index(match[2].upper() or " "))
    read = whole_number(value)
    if read > 2**50:
        raise ValueError("above 1 PiB")
    return read


def path(value: Any) -> str | None:
    """Accept a URL path that starts with a slash; an empty one means none."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not re.fullmatch(r"/[!-~]*", value):
        raise ValueError("not a path of printable ASCII characters that starts with '/'")
    return value


def log_format(value: Any) -> str | None:
    if value not in (None, "console", "json"):
        raise ValueError("not a format")
    return None if value is None else str(value)
