"""What a store gives its readers, in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ImageTable:
    """The images of a store: digest u1 [N, 32], key (N names), size u2 [N, 2] (height, width),
    target i4 [N], status u1 [N]."""

    digest: npt.NDArray[np.uint8]
    key: list[str]
    size: npt.NDArray[np.uint16]
    target: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Plane:
    """Some views of all images: box u2 [N, V, 4], flip u1 [N, V]; where a teacher was named, index
    u2 [N, V, k], code u1 [N, V, k], tail u1 [N, V]; where the store has augmentations, draw i2
    [N, V, D]. Masked images hold fill values."""

    box: npt.NDArray[np.uint16]
    flip: npt.NDArray[np.uint8]
    index: npt.NDArray[np.uint16] | None = None
    code: npt.NDArray[np.uint8] | None = None
    tail: npt.NDArray[np.uint8] | None = None
    draw: npt.NDArray[np.int16] | None = None


def decode_keys(rows: npt.NDArray[np.uint8]) -> list[str]:
    """Image keys from their zero-padded bytes [N, W]."""
    width = rows.shape[1]
    keys = np.ascontiguousarray(rows).view(f"S{width}").ravel().tolist()  # S drops the padding
    return [key.decode("utf-8", "surrogateescape") for key in keys]
