"""
Values that come back out of JSON, perhaps as another version of this package has written them.

Owns how a frozen value is made of plain ones by its own types: what is not known is left out, and what is
missing, or of another form, has its default.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union

T = TypeVar("T")


class _NotUnderstoodError(Exception):
    """A plain value is not what a type asks for."""


def restore(wanted: type[T], values: object) -> T:
    """
    Make a dataclass of what :func:`dataclasses.asdict` had made of it.

    :param wanted: a dataclass whose fields all have defaults.
    """
    try:
        made: T = _dataclass(wanted, values)
    except _NotUnderstoodError:
        return wanted()
    return made


def _value(wanted: Any, value: object) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(arguments[0], item) for item in value)
    if origin is typing.Literal and value in arguments:
        return value
    if dataclasses.is_dataclass(wanted):
        return _dataclass(wanted, value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is wanted or (wanted is types.NoneType and value is None):
        return value
    raise _NotUnderstoodError


def _one_of(types_wanted: tuple[Any, ...], value: object) -> Any:
    for wanted in types_wanted:
        try:
            return _value(wanted, value)
        except _NotUnderstoodError:
            continue
    raise _NotUnderstoodError


def _dataclass(wanted: Any, values: object) -> Any:
    if not isinstance(values, Mapping):
        raise _NotUnderstoodError
    hints = typing.get_type_hints(wanted)
    known = {}
    for item in dataclasses.fields(wanted):
        try:
            known[item.name] = _value(hints[item.name], values[item.name])
        except (KeyError, _NotUnderstoodError):
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise _NotUnderstoodError from None
    return wanted(**known)
