"""Targets of a block: checked, with fill values for masked images, by array path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from storage.targets.kinds import value_faults
from storage.targets.record import TargetRecord
from storage.targets.vectors import filled_vectors, mask_vectors

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Encoded = Mapping[str, Mapping[str, Array]]  # by target path, then by array name


def target_arrays(
    targets: Mapping[str, TargetRecord], data: Encoded, masked: Bools
) -> dict[str, Array]:
    """Every array of a block's targets by its path.

    Args:
        data: arrays [n, F, ...] as `encode_vectors` gives them.
        masked: bool [n]; these rows get fill values, whatever `data` holds.
    Raises:
        UsageError: targets or arrays that the store doesn't have or that are lacking, or a wrong
            type or shape.
    """
    if sorted(data) != sorted(targets):
        raise UsageError(f"targets {sorted(data)}; the store is for {sorted(targets)}")
    found: dict[str, Array] = {}
    for path, target in targets.items():
        given, wanted = data[path], target.arrays()
        if sorted(given) != sorted(wanted):
            raise UsageError(f"{path} has arrays {sorted(given)}; expected {sorted(wanted)}")
        for name, spec in wanted.items():
            values, shape = given[name], (len(masked), target.views, *spec.shape)
            if values.dtype != np.dtype(spec.dtype) or values.shape != shape:
                raise UsageError(
                    f"block array {path}/{name} is {values.dtype} {list(values.shape)}; expected "
                    f"{spec.dtype} {list(shape)}"
                )
        for part in target.parts:
            for name, values in mask_vectors(part, given, masked).items():
                found[f"{path}/{name}"] = values
    return found


def target_faults(
    targets: Iterable[TargetRecord], arrays: Mapping[str, Array], ok: Bools
) -> Iterator[tuple[str, Array, str]]:
    """What is wrong in a block's targets: (array path, bool [n, ...] where, what).

    Args:
        arrays: by array path, [n, F, ...]; ok: bool [n], images that aren't masked.
    """
    for target in targets:
        values = {name: arrays[f"{target.path}/{name}"] for name in target.arrays()}
        for part in target.parts:
            for name, where, what in value_faults(target, part, values):
                wrong = where.any(axis=tuple(range(1, where.ndim))) & ok
                yield f"{target.path}/{name}", wrong, what
            filled = filled_vectors(part, values)
            yield f"{target.path}/{part.name}", ~filled & ~ok, "is masked but has values"
