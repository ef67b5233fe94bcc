"""View samplers: which rectangle of an image each view shows, and whether it is mirrored.

Every draw is a function of (seed, image digest, view number) alone, in integers alone, so no
order, batch, worker, restart or platform changes it:

* the random words of an image are Philox4x64-10 (Salmon et al. 2011) with the first 16 bytes of
  SHA-256(domain, seed, digest) as key; view `v` reads `WORDS_PER_VIEW` words starting at counter
  `1 + v * WORDS_PER_VIEW / 4`. Raw words only: the streams of numpy's Generator methods may change
  between releases;
* square roots are integer square roots, and exp() of the aspect ratio comes from a table made by
  `decimal`, which rounds the same everywhere.

The text of these samplers for other implementers is docs/format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from storage.counter import (
    HALF,
    LOW,
    MAX_RATIO,
    TRIES,
    below,
    box_sizes,
    fixed32,
    philox_words,
)
from storage.errors import FormatVersion, UsageError
from storage.imported import IMPORTED_VERSION, ImportedViews
from storage.typed import check_types

SAMPLER_VERSION = 1
MAX_SIDE = 65_535  # boxes are uint16
MAX_AREA = 1 << 28  # the pixel contract's limit; keeps area * 2^32 inside 64 bits
WORDS_PER_VIEW = 12  # 10 tries + position + flip; a multiple of Philox's 4 words a counter


@dataclass(frozen=True)
class Views:
    """`count` views of one image.

    box: uint16 [count, 4], (top, left, height, width) in pixels of the padded image.
    flip: uint8 [count], 1 where the view is mirrored left-right.
    draw: int16 [count, D], what the store's augmentations do to it; None where it has none.
    """

    box: npt.NDArray[np.uint16]
    flip: npt.NDArray[np.uint8]
    draw: npt.NDArray[np.int16] | None = None


class Sampler(Protocol):
    """What a store needs of a view sampler."""

    kind: ClassVar[str]

    @property
    def padding(self) -> int:
        """Zero pixels added on every side before boxes are cut."""

    @property
    def distinct_views(self) -> int | None:
        """How many different views an image has; None where they can't be counted."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""

    def draw(
        self, seed: int, digest: bytes, height: int, width: int, first: int, count: int
    ) -> Views:
        """Views `first` to `first + count - 1` of the image with this digest and size."""


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """Random area, aspect ratio, position and flip, distributed as torchvision's.

    Ten tries of (area uniform in `scale`, log aspect ratio uniform in log `ratio`), the first
    whose box fits is placed uniformly; if none fits, the centre crop with the nearest allowed
    ratio (torchvision 0.28, transforms.RandomResizedCrop.get_params).
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip_probability: float = 0.5

    kind: ClassVar[str] = "random-resized-crop"

    def __post_init__(self) -> None:
        check_types(self)
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise UsageError(f"scale is {low} to {high}; expected 0 < low <= high <= 1")
        low, high = self.ratio
        if not 1 / MAX_RATIO <= low <= high <= MAX_RATIO:
            raise UsageError(
                f"ratio is {low} to {high}; expected 1/16 <= low <= high <= 16 (width / height)"
            )
        _check_probability(self.flip_probability)

    @property
    def padding(self) -> int:
        """Boxes lie inside the image itself."""
        return 0

    @property
    def distinct_views(self) -> int | None:
        """Too many to count."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return {
            "kind": self.kind,
            "version": SAMPLER_VERSION,
            "scale": list(self.scale),
            "ratio": list(self.ratio),
            "flip_probability": self.flip_probability,
        }

    def draw(
        self, seed: int, digest: bytes, height: int, width: int, first: int, count: int
    ) -> Views:
        """Views `first` to `first + count - 1`; any M views may be asked for.

        Raises:
            UsageError: an image side or a view number out of range.
        """
        _check_draw(height, width, first, count)
        words = philox_words(
            self.kind, seed, digest, first * WORDS_PER_VIEW, count * WORDS_PER_VIEW
        )
        words = words.reshape(count, WORDS_PER_VIEW)
        crop_height, crop_width, fits = box_sizes(
            words[:, :TRIES], self.scale, self.ratio, height, width
        )
        chosen = fits.argmax(axis=1)[:, None]
        crop_height = np.take_along_axis(crop_height, chosen, axis=1)[:, 0]
        crop_width = np.take_along_axis(crop_width, chosen, axis=1)[:, 0]
        position = words[:, TRIES]
        top = below(position >> HALF, np.uint64(height) - crop_height + np.uint64(1))
        left = below(position & LOW, np.uint64(width) - crop_width + np.uint64(1))
        box = np.stack([top, left, crop_height, crop_width], axis=1).astype(np.uint16)
        box[~fits.any(axis=1)] = self._centre(height, width)
        flip = (words[:, TRIES + 1] >> HALF) < np.uint64(fixed32(self.flip_probability))
        return Views(box, flip.astype(np.uint8))

    def _centre(self, height: int, width: int) -> tuple[int, int, int, int]:
        low, high = (fixed32(value) for value in self.ratio)
        crop_height, crop_width = height, width
        if width << 32 < low * height:
            crop_height = max(1, ((width << 32) + low // 2) // low)
        elif width << 32 > high * height:
            crop_width = max(1, (height * high + (1 << 31)) >> 32)
        return (
            (height - crop_height) // 2,
            (width - crop_width) // 2,
            crop_height,
            crop_width,
        )


@dataclass(frozen=True, kw_only=True)
class PaddedCrop:
    """The image shifted by up to `padding` pixels in a black border, mirrored or not.

    The usual augmentation of 32-pixel data sets. An image has (2 * padding + 1)^2 * 2 views
    (162 for padding 4); they are drawn without replacement, in an order of each image's own, so
    that as many views list every one exactly once.
    """

    padding: int = 4

    kind: ClassVar[str] = "padded-crop"

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.padding <= 64:
            raise UsageError(f"padding is {self.padding}; expected 0 to 64 pixels")

    @property
    def distinct_views(self) -> int:
        """(2p + 1)^2 shifts, mirrored or not."""
        return (2 * self.padding + 1) ** 2 * 2

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return {"kind": self.kind, "version": SAMPLER_VERSION, "padding": self.padding}

    def draw(
        self, seed: int, digest: bytes, height: int, width: int, first: int, count: int
    ) -> Views:
        """Views `first` to `first + count - 1`, each (top, left, height, width) with the image's
        own height and width.

        Raises:
            UsageError: more views asked for than there are.
        """
        _check_draw(height + 2 * self.padding, width + 2 * self.padding, first, count)
        _check_distinct(self, first + count)
        words = philox_words(self.kind, seed, digest, 0, self.distinct_views)
        number = np.argsort(words, kind="stable")[first : first + count]  # a keyed permutation
        shifts = 2 * self.padding + 1
        box = np.empty((count, 4), np.uint16)
        box[:, 0] = number // 2 // shifts
        box[:, 1] = number // 2 % shifts
        box[:, 2] = height
        box[:, 3] = width
        return Views(box, (number % 2).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class CentreCrop:
    """The central square of the image, plain and (with `flip`) mirrored: what evaluation shows.

    Resizing the shorter side to 256 pixels and cutting the central 224 is cutting the central
    square of 224 / 256 of the shorter side and resizing that: one box, `crop_ratio` of it wide.
    """

    crop_ratio: float = 0.875
    flip: bool = False

    kind: ClassVar[str] = "centre"

    def __post_init__(self) -> None:
        if not 0 < self.crop_ratio <= 1:
            raise UsageError(f"crop ratio is {self.crop_ratio}; expected above 0, to 1")

    @property
    def padding(self) -> int:
        """Boxes lie inside the image itself."""
        return 0

    @property
    def distinct_views(self) -> int:
        """The plain view, and the mirrored one where `flip` is set."""
        return 2 if self.flip else 1

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return {
            "kind": self.kind,
            "version": SAMPLER_VERSION,
            "crop_ratio": self.crop_ratio,
            "flip": self.flip,
        }

    def draw(
        self, seed: int, digest: bytes, height: int, width: int, first: int, count: int
    ) -> Views:
        """Views `first` to `first + count - 1`: number 0 is plain, number 1 mirrored.

        Raises:
            UsageError: more views asked for than there are.
        """
        _check_draw(height, width, first, count)
        _check_distinct(self, first + count)
        side = max(1, (min(height, width) * fixed32(self.crop_ratio) + (1 << 31)) >> 32)
        box = np.array([(height - side) // 2, (width - side) // 2, side, side], np.uint16)
        return Views(np.tile(box, (count, 1)), np.arange(first, first + count).astype(np.uint8))


def sampler_from_json(values: dict[str, Any]) -> Sampler:
    """The sampler that `to_json` described.

    Raises:
        FormatVersion: a kind or version this release doesn't know.
    """
    values = dict(values)
    kind, version = values.pop("kind", None), values.pop("version", None)
    if kind == ImportedViews.kind and version == IMPORTED_VERSION:
        return ImportedViews(source=values["source"])
    known = {RandomResizedCrop.kind, PaddedCrop.kind, CentreCrop.kind, ImportedViews.kind}
    if kind not in known or version != SAMPLER_VERSION:
        raise FormatVersion(
            f"view sampler {kind!r} version {version!r}; this release knows "
            f"{', '.join(sorted(known))} version {SAMPLER_VERSION}: install a newer teachonce"
        )
    if kind == PaddedCrop.kind:
        return PaddedCrop(padding=values["padding"])
    if kind == CentreCrop.kind:
        return CentreCrop(crop_ratio=values["crop_ratio"], flip=values["flip"])
    return RandomResizedCrop(
        scale=tuple(values["scale"]),
        ratio=tuple(values["ratio"]),
        flip_probability=values["flip_probability"],
    )


def _check_draw(height: int, width: int, first: int, count: int) -> None:
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE) or height * width > MAX_AREA:
        raise UsageError(
            f"image of {width}x{height} pixels (with padding); expected sides of 1 to {MAX_SIDE} "
            f"and at most {MAX_AREA} pixels"
        )
    if first < 0 or count < 0:
        raise UsageError(f"views {first} to {first + count}; expected numbers from 0 up")


def _check_distinct(sampler: PaddedCrop | CentreCrop, wanted: int) -> None:
    if wanted > sampler.distinct_views:
        raise UsageError(
            f"{wanted} views asked for, but the sampler {sampler.kind} has "
            f"{sampler.distinct_views} distinct views: use at most --crops "
            f"{sampler.distinct_views}"
        )


def _check_probability(value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"flip probability is {value}; expected 0 to 1")
