"""Dense: all logits of a view, as the teacher gives them, before any temperature.

Labels keep the most probable classes; these keep every one, for losses that need the whole tail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from storage.targets.kind_settings import (
    expect_constants,
    expect_parts,
    settings_from_json,
    settings_to_json,
)
from storage.targets.record import TargetRecord, VectorPart
from storage.typed import check_types

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

LOGITS = "logits"
ENCODINGS = ("affine8", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """What the vectors of a `dense` target are.

    classes: C, in the order of the teacher's outputs.
    centred: whether each vector had its mean taken off (no softmax can tell).
    """

    classes: int
    centred: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.classes < 1:
            raise UsageError(f"dense logits of {self.classes} classes; expected 1 or more")


def dense_record(
    *,
    name: str,
    teacher: str,
    views: int,
    classes: int,
    encoding: str = "affine8",
    centred: bool = False,
) -> TargetRecord:
    """The record of a dense target.

    Raises:
        UsageError: an encoding that logits don't have.
    """
    settings = DenseSettings(classes=classes, centred=centred)
    record = TargetRecord(
        kind="dense", name=name, teacher=teacher, views=views,
        parts=(VectorPart(name=LOGITS, shape=(classes,), encoding=encoding),),
        settings=settings_to_json(settings),
    )  # fmt: skip
    check_dense(record)
    return record


def dense_settings(record: TargetRecord) -> DenseSettings:
    """Settings of a dense target."""
    return settings_from_json(DenseSettings, record)


def check_dense(record: TargetRecord) -> None:
    """The record is a dense target that makes sense.

    Raises:
        UsageError: it isn't.
    """
    settings, encoding = dense_settings(record), record.parts[0].encoding
    if encoding not in ENCODINGS:
        raise UsageError(f"{record.path}: logits as {encoding}; expected {', '.join(ENCODINGS)}")
    expect_parts(record, [VectorPart(name=LOGITS, shape=(settings.classes,), encoding=encoding)])
    expect_constants(record, {})


def stored_logits(record: TargetRecord, logits: Array) -> Floats:
    """What a record stores of logits [..., C]; `encode_vectors` takes it."""
    logits = np.asarray(logits, np.float32)
    if not dense_settings(record).centred:
        return logits
    mean = logits.mean(axis=-1, keepdims=True, dtype=np.float64)
    centred: Floats = (logits - mean).astype(np.float32)
    return centred


def dense_logits(record: TargetRecord, values: Mapping[str, Array]) -> Floats:
    """Logits float32 [..., C] from what `read_target` gives, up to what `centred` took off."""
    assert record.kind == "dense", "another kind's record"
    logits: Floats = values[LOGITS]
    return logits
