"""Heads (HSAKD): the inputs or logits of a teacher's classifiers, for each rotation of a view.

Rotation r turns a view by 90 r degrees counter-clockwise (`torch.rot90`, k = r over height and
width). A batch of n views is n R rows in the order R n + r; a head with R classes for every class
of the images (HSAKD's self-supervised ones) has class c under rotation r at index R c + r.
HSAKD, IJCAI 2021, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from storage.targets.kind_settings import (
    constants_of,
    expect_constants,
    expect_parts,
    settings_from_json,
    settings_to_json,
)
from storage.targets.record import TargetRecord, VectorPart
from storage.targets.top_k_heads import INDEX, TopK, all_logits, index_faults
from storage.typed import check_types

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

ROW_ORDER = {1: "image-major n", 4: "image-major 4n+r"}
JOINT_INDEX = {1: "class", 4: "4*class+rotation"}
DIRECTION = "ccw"
TOP_K = "top-k"
STORED = {
    "pooled": ("int8", "fp16", "fp32"),
    "dense": ("affine8", "fp16", "fp32"),
    TOP_K: ("fp16",),
}


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """One classifier.

    name: of its part and (with `_weight`, `_bias`) constants. width: d of its input.
    classes: C of its output, classes times rotations for a joint head.
    encoding: "pooled" keeps the input, and the weights once; "dense" keeps the logits, "top-k" the
        largest of them.
    stored: encoding of the part's values.
    top_k: how many and how well; None but with "top-k".
    """

    name: str
    width: int
    classes: int
    encoding: str
    stored: str
    top_k: TopK | None = None

    def __post_init__(self) -> None:
        if isinstance(self.top_k, dict):
            object.__setattr__(self, "top_k", TopK(**self.top_k))
        check_types(self)
        if self.encoding not in STORED or self.stored not in STORED[self.encoding]:
            raise UsageError(
                f"head {self.name} keeps {self.encoding!r} as {self.stored!r}; expected pooled as "
                f"{', '.join(STORED['pooled'])}, dense as {', '.join(STORED['dense'])} or "
                f"{TOP_K} as fp16"
            )
        if (self.encoding == TOP_K) != (self.top_k is not None):
            raise UsageError(f"head {self.name}: {self.encoding} with top_k {self.top_k}")
        if self.width < 1 or self.classes < 1:
            raise UsageError(f"head {self.name} is {self.width} to {self.classes}; expected 1 up")
        if self.top_k is not None and self.top_k.k >= self.classes:
            raise UsageError(
                f"head {self.name} keeps {self.top_k.k} of {self.classes} logits; expected fewer"
            )

    def parts(self, rotations: int) -> tuple[VectorPart, ...]:
        """Its vectors of one view: [R, d] or [R, C]; three of "top-k"."""
        if self.top_k is not None:
            return self.top_k.parts(self.name, rotations)
        size = self.width if self.encoding == "pooled" else self.classes
        return (VectorPart(name=self.name, shape=(rotations, size), encoding=self.stored),)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `top_k` only where there is one, as in stores of earlier releases."""
        values = settings_to_json(self)
        if self.top_k is None:
            del values["top_k"]
        return values

    def constants(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """(shape, type) of its weights by name; none where logits are kept."""
        if self.encoding != "pooled":
            return {}
        return {
            f"{self.name}_weight": ((self.classes, self.width), "float32"),
            f"{self.name}_bias": ((self.classes,), "float32"),
        }


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What the vectors of a `heads` target are; see the module's text for the conventions."""

    rotations: int
    heads: tuple[HeadSpec, ...]
    direction: str = DIRECTION
    row_order: str = ""
    joint_index: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        if self.rotations not in ROW_ORDER:
            raise UsageError(f"heads of {self.rotations} rotations; expected 1 or 4")
        given = (self.direction, self.row_order, self.joint_index)
        wanted = (DIRECTION, ROW_ORDER[self.rotations], JOINT_INDEX[self.rotations])
        if any(mine not in ("", other) for mine, other in zip(given, wanted, strict=True)):
            raise UsageError(f"heads with rotations {given}; this release knows {wanted} only")
        for name, value in zip(("direction", "row_order", "joint_index"), wanted, strict=True):
            object.__setattr__(self, name, value)
        heads = tuple(HeadSpec(**h) if isinstance(h, dict) else h for h in self.heads)
        object.__setattr__(self, "heads", heads)
        if not heads:
            raise UsageError("a heads target without heads; expected at least one")

    def head(self, name: str) -> HeadSpec:
        """The head of this name.

        Raises:
            UsageError: there is none.
        """
        for head in self.heads:
            if head.name == name:
                return head
        raise UsageError(f"no head {name!r}; there are {', '.join(h.name for h in self.heads)}")


def head_record(
    *,
    name: str,
    teacher: str,
    views: int,
    rotations: int,
    heads: Sequence[HeadSpec],
    weights: Mapping[str, Array],
) -> TargetRecord:
    """The record of a heads target.

    Args:
        weights: its constants: float32 `<head>_weight` [C, d] and `<head>_bias` [C] of every
            pooled head.
    Raises:
        UsageError: weights that don't fit the heads.
    """
    settings = HeadSettings(rotations=rotations, heads=tuple(heads))
    plain = {**settings_to_json(settings), "heads": [head.to_json() for head in settings.heads]}
    record = TargetRecord(
        kind="heads", name=name, teacher=teacher, views=views,
        parts=tuple(part for head in settings.heads for part in head.parts(rotations)),
        constants=constants_of(weights), settings=plain,
    )  # fmt: skip
    check_heads(record)
    return record


def head_settings(record: TargetRecord) -> HeadSettings:
    """Settings of a heads target."""
    return settings_from_json(HeadSettings, record)


def check_heads(record: TargetRecord) -> None:
    """The record is a heads target that makes sense.

    Raises:
        UsageError: it isn't.
    """
    settings = head_settings(record)
    wanted_parts = [part for head in settings.heads for part in head.parts(settings.rotations)]
    expect_parts(record, wanted_parts)
    wanted: dict[str, tuple[tuple[int, ...], str]] = {}
    for head in settings.heads:
        wanted |= head.constants()
    expect_constants(record, wanted)


def head_faults(
    record: TargetRecord, part: VectorPart, arrays: Mapping[str, Array]
) -> Iterator[tuple[str, Array, str]]:
    """What no labelled image may have beside `vectors.vector_faults`: classes that aren't there."""
    for head in head_settings(record).heads:
        if head.top_k is not None and part.name == f"{head.name}_{INDEX}":
            yield from index_faults(part, head.classes, arrays)


def head_logits(
    record: TargetRecord, values: Mapping[str, Array], head: str, temperature: float = 1.0
) -> Floats:
    """Logits float32 [..., R, C] of one head.

    Args:
        values: what `read_target` gives and, for a pooled head, its constants `<head>_weight` and
            `<head>_bias`.
        temperature: at which the softmax of a "top-k" head will be taken; the others serve any.
    Raises:
        UsageError: no such head, its weights are not among the values, or a temperature that a
            "top-k" head wasn't kept for.
    """
    spec = head_settings(record).head(head)
    if spec.top_k is not None:
        return all_logits(spec.top_k, head, spec.classes, values, temperature)
    if spec.encoding == "dense":
        logits: Floats = values[head]
        return logits
    lacking = [name for name in spec.constants() if name not in values]
    if lacking:
        raise UsageError(f"{record.path}: logits of {head} need the constant {lacking[0]}")
    pooled: Floats = values[head]
    return pooled @ values[f"{head}_weight"].T + values[f"{head}_bias"]


def rotation_rows(values: Array) -> Array:
    """Views' vectors [n, R, ...] as rows [R n, ...] in HSAKD's order, image-major."""
    return values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])


def joint_targets(target: npt.NDArray[np.integer[Any]], rotations: int) -> npt.NDArray[np.int64]:
    """Class of every row of a joint head, int64 [R n]: R times the image's class [n], plus r."""
    classes = np.asarray(target, np.int64)[:, None] * rotations + np.arange(rotations)
    return classes.reshape(-1)
