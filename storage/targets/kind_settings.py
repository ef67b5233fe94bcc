"""What the settings of all kinds of targets share: reading them back, and checking a record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from storage.errors import UsageError
from storage.targets.record import Constant, TargetRecord, VectorPart

S = TypeVar("S")


def settings_from_json(kind: type[S], record: TargetRecord) -> S:
    """A record's settings as its kind's dataclass.

    Raises:
        UsageError: unknown or lacking settings.
    """
    try:
        return kind(**record.settings)
    except TypeError as error:
        raise UsageError(f"{record.path}: its settings can't be read ({error})") from error


def settings_to_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain values, as JSON gives them back: lists for tuples."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return values


def expect_parts(record: TargetRecord, parts: Sequence[VectorPart]) -> None:
    """The record has the parts that its settings ask for.

    Raises:
        UsageError: it has others.
    """
    if record.parts != tuple(parts):
        raise UsageError(
            f"{record.path} has parts {_names(record.parts)}; its settings ask for {_names(parts)}"
        )


def expect_constants(
    record: TargetRecord, wanted: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    """The record has the constants (shape, type by name) that its settings ask for.

    Raises:
        UsageError: it has others.
    """
    found = {name: (constant.shape, constant.dtype) for name, constant in record.constants.items()}
    if found != dict(wanted):
        raise UsageError(f"{record.path} has constants {found}; its settings ask for {wanted}")


def constants_of(arrays: Mapping[str, Any]) -> dict[str, Constant]:
    """`Constant` of each array."""
    return {name: Constant.of(values) for name, values in arrays.items()}


def _names(parts: Sequence[VectorPart]) -> str:
    return ", ".join(f"{p.name} {list(p.shape)} {p.encoding}" for p in parts)
