"""RandAugment (Cubuk et al. 2020) with stored draws, as torchvision's uint8 RandAugment.

`count` operations of the 14 in `KINDS`, one after another, each at the same magnitude. A draw is,
for each of them, its number and its signed level (0 to 30). Everything is integers, the geometry
too: shears, shifts and turns take the nearest pixel by 16-bit fixed-point coordinates.
trainer/replay/colour.py is the same compiled, tested equal.
"""

from __future__ import annotations

import decimal
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from storage import colour
from storage.colour import ONE, Pixels
from storage.counter import HALF, LOW, U64, below
from storage.errors import UsageError
from storage.typed import check_types

KINDS = (
    "identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness",
    "saturation", "contrast", "sharpness", "posterise", "solarise", "autocontrast", "equalise",
)  # fmt: skip
SIGNED = frozenset(range(1, 10))  # these go either way
UNSIGNED = frozenset((10, 11))  # these have a level, but no direction; the rest have none
MAX_LEVEL = 30
MAX_COUNT = 8
POINT = 16  # fraction bits of coordinates


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Columns of a draw: for each of `count` operations its place in `KINDS` and its level."""

    count: int = 2
    magnitude: int = 9

    kind: ClassVar[str] = "randaugment"
    version: ClassVar[int] = 1
    words: ClassVar[int] = MAX_COUNT  # as many for every count: more operations begin as fewer

    def __post_init__(self) -> None:
        check_types(self)
        if not 1 <= self.count <= MAX_COUNT:
            raise UsageError(f"randaugment: count is {self.count}; expected 1 to {MAX_COUNT}")
        if not 0 <= self.magnitude <= MAX_LEVEL:
            raise UsageError(
                f"randaugment: magnitude is {self.magnitude}; expected 0 to {MAX_LEVEL}"
            )

    @property
    def columns(self) -> int:
        """Numbers a draw has."""
        return 2 * self.count

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return {"count": self.count, "magnitude": self.magnitude}

    def draw(self, words: U64) -> npt.NDArray[np.int16]:
        """Random words uint64 [n, 8] to draws int16 [n, 2 * count]."""
        words = words[:, : self.count]
        kind = below(words >> HALF, np.uint64(len(KINDS))).astype(np.int16)
        sign = np.where(words & LOW < np.uint64(1 << 31), -1, 1)
        way = np.where(np.isin(kind, list(SIGNED)), sign, np.isin(kind, list(UNSIGNED)))
        found = np.stack([kind, way * self.magnitude], axis=-1)
        return found.reshape(len(words), self.columns).astype(np.int16)

    def faults(self, draws: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
        """Which draws [..., 2 * count] are out of range."""
        kind, level = draws[..., 0::2], draws[..., 1::2]
        signed, unsigned = np.isin(kind, list(SIGNED)), np.isin(kind, list(UNSIGNED))
        wrong = np.where(signed | unsigned, np.abs(level) != self.magnitude, level != 0)
        wrong |= (kind < 0) | (kind >= len(KINDS)) | (unsigned & (level < 0))
        found: npt.NDArray[np.bool_] = wrong.any(axis=-1)
        return found

    def apply(self, pixels: Pixels, draw: npt.NDArray[np.int16]) -> Pixels:
        """The crop uint8 [S, S, 3] changed as the draw [2 * count] says."""
        for kind, level in np.asarray(draw, np.int64).reshape(-1, 2).tolist():
            pixels = _FUNCTIONS[KINDS[kind]](pixels, level)
        return pixels


def strength_factor(level: int) -> int:
    """Blending factor with 8 fraction bits: 1 + 0.9 level / 30."""
    return ONE + (level * 2304 + 150) // 300


def kept_bits(level: int) -> int:
    """Bits that posterising leaves of 8."""
    return 8 - (8 * level + 30) // 60


def solarise_threshold(level: int) -> int:
    """Smallest value that is inverted: 255 (1 - level / 30), rounded up."""
    return (511 - 17 * level) // 2


def shear(level: int) -> int:
    """Pixels a pixel with 16 fraction bits: 0.3 level / 30."""
    return (level * (1 << POINT) + 50) // 100


def shift(level: int, side: int) -> int:
    """Whole pixels: 150 / 331 of the side at level 30, rounded towards 0."""
    pixels = abs(level) * 150 * side // (331 * MAX_LEVEL)
    return pixels if level >= 0 else -pixels


@functools.cache
def rotation_table() -> npt.NDArray[np.int64]:
    """[31, 2], cosine and sine of 0 to 30 degrees with 16 fraction bits, rounded half to even."""
    with decimal.localcontext() as context:
        context.prec = 40
        degree = 4 * (4 * _arctan(5) - _arctan(239)) / 180  # Machin's formula for pi
        rows = []
        for level in range(MAX_LEVEL + 1):
            pair = [_power_series(level * degree, first) * (1 << POINT) for first in (0, 1)]
            rows.append([int(value.to_integral_value()) for value in pair])
    return np.array(rows, np.int64)


def _arctan(inverse: int) -> decimal.Decimal:
    """arctan(1 / inverse)."""
    one = decimal.Decimal(1)
    terms = range(60)
    return sum(((-one) ** i / ((2 * i + 1) * one * inverse ** (2 * i + 1)) for i in terms), 0 * one)


def _power_series(x: decimal.Decimal, first: int) -> decimal.Decimal:
    """cos(x) for first 0, sin(x) for 1."""
    total, term = decimal.Decimal(0), x if first else decimal.Decimal(1)
    for i in range(first, 60, 2):
        total += term
        term *= -x * x / ((i + 1) * (i + 2))
    return total


def _sheared_x(pixels: Pixels, level: int) -> Pixels:
    return warp(pixels, (1 << POINT, shear(level), 0), (0, 1 << POINT, 0))


def _sheared_y(pixels: Pixels, level: int) -> Pixels:
    return warp(pixels, (1 << POINT, 0, 0), (shear(level), 1 << POINT, 0))


def _shifted_x(pixels: Pixels, level: int) -> Pixels:
    offset = -shift(level, len(pixels)) << POINT
    return warp(pixels, (1 << POINT, 0, offset), (0, 1 << POINT, 0))


def _shifted_y(pixels: Pixels, level: int) -> Pixels:
    offset = -shift(level, len(pixels)) << POINT
    return warp(pixels, (1 << POINT, 0, 0), (0, 1 << POINT, offset))


def _rotated(pixels: Pixels, level: int) -> Pixels:
    cosine, sine = (int(value) for value in rotation_table()[abs(level)])
    sine = sine if level >= 0 else -sine
    side = len(pixels)
    centre = side << POINT  # twice the centre, as the products below are
    return warp(
        pixels,
        (cosine, -sine, (centre - cosine * side + sine * side) >> 1),
        (sine, cosine, (centre - sine * side - cosine * side) >> 1),
    )


Row = tuple[int, int, int]


def warp(pixels: Pixels, across: Row, down: Row) -> Pixels:
    """Nearest pixel of an affine map; black where it leaves the crop.

    Output pixel (x, y) has its centre at (x + 1/2, y + 1/2) and takes the pixel that holds the
    point (a (x + 1/2) + b (y + 1/2) + c), with (a, b, c) = `across` for its column and `down` for
    its row, all with 16 fraction bits.
    """
    side = len(pixels)
    twice = 2 * np.arange(side, dtype=np.int64) + 1
    column, row = (
        (a * twice[None, :] + b * twice[:, None] + 2 * c) >> (POINT + 1)
        for a, b, c in (across, down)
    )
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    found: Pixels = pixels[np.clip(row, 0, side - 1), np.clip(column, 0, side - 1)]
    found[~inside] = 0
    return found


def _blended(step: Callable[[Pixels, int], Pixels]) -> Callable[[Pixels, int], Pixels]:
    return lambda pixels, level: step(pixels, strength_factor(level))


def sharpness(pixels: Pixels, factor: int) -> Pixels:
    """Blend with a smoothed copy: 3 x 3 ones with 5 in the middle, over 13; the border stays."""
    wide = pixels.astype(np.int32)
    smooth = wide.copy()
    side = len(pixels)
    if side > 2:
        total = 4 * wide[1:-1, 1:-1]
        for y in range(3):
            for x in range(3):
                total += wide[y : side - 2 + y, x : side - 2 + x]
        smooth[1:-1, 1:-1] = (2 * total + 13) // 26
    return colour.blend(pixels, smooth, factor)


def _posterised(pixels: Pixels, level: int) -> Pixels:
    return pixels & np.uint8(256 - (1 << (8 - kept_bits(level))))


def _solarised(pixels: Pixels, level: int) -> Pixels:
    return np.where(pixels >= solarise_threshold(level), 255 - pixels, pixels)


def _autocontrasted(pixels: Pixels, level: int) -> Pixels:
    """Every channel stretched to 0..255: floor(255 (p - low) / (high - low))."""
    flat = pixels.reshape(-1, 3).astype(np.int32)
    low, high = flat.min(axis=0), flat.max(axis=0)
    stretched = 255 * (flat - low) // np.maximum(high - low, 1)
    return np.where(high > low, stretched, flat).astype(np.uint8).reshape(pixels.shape)


def _equalised(pixels: Pixels, level: int) -> Pixels:
    """Every channel's histogram levelled, as torchvision does."""
    found = np.empty_like(pixels)
    for channel in range(3):
        values = pixels[..., channel]
        counts = np.bincount(values.ravel(), minlength=256)
        step = (counts.sum() - counts[values.max()]) // 255
        table = np.arange(256)
        if step:
            before = np.cumsum(counts) - counts
            table = np.minimum((before + step // 2) // step, 255)
            table[0] = 0
        found[..., channel] = table.astype(np.uint8)[values]
    return found


_FUNCTIONS: dict[str, Callable[[Pixels, int], Pixels]] = {
    "identity": lambda pixels, level: pixels,
    "shear-x": _sheared_x,
    "shear-y": _sheared_y,
    "translate-x": _shifted_x,
    "translate-y": _shifted_y,
    "rotate": _rotated,
    "brightness": _blended(colour.brightness),
    "saturation": _blended(colour.saturation),
    "contrast": _blended(colour.contrast),
    "sharpness": _blended(sharpness),
    "posterise": _posterised,
    "solarise": _solarised,
    "autocontrast": _autocontrasted,
    "equalise": _equalised,
}
