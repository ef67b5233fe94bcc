"""What a block's views are worth: labels and targets, checked and turned into arrays.

Apart from the images and views themselves, because they can be added to a store that has those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from storage.certificate import LabelSample
from storage.codecs import TopKLabels
from storage.errors import UsageError
from storage.label_arrays import label_faults, label_parts, to_arrays
from storage.targets.arrays import target_arrays, target_faults
from storage.targets.record import TargetRecord
from storage.teacher_record import TeacherRecord

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class AddedBlock:
    """Labels and targets of n images: all that is added to a block of an existing store.

    labels: by teacher, of shape [n, M].
    tail_mass: by teacher, float [n, C], for codecs with mean tails: probability of the classes that
    a label doesn't keep, summed over an image's views. samples: by teacher, the dense outputs that
    the certificate is measured on.
    targets: by path and array name, encoded vectors [n, F, ...] (storage/targets/vectors.py).
    """

    labels: dict[str, TopKLabels] = field(default_factory=dict)
    tail_mass: dict[str, npt.NDArray[np.floating[Any]]] = field(default_factory=dict)
    samples: dict[str, LabelSample] = field(default_factory=dict)
    targets: dict[str, dict[str, Array]] = field(default_factory=dict)


class HasValues(Protocol):
    """The part of a store's settings that says which labels and targets there are."""

    @property
    def num_views(self) -> int:
        """M, views of every image."""

    @property
    def teachers(self) -> Mapping[str, TeacherRecord]:
        """By name."""

    @property
    def targets(self) -> Mapping[str, TargetRecord]:
        """By path."""


def value_arrays(spec: HasValues, rows: range, data: AddedBlock, masked: Bools) -> dict[str, Array]:
    """Arrays of a block's labels and targets by path; masked images, bool [n], get fill values.

    Raises:
        UsageError: teachers or targets other than the store's, a wrong type or shape, or classes
            out of order; the message names array and row.
    """
    if sorted(data.labels) != sorted(spec.teachers):
        raise UsageError(
            f"labels of {sorted(data.labels)}; the store is for {sorted(spec.teachers)}"
        )
    arrays: dict[str, Array] = {}
    for name, labels in data.labels.items():
        _check_labels(spec, rows, name, labels, masked)
        codec, mass = spec.teachers[name].codec, data.tail_mass.get(name)
        for part, values in to_arrays(codec, labels, ~masked, mass).items():
            arrays[f"labels/{name}/{part}"] = values
    return arrays | target_arrays(spec.targets, data.targets, masked)


def value_problems(
    spec: HasValues, arrays: Mapping[str, Array], ok: Bools
) -> list[tuple[str, int, str]]:
    """What is wrong in labels and targets: (array path, first row of the block, what).

    Args:
        ok: bool [n], images that aren't masked.
    """
    found: list[tuple[str, int, str]] = []

    def check(path: str, bad: Array, what: str) -> None:
        rows = np.flatnonzero(bad.reshape(len(ok), -1).any(axis=1))
        if rows.size:
            found.append((path, int(rows[0]), what))

    for name, teacher in sorted(spec.teachers.items()):
        path = f"labels/{name}"
        parts = {part: arrays[f"{path}/{part}"] for part in label_parts(teacher.codec)}
        for part, where, what in label_faults(teacher.codec, parts, ok):
            check(f"{path}/{part}", where, what)
    for path, where, what in target_faults(spec.targets.values(), arrays, ok):
        check(path, where, what)
    return found


def expect_array(name: str, values: Array, dtype: str, shape: tuple[int, ...]) -> None:
    """Refuse a block's array of another type or shape.

    Raises:
        UsageError: names the array.
    """
    if values.dtype != np.dtype(dtype) or values.shape != shape:
        raise UsageError(
            f"block array {name} is {values.dtype} {list(values.shape)}; "
            f"expected {dtype} {list(shape)}"
        )


def _check_labels(
    spec: HasValues, rows: range, name: str, labels: TopKLabels, masked: Bools
) -> None:
    n, M, k = len(rows), spec.num_views, spec.teachers[name].codec.top_k
    expect_array(f"labels/{name}/index", labels.index, "uint16", (n, M, k))
    expect_array(f"labels/{name}/code", labels.code, "uint8", (n, M, k))
    expect_array(f"labels/{name}/tail", labels.tail, "uint8", (n, M))
    falls = (labels.code[..., 1:] < labels.code[..., :-1]).reshape(n, -1).any(axis=1) & ~masked
    if falls.any():
        raise UsageError(
            f"labels/{name}: row {rows.start + int(falls.argmax())} has probabilities that "
            "rise along a label"
        )
