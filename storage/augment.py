"""Augmentations whose draws a store keeps, so that every student sees what the teacher saw.

The operations act in their order on the uint8 crop, after cut, resize and flip. What a view's
operations do is a row of small integers in `views/draw`; it is drawn once, from (seed, image
digest, view), and readers only replay it. The texts are docs/pixels.md and docs/format.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from storage.colour import Pixels
from storage.colour_draws import ColourJitter, Lighting
from storage.counter import U64, philox_words
from storage.erasing import Erasing
from storage.errors import FormatVersion, UsageError
from storage.pixels import cut_view
from storage.randaugment import RandAugment

Draws = npt.NDArray[np.int16]

NO_DRAW = -32_768  # fill value; no operation has it


class Operation(Protocol):
    """What a store needs of an augmentation. `words` a view (a multiple of 4) become `columns`."""

    kind: ClassVar[str]
    version: ClassVar[int]
    words: ClassVar[int]

    @property
    def columns(self) -> int:
        """Numbers a draw has."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""

    def draw(self, words: U64) -> Draws:
        """Random words uint64 [n, words] to draws int16 [n, columns]."""

    def faults(self, draws: Draws) -> npt.NDArray[np.bool_]:
        """Which draws [..., columns] these settings can't have."""

    def apply(self, pixels: Pixels, draw: Draws) -> Pixels:
        """The crop uint8 [S, S, 3] changed as the draw [columns] says."""


OPERATIONS: dict[str, type] = {
    operation.kind: operation for operation in (RandAugment, ColourJitter, Lighting, Erasing)
}


@dataclass(frozen=True)
class Augment:
    """Operations in the order in which they act, each kind at most once."""

    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        kinds = [operation.kind for operation in self.operations]
        if not kinds or len(set(kinds)) < len(kinds):
            raise UsageError(
                f"augmentations are {', '.join(kinds) or 'none'}; expected each at most once, and "
                "at least one"
            )

    @property
    def columns(self) -> int:
        """Numbers that are stored of a view."""
        return sum(operation.columns for operation in self.operations)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values for a store's attributes."""
        return [{"kind": o.kind, "version": o.version, **o.to_json()} for o in self.operations]

    def draw(self, seed: int, digest: bytes, first: int, count: int) -> Draws:
        """Draws int16 [count, columns] of the views from `first` on.

        Every operation has a stream of its own: one more leaves the others' draws as they are.
        """
        found = []
        for operation in self.operations:
            words = philox_words(
                f"augment/{operation.kind}", seed, digest,
                first * operation.words, count * operation.words,
            )  # fmt: skip
            found.append(operation.draw(words.reshape(count, operation.words)))
        return np.concatenate(found, axis=1)

    def faults(self, draws: Draws) -> npt.NDArray[np.bool_]:
        """Which draws [..., columns] these settings can't have."""
        wrong = [operation.faults(part) for operation, part in self._parts(draws)]
        found: npt.NDArray[np.bool_] = np.logical_or.reduce(wrong)
        return found

    def apply(self, pixels: Pixels, draw: Draws) -> Pixels:
        """The crop uint8 [S, S, 3] changed as one view's draw [columns] says."""
        for operation, part in self._parts(draw):
            pixels = operation.apply(pixels, part)
        return pixels

    def _parts(self, draws: Draws) -> Iterator[tuple[Operation, Draws]]:
        first = 0
        for operation in self.operations:
            yield operation, draws[..., first : first + operation.columns]
            first += operation.columns


def replay_view(
    image: Image.Image,
    box: npt.NDArray[np.uint16] | tuple[int, int, int, int],
    flip: bool,
    size: int,
    interpolation: str = "bilinear",
    augment: Augment | None = None,
    draw: Draws | None = None,
) -> Pixels:
    """`cut_view`, and after it what the view's stored draw does: all steps of docs/pixels.md.

    Args:
        augment, draw: the store's setting and the view's row of `views/draw`; None without.
    Returns:
        uint8 [size, size, 3].
    """
    pixels = cut_view(image, box, flip, size, interpolation)
    return pixels if augment is None or draw is None else augment.apply(pixels, draw)


def augment_from_json(values: list[dict[str, Any]] | None) -> Augment | None:
    """The augmentations that `to_json` described; None where a store has none.

    Raises:
        FormatVersion: an operation or version this release doesn't know.
    """
    return None if values is None else Augment(tuple(_operation(value) for value in values))


def _operation(values: dict[str, Any]) -> Operation:
    values = dict(values)
    kind, version = values.pop("kind", None), values.pop("version", None)
    known = OPERATIONS.get(str(kind))
    if known is None or version != known.version:  # type: ignore[attr-defined]
        raise FormatVersion(
            f"augmentation {kind!r} version {version!r}; this release knows "
            f"{', '.join(sorted(OPERATIONS))} version 1: install a newer teachonce"
        )
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    operation: Operation = known(**{**values, **lists})
    return operation
