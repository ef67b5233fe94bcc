"""A store's targets as tensors: the device's fast path of `storage.targets` (tested equal)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storage import LabelStore
from storage.errors import CorruptStore, UsageError
from storage.images import ImageStatus
from storage.targets.heads import head_faults
from storage.targets.record import TargetRecord, VectorPart
from storage.teacher_record import TeacherRecord
from trainer.plan import EpochPlan

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StoredTarget:
    """What a method is told of the target that it learns from.

    Attributes:
        teacher: whose target it is. constant, file: of the target, by name; read when asked for.
    """

    record: TargetRecord
    teacher: TeacherRecord
    constant: Callable[[str], Array]
    file: Callable[[str], bytes]


def stored_target(store: LabelStore, record: TargetRecord) -> StoredTarget:
    """A store's target, for the method that learns from it."""
    return StoredTarget(
        record,
        store.spec.teachers[record.teacher],
        lambda name: store.read_constant(record.path, name),
        lambda name: store.target_file(record.path, name),
    )


@dataclass(frozen=True)
class TargetPlane:
    """The vectors of one target for a pass, as they are stored, by row of the store.

    Attributes:
        arrays: [N, V, ...] by name of the array.
        store_row: int64 [R] row of the store of each row of the beton.
    """

    record: TargetRecord
    arrays: Mapping[str, Array]
    store_row: npt.NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Of all arrays together."""
        return sum(array.nbytes for array in self.arrays.values())

    def batch(self, rows: npt.NDArray[np.int64], device: torch.device) -> dict[str, Tensor]:
        """float32 [b * V, *shape] by part, of b beton rows, crops of one image together."""
        where = self.store_row[rows]
        taken = {name: torch.from_numpy(array[where]).to(device).flatten(0, 1)
                 for name, array in self.arrays.items()}  # fmt: skip
        return {part.name: decode_part(part, taken) for part in self.record.parts}


def decode_part(part: VectorPart, arrays: Mapping[str, Tensor]) -> Tensor:
    """float32 [..., *part.shape]; as `storage.targets.vectors.decode_vectors`, on the device."""
    values = arrays[part.name].float()
    if part.encoding in ("fp32", "fp16", "uint16"):
        return values
    values = values * arrays[f"{part.name}_scale"].unsqueeze(-1)
    if part.encoding == "affine8":
        values = values + arrays[f"{part.name}_offset"].unsqueeze(-1)
    return values


def read_target_plane(
    store: LabelStore, path: str, plan: EpochPlan, store_row: npt.NDArray[np.int64]
) -> TargetPlane:
    """All images' vectors of a pass's views, in memory as they are stored.

    Raises:
        CorruptStore: a file is missing or damaged.
    """
    record = store.spec.targets[path]
    names = [name for part in record.parts for name in part.arrays()]
    views = slice(plan.first_view, plan.first_view + plan.num_views)
    found = store.read_arrays([f"{path}/{name}" for name in names], slice(None), views)
    arrays = dict(zip(names, found, strict=True))
    _check_classes(store, record, arrays)
    return TargetPlane(record, arrays, store_row)


def _check_classes(
    store: LabelStore, record: TargetRecord, arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Numbers of classes are used as places in memory: none may lie outside of its head."""
    if record.kind != "heads":
        return
    for part in record.parts:
        for name, bad, what in head_faults(record, part, arrays):
            wrong = bad.any(axis=tuple(range(1, bad.ndim)))
            if wrong.any():  # masked images are: only then is it worth reading which those are
                wrong &= store.read_status() == ImageStatus.OK
            if wrong.any():
                raise CorruptStore(
                    f"{store.path}/{record.path}/{name}: image {wrong.argmax()} {what}: fetch or "
                    "make the store anew"
                )


def choose_target(
    store: LabelStore, kind: str, name: str | None, method: str, setting: str
) -> TargetRecord:
    """The store's only target of a kind, or the one asked for.

    Args:
        setting: what names it, for messages.
    Raises:
        UsageError: there is none (the command that adds it is given), or there are several.
    """
    targets = store.spec.targets
    paths = sorted(path for path, record in targets.items() if record.kind == kind)
    wanted = f"{kind}/{name}" if name else None
    if wanted in targets:
        return targets[wanted]
    if wanted is None and len(paths) == 1:
        return targets[paths[0]]
    if not paths:
        raise UsageError(
            f"--method {method} learns from {kind}, and {store.path} has none: add them with "
            f"`labelgen add --labels {store.path} --{kind} --out NEW.zarr`"
        )
    held = ", ".join(path.partition("/")[2] for path in paths)
    raise UsageError(
        f"{store.path} has {kind} {held}{f', not {name}' if name else ''}: choose with --set "
        f"{setting}=NAME"
    )
