"""Random erasing: a rectangle of a crop filled with one colour (Zhong et al. 2020).

As torchvision's RandomErasing and timm's `const` mode, on uint8 pixels. The rectangle is kept in
4096ths of the crop's side, so that it means the same at every input size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from storage.colour import Pixels
from storage.counter import HALF, LOW, MAX_RATIO, TRIES, U64, below, box_sizes, fixed32
from storage.errors import UsageError
from storage.typed import check_types

GRID_BITS = 12
GRID = 1 << GRID_BITS
IMAGENET_MEAN = (124, 116, 104)  # zero after the usual normalisation


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """With `probability` a rectangle of `scale` of the area and `ratio` height / width is filled.

    Columns of a draw: top, left, height, width in 4096ths of the side; zeros: nothing is erased.
    """

    probability: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: tuple[int, int, int] = IMAGENET_MEAN

    kind: ClassVar[str] = "erasing"
    version: ClassVar[int] = 1
    words: ClassVar[int] = TRIES + 2
    columns: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.probability <= 1:
            raise UsageError(f"erasing: probability is {self.probability}; expected above 0, to 1")
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise UsageError(f"erasing: scale is {low} to {high}; expected 0 < low <= high <= 1")
        low, high = self.ratio
        if not 1 / MAX_RATIO <= low <= high <= MAX_RATIO:
            raise UsageError(
                f"erasing: ratio is {low} to {high}; expected 1/16 <= low <= high <= 16"
            )
        if len(self.fill) != 3 or not all(0 <= level <= 255 for level in self.fill):
            raise UsageError(f"erasing: fill is {self.fill}; expected three levels of 0 to 255")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return {
            "probability": float(self.probability),
            "scale": list(self.scale),
            "ratio": list(self.ratio),
            "fill": list(self.fill),
        }

    def draw(self, words: U64) -> npt.NDArray[np.int16]:
        """Random words uint64 [n, 12] to draws int16 [n, 4]."""
        width, height, fits = box_sizes(words[:, :TRIES], self.scale, self.ratio, GRID, GRID)
        chosen = fits.argmax(axis=1)[:, None]
        height = np.take_along_axis(height, chosen, axis=1)[:, 0]
        width = np.take_along_axis(width, chosen, axis=1)[:, 0]
        position, chance = words[:, TRIES], words[:, TRIES + 1] >> HALF
        top = below(position >> HALF, np.uint64(GRID + 1) - height)
        left = below(position & LOW, np.uint64(GRID + 1) - width)
        found = np.stack([top, left, height, width], axis=1).astype(np.int16)
        erased = (chance < np.uint64(fixed32(self.probability))) & fits.any(axis=1)
        found[~erased] = 0
        return found

    def faults(self, draws: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
        """Which draws [..., 4] are out of range."""
        wide = draws.astype(np.int32)
        outside = (wide < 0).any(axis=-1) | (wide[..., :2] + wide[..., 2:] > GRID).any(axis=-1)
        empty = (wide[..., 2:] == 0).any(axis=-1) & (wide != 0).any(axis=-1)
        found: npt.NDArray[np.bool_] = outside | empty
        return found

    def apply(self, pixels: Pixels, draw: npt.NDArray[np.int16]) -> Pixels:
        """The crop uint8 [S, S, 3] without what the draw [4] erases."""
        top, left, height, width = (int(value) for value in draw)
        if height == 0:
            return pixels
        side = len(pixels)
        edges = (top, top + height, left, left + width)
        first, last, begin, end = ((edge * side + GRID // 2) >> GRID_BITS for edge in edges)
        pixels = pixels.copy()
        pixels[first:last, begin:end] = self.fill
        return pixels
