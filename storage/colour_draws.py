"""Stored colour draws: settings, how they are drawn, how they act on a crop.

`ColourJitter` is torchvision's ColorJitter, `Lighting` AlexNet's PCA noise (Krizhevsky et al.
2012, section 4.1), both as KDEP trains with. A draw is a few small integers that the store keeps
for every view; readers never draw. The text for other implementers is docs/format.md.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from storage import colour
from storage.colour import ONE, TURN, Pixels
from storage.counter import HALF, LOW, U64, below
from storage.errors import UsageError
from storage.typed import check_types

Draws = npt.NDArray[np.int16]

MAX_STRENGTH = 6.0  # factors to 7
MAX_SIGMA = 1.0
STEPS = 4  # brightness, contrast, saturation, hue
ORDERS = tuple(itertools.permutations(range(STEPS)))  # 24, in lexicographic order

# Principal components of ImageNet's colours as AlexNet's successors write them down
# (fb.resnet.torch, robustness): eigenvalues of R, G, B in 0..1, and vectors as columns.
PCA_VALUES = (0.2175, 0.0188, 0.0045)
PCA_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
_UNIFORMS = 12  # 16-bit draws a normal number is the sum of; their variance is 1
_QUARTERS = (0, 16, 32, 48)


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue changed by random amounts in random order.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], the hue's turn in [-hue, hue] of
    a whole one. Columns of a draw: order (a place in `ORDERS`), three factors with 8 fraction
    bits, and the hue's shift in 1 / 1536 turn. A strength of 0 leaves its step out.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    kind: ClassVar[str] = "colour-jitter"
    version: ClassVar[int] = 1
    words: ClassVar[int] = 4
    columns: ClassVar[int] = 1 + STEPS

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= MAX_STRENGTH:
                raise UsageError(
                    f"colour-jitter: {name} is {getattr(self, name)}; expected 0 to {MAX_STRENGTH}"
                )
        if not 0 <= self.hue <= 0.5:
            raise UsageError(f"colour-jitter: hue is {self.hue}; expected 0 to 0.5 of a turn")
        if not any(low < high for low, high in self.ranges):
            raise UsageError(
                "colour-jitter: every strength is 0; expected one that changes colours"
            )

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Smallest and largest value of the four steps' columns."""
        strengths = (self.brightness, self.contrast, self.saturation)
        found = [(max(0, ONE - round(ONE * s)), ONE + round(ONE * s)) for s in strengths]
        turn = round(TURN * self.hue)
        return [*found, (-turn, turn)]

    @property
    def orders(self) -> list[int]:
        """Orders that are drawn, equally often: steps that do nothing come last."""
        idle = [step for step, (low, high) in enumerate(self.ranges) if low == high]
        return [
            place for place, order in enumerate(ORDERS)
            if list(order[STEPS - len(idle) :]) == idle
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        names = ("brightness", "contrast", "saturation", "hue")
        return {name: float(getattr(self, name)) for name in names}

    def draw(self, words: U64) -> Draws:
        """Random words uint64 [n, 4] to draws int16 [n, 5]."""
        orders = np.array(self.orders)
        found = np.empty((len(words), self.columns), np.int16)
        found[:, 0] = orders[below(words[:, 0] >> HALF, np.uint64(len(orders))).astype(np.intp)]
        halves = [words[:, 0] & LOW, words[:, 1] >> HALF, words[:, 1] & LOW, words[:, 2] >> HALF]
        for column, (half, (low, high)) in enumerate(zip(halves, self.ranges, strict=True), 1):
            found[:, column] = low + below(half, np.uint64(high - low + 1)).astype(np.int64)
        return found

    def faults(self, draws: Draws) -> npt.NDArray[np.bool_]:
        """Which draws [..., 5] are out of range."""
        low, high = np.array([(0, len(ORDERS) - 1), *self.ranges]).T
        found: npt.NDArray[np.bool_] = ((draws < low) | (draws > high)).any(axis=-1)
        return found

    def apply(self, pixels: Pixels, draw: Draws) -> Pixels:
        """The crop uint8 [S, S, 3] with its colours changed as the draw [5] says."""
        order, *amounts = (int(value) for value in draw)
        steps = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
        for step in ORDERS[order]:
            if amounts[step] != (0 if step == STEPS - 1 else ONE):
                pixels = steps[step](pixels, amounts[step])
        return pixels


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """PCA noise: along each principal colour a normal amount of deviation `sigma`.

    Columns of a draw: what is added to red, green and blue, in levels.
    """

    sigma: float = 0.05

    kind: ClassVar[str] = "lighting"
    version: ClassVar[int] = 1
    words: ClassVar[int] = 12
    columns: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.sigma <= MAX_SIGMA:
            raise UsageError(f"lighting: sigma is {self.sigma}; expected above 0, to {MAX_SIGMA}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return {"sigma": float(self.sigma)}

    def draw(self, words: U64) -> Draws:
        """Random words uint64 [n, 12] to draws int16 [n, 3]."""
        quarters = sum((words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in _QUARTERS)
        totals = np.asarray(quarters)[:, :9].reshape(-1, 3, 3).sum(axis=2).astype(np.int64)
        normal = 2 * totals - _UNIFORMS * 0xFFFF  # deviation 2^17
        offsets = (normal @ _coefficients(self.sigma).T + (1 << 32)) >> 33
        return np.asarray(offsets, np.int16)

    def faults(self, draws: Draws) -> npt.NDArray[np.bool_]:
        """Which draws [..., 3] are out of range."""
        return np.asarray(((draws < -255) | (draws > 255)).any(axis=-1))

    def apply(self, pixels: Pixels, draw: Draws) -> Pixels:
        """The crop uint8 [S, S, 3] with the draw [3] added to its channels."""
        return colour.add(pixels, draw)


@functools.lru_cache(maxsize=8)
def _coefficients(sigma: float) -> npt.NDArray[np.int64]:
    """[channel, component], levels a deviation with 16 fraction bits."""
    rows = [
        [round(255 * sigma * value * part * 65_536)
         for value, part in zip(PCA_VALUES, row, strict=True)]
        for row in PCA_VECTORS
    ]  # fmt: skip
    return np.array(rows, np.int64)
