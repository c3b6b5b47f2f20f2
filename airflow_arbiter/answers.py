"""
Reading what a server has answered, which may be of another version than we are, or not be ours at all.

Owns what counts as an answer: each field that we know has its form, and one that came later has its default.
What is more is let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from airflow_arbiter.errors import ArbiterError
from airflow_arbiter.report import Report

_NUMBERS = (int, float)


class NotUnderstoodError(ArbiterError):
    """
    An answer has not the form that we know; the message says where.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """
    The answer to an order to replace all workers.

    :param revision: its number.
    """

    revision: int


def report(answer: object) -> Mapping[str, Any]:
    """
    Read a report.

    :raises NotUnderstoodError: when it is none.
    """
    return _object(Report, answer, "the answer")


def revision(answer: object) -> int:
    """
    Read the number that an order was given.

    :raises NotUnderstoodError: when there is none.
    """
    number: int = _object(Taken, answer, "the answer")["revision"]
    return number


def _object(form: type, value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _error(f"{name} is no object")
    forms = get_type_hints(form)
    return {
        **value,
        **{
            field.name: _value(forms[field.name], value[field.name], field.name)
            if field.name in value
            else _default(field)
            for field in fields(form)
        },
    }


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return asdict(field.default_factory())
    if field.default is MISSING:
        raise _error(f"there is no {field.name}")
    return field.default


def _value(form: Any, value: object, name: str) -> Any:
    origin, parts = get_origin(form), get_args(form)
    if is_dataclass(form):
        return _object(form, value, name)  # type: ignore[arg-type]  # it is no instance
    if origin is tuple and isinstance(value, list):
        return [_value(parts[0], item, name) for item in value]
    if origin in (Union, UnionType):
        return None if value is None else _value(parts[0], value, name)
    # Of words, a later version may have more.
    wanted = type(parts[0]) if origin is Literal else form
    is_number = wanted is float and isinstance(value, _NUMBERS) and not isinstance(value, bool)
    if is_number or type(value) is wanted:
        return value
    raise _error(f"{name} cannot be {value!r:.100}")


def _error(because: str) -> NotUnderstoodError:
    return NotUnderstoodError(f"the answer is not understood, as of a server of another version: {because}")
