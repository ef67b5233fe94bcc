"""Settings that come from files: a value of the wrong type is refused by its name.

A frozen dataclass calls `check_types(self)` first in `__post_init__`, so that the checks of ranges
that follow, and all code after them, meet the types that the fields declare.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from typing import Any

from storage.errors import UsageError

MOST_INTEGER = 1 << 63  # any larger number is a mistake, and no array could take it
_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def check_types(settings: Any) -> None:
    """Compare every field of a dataclass with its annotation.

    Lists pass for tuples; numbers must be finite and below 2^63 in size. Fields of other classes
    than int, float, str, bool, tuple, dict and their unions are left to those classes.

    Raises:
        UsageError: the first field that differs.
    """
    kind: Any = type(settings)
    for name, wanted in _fields(kind).items():
        value = getattr(settings, name)
        if not _fits(value, wanted):
            raise UsageError(f"{name} is {_short(value)}; expected {_describe(wanted)}")


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fits(value: Any, wanted: Any) -> bool:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        kinds = inner[:1] * len(value) if inner[1:] == (Ellipsis,) else inner
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items()
        )
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST_INTEGER
    if wanted is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) < MOST_INTEGER  # also refuses infinity and NaN
    if wanted in (str, bool, type(None)):
        return isinstance(value, wanted)
    return True


def _describe(wanted: Any) -> str:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(kind) for kind in inner)
    if origin in (tuple, list):
        return f"a list ({_describe(inner[0])} each)"
    if origin is dict:
        return "an object"
    return "nothing" if wanted is type(None) else _NAMES.get(wanted, str(wanted))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain_dict(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples become lists, keys strings."""
    plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    return plain
