"""Vectors as a store's arrays: float32, float16, or 8 bits with a scale for each vector.

All arithmetic is IEEE float32 (divide, then round half to even), so that a device which does the
same gets the same bytes. Error bounds, for |v| <= LIMIT and m the largest |v| of the vector:

* fp32: none; fp16: |v^ - v| <= max(2^-11 |v|, 2^-25).
* uint16: none, for whole numbers of 0 to 65534; others are refused.
* int8: |v^ - v| <= 0.50002 scale, scale = m / 127.
* affine8: |v^ - v| <= 0.5001 scale + 2^-23 m, scale = (max - min) / 255.

A vector so short that its scale would be below 2^-126 is stored with scale 0: int8 reads as zeros,
affine8 as its smallest value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from storage.targets.record import VectorPart

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

INT8_STEPS = 127
AFFINE_STEPS = 255
LARGEST_NUMBER = 65_534  # of uint16; one more stands for masked images
LIMIT = np.float32(2.0**126)  # beyond it a scale times its steps may overflow
SMALLEST_SCALE = np.float32(2.0**-126)


def encode_vectors(part: VectorPart, values: Floats) -> dict[str, Array]:
    """The arrays of a part by name: `<name>` and, for 8 bits, `<name>_scale` and `<name>_offset`.

    Args:
        values: float32 [..., *part.shape].
    Raises:
        UsageError: another type or shape, values that aren't finite or that the encoding can't
            hold (float16: beyond 65504; 8 bits: beyond 2^126; uint16: other than 0 to 65534).
    """
    if values.dtype != np.float32 or values.shape[-len(part.shape) :] != part.shape:
        raise UsageError(
            f"{part.name} is {values.dtype} {list(values.shape)}; expected float32 "
            f"[..., {', '.join(map(str, part.shape))}]"
        )
    if not np.isfinite(values).all():
        raise UsageError(f"{part.name} has values that are not finite: look at the teacher")
    if part.encoding == "fp32":
        return {part.name: values.copy()}
    if part.encoding == "fp16":
        return {part.name: _float16(part, values)}
    if part.encoding == "uint16":
        return {part.name: _uint16(part, values)}
    if values.size and max(values.max(), -values.min()) > LIMIT:
        raise UsageError(f"{part.name} has values beyond 2^126, which {part.encoding} can't hold")
    return _int8(part, values) if part.encoding == "int8" else _affine8(part, values)


def decode_vectors(part: VectorPart, arrays: Mapping[str, Array]) -> Floats:
    """float32 [..., *part.shape] from a part's arrays by name; NaN for masked images."""
    values = arrays[part.name]
    if part.encoding in ("fp32", "fp16", "uint16"):
        return values.astype(np.float32)
    decoded: Floats = values.astype(np.float32)
    decoded *= arrays[f"{part.name}_scale"][..., None]
    if part.encoding == "affine8":
        decoded += arrays[f"{part.name}_offset"][..., None]
    return decoded


def filled_vectors(part: VectorPart, arrays: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
    """bool [n]: images of which every value is a fill value. Arrays are [n, ...]."""
    alone = []
    for name, spec in part.arrays().items():
        values = arrays[name]
        where = np.isnan(values) if spec.fill == "NaN" else values == spec.fill
        alone.append(where.reshape(len(values), math.prod(where.shape[1:])).all(axis=1))
    found: npt.NDArray[np.bool_] = np.logical_and.reduce(alone)
    return found


def vector_faults(
    part: VectorPart, arrays: Mapping[str, Array]
) -> Iterator[tuple[str, Array, str]]:
    """What no labelled image may have: (array, bool [n, ...] where, what is wrong)."""
    for name, spec in part.arrays().items():
        values = arrays[name]
        if values.dtype.kind == "f":
            yield name, ~np.isfinite(values), "has values that are not finite"
        elif spec.dtype in ("int8", "uint16"):
            yield name, values == spec.fill, "has a fill value"
    if part.encoding in ("int8", "affine8"):
        yield from _step_faults(part, arrays)


def _step_faults(part: VectorPart, arrays: Mapping[str, Array]) -> Iterator[tuple[str, Array, str]]:
    """A scale fits its vector: the largest value takes all steps, or the scale is 0 and all are."""
    values, name = arrays[part.name], f"{part.name}_scale"
    scale = arrays[name]
    yield name, scale < 0, "has a negative scale"
    if part.encoding == "int8":
        size = np.maximum(values.max(axis=-1), -values.min(axis=-1).astype(np.int16))
        wrong = size != np.where(scale == 0, 0, INT8_STEPS)
    else:
        wrong = (values.max(axis=-1) != np.where(scale == 0, 0, AFFINE_STEPS)) | (
            values.min(axis=-1) != 0
        )
    yield name, wrong, "has a scale that is not its vector's"


def mask_vectors(part: VectorPart, arrays: Mapping[str, Array], masked: Array) -> dict[str, Array]:
    """The part's arrays with fill values in the rows of masked images, bool [n]."""
    found = {}
    for name, spec in part.arrays().items():
        values = arrays[name]
        if masked.any():
            values = values.copy()
            values[masked] = np.nan if spec.fill == "NaN" else spec.fill
        found[name] = values
    return found


def _float16(part: VectorPart, values: Floats) -> Array:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise UsageError(f"{part.name} has values beyond 65504, which fp16 can't hold: use fp32")
    return half


def _uint16(part: VectorPart, values: Floats) -> Array:
    if ((values != np.rint(values)) | (values < 0) | (values > LARGEST_NUMBER)).any():
        raise UsageError(
            f"{part.name} has values that uint16 can't hold; expected whole numbers of 0 to "
            f"{LARGEST_NUMBER}"
        )
    return values.astype(np.uint16)


def _int8(part: VectorPart, values: Floats) -> dict[str, Array]:
    scale = _scale(np.abs(values).max(axis=-1), INT8_STEPS)
    steps = _steps(values, scale, lambda v: v)
    return {
        part.name: np.clip(steps, -INT8_STEPS, INT8_STEPS).astype(np.int8),
        f"{part.name}_scale": scale,
    }


def _affine8(part: VectorPart, values: Floats) -> dict[str, Array]:
    offset = values.min(axis=-1)
    scale = _scale(values.max(axis=-1) - offset, AFFINE_STEPS)
    steps = _steps(values, scale, lambda v: v - offset[..., None])
    return {
        part.name: np.clip(steps, 0, AFFINE_STEPS).astype(np.uint8),
        f"{part.name}_scale": scale,
        f"{part.name}_offset": offset,
    }


def _scale(extent: Floats, steps: int) -> Floats:
    scale = (extent / np.float32(steps)).astype(np.float32)
    return np.where(scale < SMALLEST_SCALE, np.float32(0), scale)


def _steps(values: Floats, scale: Floats, moved: Callable[[Floats], Floats]) -> Floats:
    """rint((v - offset) / scale); 0 where the scale is 0."""
    divisor = np.where(scale == 0, np.float32(np.inf), scale)[..., None]
    return np.rint(moved(values) / divisor)
