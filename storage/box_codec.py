"""A view's box and flip as one number, small where the box is one that samplers draw.

Boxes of a random-resized crop have sides in proportions between 3 : 4 and 4 : 3, and lie inside
their image. Numbers count only those: a quarter fewer bytes than four coordinates and a flip
(docs/codec.md). Any other box inside the image has a larger number. With H, W the image's padded
sides, S the shorter of them, a the box's side along S and b the other:

    u    = b - ceil(3 a / 4)                    inside the wedge: 0 <= u < c(a)
    c(a) = floor(4 a / 3) - ceil(3 a / 4) + 1   lengths that b can have there
    D    = floor(7 (S + 1) / 12) + 2;  K = floor((S + 1) / 2) D
    size = (a - 1) D + u  where 2 a <= S + 1,  (S - a) D + (D - 1 - u)  above
    at   = 2 (top (W - width + 1) + left) + flip
    number = 1 + at K + size                    inside the wedge
    number = 1 + 2 K H W + 2 (((top W + left) H + height - 1) W + width - 1) + flip   elsewhere

c(a) + c(S + 1 - a) <= D, so a row of D sizes holds those of two lengths, one from either end. 0 is
no view.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs import NO_CODE
from storage.errors import FormatVersion, UsageError
from storage.threads import decoders, for_each
from storage.views import RandomResizedCrop, Sampler

BOX_ARRAYS = "box-flip-1"  # arrays views/box and views/flip
BOX_NUMBERS = "box-number-1"  # one array, views/crop
VIEW_CODECS = (BOX_ARRAYS, BOX_NUMBERS)
NO_VIEW = 0
MAX_PIXELS = 1 << 30  # of a padded image: numbers stay below 2^63
WEDGE = (3 / 4, 4 / 3)
SLICE_VIEWS = 1 << 14  # numbers decoded at once: what is between stays in the cache

Ints = npt.NDArray[np.int64]
Uint32 = npt.NDArray[np.uint32]
Array = npt.NDArray[Any]


def check_view_codec(name: Any) -> None:
    """Refuse codecs of other releases.

    Raises:
        FormatVersion: not one that this release knows.
    """
    if name not in VIEW_CODECS:
        raise FormatVersion(
            f"view codec {name!r}; this release knows {' and '.join(VIEW_CODECS)}: install a newer "
            "teachonce"
        )


def default_view_codec(sampler: Sampler) -> str:
    """Numbers for boxes with the proportions that they are made for, else plain arrays."""
    if not isinstance(sampler, RandomResizedCrop):
        return BOX_ARRAYS
    low, high = sampler.ratio
    inside = WEDGE[0] - 1e-6 <= low and high <= WEDGE[1] + 1e-6
    return BOX_NUMBERS if inside else BOX_ARRAYS


def numbers_from_boxes(box: Array, flip: Array, size: Array) -> npt.NDArray[np.uint64]:
    """Numbers uint64 [n, V] of views.

    Args:
        box: [n, V, 4] top, left, height, width; flip: [n, V], 0 or 1. A flip of `NO_CODE` is no
            view, whatever the box.
        size: [n, 2] height and width of the padded images.
    Raises:
        UsageError: a box outside its image, a flip that is none, or an image of more than 2^30
            pixels.
    """
    found = np.zeros(flip.shape, np.uint64)
    here = np.flatnonzero((flip != NO_CODE).any(axis=1))
    H, W = (side[:, None] for side in size[here].astype(np.int64).T)
    if (H * W > MAX_PIXELS).any():
        raise UsageError(
            f"an image of {int((H * W).max()):,} pixels; boxes as numbers reach {MAX_PIXELS:,}: "
            "leave the image out, or scale it down"
        )
    top, left, height, width = np.moveaxis(box[here].astype(np.int64), -1, 0)
    mirrored = flip[here].astype(np.int64)
    absent = mirrored == NO_CODE
    sound = (height > 0) & (width > 0) & (top + height <= H) & (left + width <= W) & (mirrored < 2)
    if not (sound | absent).all():
        row, view = np.argwhere(~(sound | absent))[0]
        raise UsageError(
            f"views/crop: row {here[row]} view {view} has a box outside the image, or a flip that "
            "is neither 0 nor 1"
        )
    size_number, inside = _size_numbers(height, width, H, W)
    at = 2 * (top * (W - width + 1) + left) + mirrored
    K = _sizes(np.minimum(H, W))
    other = (((top * W + left) * H + height - 1) * W + width - 1) * 2 + mirrored
    number = 1 + np.where(inside, at * K + size_number, 2 * K * H * W + other)
    found[here] = np.where(absent, NO_VIEW, number)
    return found


def boxes_from_numbers(
    number: npt.NDArray[np.uint64], size: Array
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    """Boxes uint16 [n, V, 4] and flips uint8 [n, V] of numbers; no view has zeros and `NO_CODE`.

    Numbers that no view has decode to something: `number_faults` finds them.

    Args:
        size: [n, 2] height and width of the padded images.
    """
    n, V = number.shape
    box, flip = np.empty((n, V, 4), np.uint16), np.empty((n, V), np.uint8)
    step = max(1, SLICE_VIEWS // max(V, 1))
    sides = size.astype(np.int64)

    def decode(begin: int) -> None:
        part = slice(begin, min(begin + step, n))
        _decode(number[part], sides[part], box[part], flip[part])

    for_each(range(0, n, step), decode, decoders())
    return box, flip


def number_faults(
    number: npt.NDArray[np.uint64], box: Array, flip: Array, size: Array
) -> npt.NDArray[np.bool_]:
    """Where, bool [n, V], numbers aren't those of the boxes [n, V, 4] that they decode to."""
    H, W = (side[:, None] for side in size.astype(np.int64).T)
    top, left, height, width = np.moveaxis(box.astype(np.int64), -1, 0)
    outside = (height < 1) | (width < 1) | (top + height > H) | (left + width > W) | (flip > 1)
    outside |= H * W > MAX_PIXELS
    again = numbers_from_boxes(box, np.where(outside, NO_CODE, flip).astype(np.uint8), size)
    return np.asarray(again != number)


