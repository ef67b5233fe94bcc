"""Canaries: digests of a few replayed crops, which tell a reader whether its pixels are ours.

The writer that cuts a chosen crop notes the SHA-256 of its pixels, of the decoded image, and the
mean colours of 4 x 4 fields; sealing gathers the notes. Which crops are chosen depends on the
store's seed and shape only, so every writer picks the same and a resumed run states the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from storage.errors import CorruptStore, UsageError
from storage.pixels import pixel_digest
from storage.typed import check_types

CANARIES = 32  # draws; fewer crops where two draws meet or an image is masked
CANARY_VERSION = 1
ATTRIBUTE = "canaries"  # of what was measured
FIELDS = 4  # a sketch has as many rows and columns
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SKETCH = re.compile(r"[0-9a-f]{96}")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One crop whose pixels a store remembers.

    row, view: which. size: side of the crop in pixels.
    pixels, image: hex `storage.pixels.pixel_digest` of the replayed crop and the decoded image.
    sketch: hex of `sketch_of` the crop: tells a re-encoded image from another one.
    """

    row: int
    view: int
    size: int
    pixels: str
    image: str
    sketch: str

    def __post_init__(self) -> None:
        check_types(self)
        if min(self.row, self.view) < 0 or self.size < 1:
            raise UsageError(f"canary of row {self.row}, view {self.view}, size {self.size}")
        if not (_DIGEST.fullmatch(self.pixels) and _DIGEST.fullmatch(self.image)):
            raise UsageError("a canary's digest is no hex SHA-256")
        if not _SKETCH.fullmatch(self.sketch):
            raise UsageError("a canary's sketch is not 48 bytes in hex")


def canary_views(seed: int, num_images: int, num_views: int) -> dict[int, tuple[int, ...]]:
    """Views chosen of each row that has any: CANARIES draws, each by a hash of seed and number."""
    found: dict[int, set[int]] = {}
    for number in range(CANARIES):
        drawn = hashlib.sha256(f"teachonce/canary/{seed}/{number}".encode()).digest()
        row = int.from_bytes(drawn[:16], "little") % num_images
        found.setdefault(row, set()).add(int.from_bytes(drawn[16:], "little") % num_views)
    return {row: tuple(sorted(views)) for row, views in sorted(found.items())}


def note_canary(row: int, view: int, image: Image.Image, pixels: Pixels) -> Canary:
    """The canary of one crop.

    Args:
        image: decoded, not padded. pixels: uint8 [S, S, 3], the crop with all that was done to it.
    """
    return Canary(
        row=row, view=view, size=len(pixels), pixels=crop_digest(pixels),
        image=pixel_digest(image).hex(), sketch=sketch_of(pixels).tobytes().hex(),
    )  # fmt: skip


def crop_digest(pixels: Pixels) -> str:
    """Hex `pixel_digest` of a crop uint8 [S, S, 3]."""
    return pixel_digest(Image.fromarray(np.ascontiguousarray(pixels))).hex()


def sketch_of(pixels: Pixels) -> Pixels:
    """Mean colours, rounded down, of 4 x 4 fields of a crop [S, S, 3]: uint8 [4, 4, 3]."""
    starts = np.arange(FIELDS) * len(pixels) // FIELDS
    stops = np.maximum((np.arange(FIELDS) + 1) * len(pixels) // FIELDS, starts + 1)
    found = np.empty((FIELDS, FIELDS, 3), np.uint8)
    for i in range(FIELDS):
        for j in range(FIELDS):
            field = pixels[starts[i] : stops[i], starts[j] : stops[j]].astype(np.int64)
            found[i, j] = field.sum(axis=(0, 1)) // (field.shape[0] * field.shape[1])
    return found


def to_receipt(canaries: Sequence[Canary], masked_rows: Iterable[int]) -> list[dict[str, Any]]:
    """Plain values of a block's canaries; images that turned out to be bad have none."""
    masked = set(masked_rows)
    return [
        asdict(canary)
        for canary in sorted(canaries, key=lambda each: (each.row, each.view))
        if canary.row not in masked
    ]


def gather_canaries(blocks: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """What a sealed store states, from the blocks' receipts in their order; None without any."""
    crops = [dict(canary) for block in blocks for canary in block]
    return {"version": CANARY_VERSION, "crops": crops} if crops else None


def read_canaries(
    measured: Mapping[str, Any], num_images: int, num_views: int
) -> tuple[Canary, ...] | None:
    """The canaries that a store states; None where it has none, or a later release's.

    Raises:
        CorruptStore: they make no sense.
    """
    stated = measured.get(ATTRIBUTE)
    if stated is None:
        return None
    try:
        if stated["version"] != CANARY_VERSION:
            return None
        found = tuple(Canary(**crop) for crop in stated["crops"])
        outside = any(c.row >= num_images or c.view >= num_views for c in found)
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise CorruptStore(
            f"the store's canaries can't be read ({error}): fetch the store again"
        ) from error
    if outside:
        raise CorruptStore("a canary is of no crop of the store: fetch the store again")
    return found
