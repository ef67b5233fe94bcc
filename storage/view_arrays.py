"""Boxes and flips of views as the arrays of a store, for each view codec.

box-flip-1 keeps `views/box` and `views/flip`, box-number-1 the one array `views/crop`
(box_codec.py). docs/format.md section 1.1 says what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from storage.box_codec import (
    BOX_NUMBERS,
    boxes_from_numbers,
    number_faults,
    numbers_from_boxes,
)
from storage.codecs import NO_CODE
from storage.errors import CorruptStore, UsageError

if TYPE_CHECKING:
    from storage.format import StoreSpec
    from storage.reading import StoreReading

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Fault = tuple[str, Bools, str]  # (array path, bool [n, M] where, what is wrong)
Views = tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]  # box [n, M, 4], flip [n, M]

BOX, FLIP, CROP, SIZE = "views/box", "views/flip", "views/crop", "images/size"


def box_paths(spec: StoreSpec) -> tuple[str, ...]:
    """Arrays that a store keeps boxes and flips in."""
    return (CROP,) if spec.view_codec == BOX_NUMBERS else (BOX, FLIP)


def is_box_path(path: str) -> bool:
    """Whether boxes and flips can be read under this path, whatever the view codec."""
    return path in (BOX, FLIP, CROP)


def padded_size(spec: StoreSpec, size: Array) -> npt.NDArray[np.int64]:
    """Height and width [n, 2] of images, padding included."""
    return size.astype(np.int64) + 2 * spec.pixel.padding


def to_view_arrays(spec: StoreSpec, box: Array, flip: Array, size: Array) -> dict[str, Array]:
    """Arrays of views that `box_faults` has nothing against, by path.

    Args:
        box: u2 [n, M, 4] and flip: u1 [n, M], fill values (0, `NO_CODE`) where masked.
        size: [n, 2] as `images/size`.
    Raises:
        UsageError: an image too large to number its boxes.
    """
    if spec.view_codec != BOX_NUMBERS:
        return {BOX: box, FLIP: flip}
    return {CROP: numbers_from_boxes(box, flip, padded_size(spec, size))}


def from_view_arrays(spec: StoreSpec, arrays: Mapping[str, Array], size: Array) -> Views:
    """Boxes and flips of n images from the arrays that `box_paths` names; fills stay fills."""
    if spec.view_codec != BOX_NUMBERS:
        return arrays[BOX], arrays[FLIP]
    return boxes_from_numbers(arrays[CROP], padded_size(spec, size))


def box_faults(spec: StoreSpec, box: Array, flip: Array, size: Array, ok: Bools) -> Iterator[Fault]:
    """What is wrong with boxes and flips of images of which `ok` [n] are readable."""
    inside = padded_size(spec, size).astype(np.int32).T[:, :, None]  # [2, n, 1]
    wide = np.moveaxis(box, -1, 0).astype(np.int32, order="C")  # [4, n, M]
    outside = (wide[:2] + wide[2:] > inside) | (wide[2:] == 0)
    yield BOX, (outside[0] | outside[1]) & ok[:, None], "has a box outside the image"
    boxed = np.zeros(flip.shape, bool)
    boxed[~ok] = box[~ok].any(axis=-1)
    yield BOX, boxed, "is masked but has a box"
    yield FLIP, (flip > 1) & ok[:, None], "has a flip that is neither 0 nor 1"
    yield FLIP, (flip != NO_CODE) & ~ok[:, None], "is masked but has a flip"


def view_faults(spec: StoreSpec, arrays: Mapping[str, Array], ok: Bools) -> Iterator[Fault]:
    """What is wrong with the view arrays of a block, beside which `images/size` lies."""
    size = arrays[SIZE]
    if spec.view_codec != BOX_NUMBERS:
        yield from box_faults(spec, arrays[BOX], arrays[FLIP], size, ok)
        return
    number = arrays[CROP]
    box, flip = from_view_arrays(spec, arrays, size)
    wrong = number_faults(number, box, flip, padded_size(spec, size))
    yield CROP, wrong & ok[:, None], "has a number that is no box of the image"
    yield CROP, (flip == NO_CODE) & ok[:, None], "has no box"
    yield CROP, (flip != NO_CODE) & ~ok[:, None], "is masked but has a box"


class ViewReader:
    """Reads boxes and flips; keeps the images' sizes, which every plane of numbers needs."""

    def __init__(self, store: StoreReading) -> None:
        self._store = store
        self._size: Array | None = None

    def views(self, arrays: list[Array]) -> Views:
        """Boxes and flips of all images, from the arrays that `box_paths` names."""
        spec = self._store.spec
        if spec.view_codec == BOX_NUMBERS and self._size is None:
            self._size = self._store.read_array(SIZE, slice(None))
        size = np.empty(0) if self._size is None else self._size
        return from_view_arrays(spec, dict(zip(box_paths(spec), arrays, strict=True)), size)

    def read_logical(self, path: str, rows: slice, views: slice | None) -> Array:
        """`views/box`, `views/flip` or `views/crop` of a store that keeps the others.

        Raises:
            CorruptStore: boxes that have no number.
        """
        store, spec = self._store, self._store.spec
        paths = box_paths(spec)
        found = dict(zip(paths, store.read_arrays(paths, rows, views), strict=True))
        return convert_views(spec, found, store.read_array(SIZE, rows), path, str(store.path))


def convert_views(
    spec: StoreSpec, arrays: Mapping[str, Array], size: Array, path: str, where: str
) -> Array:
    """One of `views/box`, `views/flip` and `views/crop` from those that a store keeps.

    Raises:
        CorruptStore: boxes that have no number.
    """
    if path in arrays:
        return arrays[path]
    if path == CROP:
        try:
            return numbers_from_boxes(arrays[BOX], arrays[FLIP], padded_size(spec, size))
        except UsageError as error:
            raise CorruptStore(f"{where}: {error}") from error
    box, flip = from_view_arrays(spec, arrays, size)
    return box if path == BOX else flip
