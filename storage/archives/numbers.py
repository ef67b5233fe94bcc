"""Numbers out of parsed values, whatever they were wrapped in: arrays, tensors, lists of lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archives.errors import BadRecord

MAX_NUMBERS = 1 << 20  # in lists; arrays are bounded by their bytes
MAX_DEPTH = 4


def as_array(value: Any, what: str) -> npt.NDArray[Any]:
    """A numeric array of at most 4 axes.

    Lists are counted while they are walked, so that shared sub-lists can't grow without end.

    Raises:
        BadRecord: not numbers, ragged, or too many.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value
    flat: list[Any] = []
    shape = _walk(value, flat, [0], 0, what)
    try:
        array = np.array(flat)
    except (ValueError, OverflowError) as error:
        raise BadRecord(f"{what}: numbers that no array holds") from error
    if array.size and array.dtype.kind not in "biuf":
        raise BadRecord(f"{what}: expected numbers")
    return array.reshape(shape)


def _walk(value: Any, flat: list[Any], seen: list[int], depth: int, what: str) -> tuple[int, ...]:
    """Append the numbers to `flat`; returns the shape. seen: one number, what was looked at."""
    array = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    seen[0] += value.size if array else 1
    if seen[0] > MAX_NUMBERS:
        raise BadRecord(f"{what}: more than {MAX_NUMBERS} numbers")
    if isinstance(value, bool | int | float):
        flat.append(value)
        return ()
    if array:
        flat.extend(value.ravel().tolist())
        return tuple(int(side) for side in value.shape)
    if not isinstance(value, list | tuple) or depth >= MAX_DEPTH:
        raise BadRecord(f"{what}: expected an array of numbers, found {type(value).__name__}")
    shapes = {_walk(item, flat, seen, depth + 1, what) for item in value}
    if len(shapes) > 1:
        raise BadRecord(f"{what}: lists of different lengths; expected an array")
    return (len(value), *(shapes.pop() if shapes else ()))


def as_classes(values: npt.NDArray[Any], num_classes: int, what: str) -> npt.NDArray[np.int64]:
    """Class numbers, which some formats keep as floats.

    Raises:
        BadRecord: fractions, or classes that there aren't.
    """
    whole = np.rint(values.astype(np.float64))
    if not np.isfinite(whole).all() or (np.abs(values - whole) > 1e-3).any():
        raise BadRecord(f"{what}: class numbers that aren't whole")
    if values.dtype == np.float16 and num_classes > 2048:
        raise BadRecord(f"{what}: float16 class numbers are exact only to 2048 classes")
    if ((whole < 0) | (whole >= num_classes)).any():
        raise BadRecord(f"{what}: a class outside 0 to {num_classes - 1}")
    return whole.astype(np.int64)


def check_probabilities(prob: npt.NDArray[Any], what: str) -> npt.NDArray[np.float64]:
    """Kept probabilities [M, k]: each in 0..1, at most 1 together (rounding noise allowed).

    Raises:
        BadRecord: anything else.
    """
    values = prob.astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or (values > 1 + 1e-3).any():
        raise BadRecord(f"{what}: probabilities outside 0 to 1")
    if (values.sum(axis=-1) > 1 + 4e-3).any():
        raise BadRecord(f"{what}: probabilities that sum to more than 1")
    return np.minimum(values, 1.0)


def most_probable(
    index: npt.NDArray[np.int64], prob: npt.NDArray[np.float64], top_k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The `top_k` most probable of [M, K] in falling order, equal ones by class."""
    order = np.lexsort((index, -prob), axis=-1)[..., :top_k]
    return np.take_along_axis(index, order, -1), np.take_along_axis(prob, order, -1)


def softmax_topk(
    logits: npt.NDArray[Any], top_k: int, what: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Classes [M, k], probabilities [M, k] and tail [M] of dense logits [M, C]."""
    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        raise BadRecord(f"{what}: logits that aren't finite")
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    prob = values / values.sum(axis=-1, keepdims=True)
    index = np.argsort(-prob, axis=-1, kind="stable")[..., :top_k]
    kept = np.take_along_axis(prob, index, -1)
    return index, kept, np.maximum(1 - kept.sum(axis=-1), 0.0)