def _decode(number: npt.NDArray[np.uint64], size: Ints, box: Array, flip: Array) -> None:
    """In 32 bits after the first division: half of the time."""
    H, W = (side[:, None] for side in np.maximum(size, 1).T)
    S = np.minimum(H, W)
    K = _sizes(S).astype(np.uint64)
    at = (number - np.uint64(1)) // K
    size_number = (number - np.uint64(1) - at * K).astype(np.uint32)
    height, width = _sides(size_number, S.astype(np.uint32), H <= W)
    corner = (at >> np.uint64(1)).astype(np.uint32)
    columns = np.maximum(W.astype(np.uint32) - width + np.uint32(1), np.uint32(1))
    top = corner // columns
    for part, values in enumerate((top, corner - top * columns, height, width)):
        box[..., part] = values
    flip[...] = at & np.uint64(1)
    far = number > (2 * _sizes(S) * H * W).astype(np.uint64)
    if far.any():
        image = np.nonzero(far)[0]
        box[far], flip[far] = _decode_far(number[far].astype(np.int64), *size[image].T)
    absent = number == NO_VIEW
    if absent.any():
        box[absent], flip[absent] = 0, NO_CODE


def _decode_far(number: Ints, H: Ints, W: Ints) -> tuple[Array, Array]:
    """Boxes [m, 4] and flips [m] of numbers [m] outside the wedge."""
    H, W = np.maximum(H, 1), np.maximum(W, 1)
    rest, flip = np.divmod(number - 1 - 2 * _sizes(np.minimum(H, W)) * H * W, 2)
    rest, width = np.divmod(rest, W)
    rest, height = np.divmod(rest, H)
    top, left = np.divmod(rest, W)
    return np.stack([top, left, height + 1, width + 1], axis=-1).astype(np.uint16), flip


def _size_numbers(
    height: Ints, width: Ints, H: Ints, W: Ints
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Numbers of sizes, and whether they lie in the wedge (elsewhere the number is none)."""
    S, wide = np.minimum(H, W), H <= W
    a, b = np.where(wide, height, width), np.where(wide, width, height)
    u, D = b - _least(a), _row(S)
    inside = (u >= 0) & (u < _lengths(a))
    number = np.where(2 * a <= S + 1, (a - 1) * D + u, (S - a) * D + D - 1 - u)
    return number, inside


def _sides(size_number: Uint32, S: Uint32, wide: Array) -> tuple[Uint32, Uint32]:
    """Height and width of numbered sizes."""
    one, D = np.uint32(1), _row(S)
    row = size_number // D
    u = size_number - row * D
    above = u >= _lengths(row + one)
    a = np.where(above, S - row, row + one)
    b = np.where(above, D - one - u, u) + _least(a)
    return np.where(wide, a, b), np.where(wide, b, a)


def _least(a: Array) -> Array:
    return (3 * a + 3) >> 2


def _lengths(a: Array) -> Array:
    return 4 * a // 3 - _least(a) + 1


def _row(S: Array) -> Array:
    return 7 * (S + 1) // 12 + 2


def _sizes(S: Ints) -> Ints:
    return (S + 1) // 2 * _row(S)
