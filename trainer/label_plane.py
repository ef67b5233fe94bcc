"""The labels of one pass, whole where the student is trained, so that a step sends row numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MOST_ON_DEVICE = 4 << 30  # bytes; a larger plane stays in the machine's memory


@dataclass(frozen=True)
class LabelPlane:
    """Stored label codes of R rows of a beton, V views each.

    Attributes:
        index: int16 [R, V, k], the bits of uint16 class numbers (torch's own uint16 can't be
            indexed); code: uint8 [R, V, k]; tail: uint8 [R, V].
    """

    index: Tensor
    code: Tensor
    tail: Tensor

    @property
    def views(self) -> int:
        """V."""
        return self.index.shape[1]

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(class numbers int64 [b V, k], codes uint8 [b V, k], tail codes uint8 [b V]) of rows
        int64 [b] on the device, crops of one image together."""
        rows = rows.to(self.index.device)
        parts = (values[rows].flatten(0, 1).to(device) for values in (self.index, self.code))
        index, code = parts
        return class_numbers(index), code, self.tail[rows].flatten().to(device)


def label_plane(
    index: npt.NDArray[np.uint16],
    code: npt.NDArray[np.uint8],
    tail: npt.NDArray[np.uint8],
    device: torch.device,
) -> LabelPlane:
    """A pass's labels on the device, if they are not too large for it."""
    return LabelPlane(*on_device(device, index, code, tail))


def on_device(device: torch.device, *arrays: npt.NDArray[Any]) -> list[Tensor]:
    """Arrays as tensors on the device, or in the machine's memory where they are too large;
    uint16 as the bits of int16 (`class_numbers` reads them)."""
    if sum(array.nbytes for array in arrays) > MOST_ON_DEVICE:
        device = torch.device("cpu")
    as_signed = (a.view(np.int16) if a.dtype == np.uint16 else a for a in arrays)
    return [torch.from_numpy(array).to(device) for array in as_signed]


def class_numbers(bits: Tensor) -> Tensor:
    """int64 class numbers of uint16 ones whose bits an int16 tensor holds."""
    return bits.long().bitwise_and_(0xFFFF)
