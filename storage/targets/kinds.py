"""The four kinds of targets by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy.typing as npt

from storage.errors import UsageError
from storage.targets.dense import check_dense
from storage.targets.features import check_features
from storage.targets.heads import check_heads, head_faults
from storage.targets.record import TargetRecord, VectorPart
from storage.targets.tokens import check_tokens
from storage.targets.vectors import vector_faults

Array = npt.NDArray[Any]

CHECKS: dict[str, Callable[[TargetRecord], None]] = {
    "features": check_features,
    "heads": check_heads,
    "tokens": check_tokens,
    "dense": check_dense,
}


def value_faults(
    record: TargetRecord, part: VectorPart, arrays: Mapping[str, Array]
) -> Iterator[tuple[str, Array, str]]:
    """What no labelled image may have in a part: (array, bool [n, ...] where, what is wrong)."""
    yield from vector_faults(part, arrays)
    if record.kind == "heads":
        yield from head_faults(record, part, arrays)


def check_target(record: TargetRecord) -> None:
    """A record's parts, constants and files are those that its settings ask for.

    Raises:
        UsageError: they aren't, or the settings make no sense.
    """
    if record.files and record.kind != "tokens":
        raise UsageError(f"{record.path} has files {sorted(record.files)}; only tokens have any")
    try:
        CHECKS[record.kind](record)
    except (TypeError, ValueError) as error:  # a setting of another type
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{record.path}: its settings can't be read ({error})") from error
