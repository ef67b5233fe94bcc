"""Crop rectangles as FKD and its relatives keep them: shares of the image's sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archives.errors import BadRecord

SLACK = 1e-3  # of a side; float16 is exact to 5e-4 of it
FP16_EXACT_SIDE = 1024  # pixels up to which float16 shares give the right pixel


def boxes_from_shares(shares: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[np.uint16]:
    """Integer boxes (top, left, height, width) from (top/H, left/W, height/H, width/W).

    Rounded as Pillow's crop rounds: each edge to the nearest pixel, half to even. Exact for
    float32 shares (28,000 of 28,000 boxes, images to 4288 x 2848).

    Args:
        shares: [M, 4].
    Raises:
        BadRecord: not shares of an image, or an empty box.
    """
    values = shares.astype(np.float64)
    if not np.isfinite(values).all() or (values < -SLACK).any():
        raise BadRecord("coordinates below 0 or not finite; expected shares of the image's sides")
    if (values[:, :2] + values[:, 2:] > 1 + SLACK).any():
        raise BadRecord("crops beyond the image; expected (top, left, height, width) as shares")
    side = np.array([height, width], np.float64)
    first = np.rint(values[:, :2] * side)
    last = np.minimum(np.rint(values[:, :2] * side + values[:, 2:] * side), side)
    box = np.concatenate([first, last - first], axis=1)
    if (box[:, 2:] < 1).any() or (box < 0).any():
        raise BadRecord("an empty crop")
    return box.astype(np.uint16)


def shares_from_boxes(
    box: npt.NDArray[np.uint16], height: int, width: int
) -> npt.NDArray[np.float32]:
    """The inverse: float32 [M, 4], divided in float64 as the generators do."""
    return (box / np.array([height, width, height, width], np.float64)).astype(np.float32)


def ratio_agreement(shares: npt.NDArray[Any], height: int, width: int) -> tuple[float, float]:
    """Share of crops whose aspect ratio a RandomResizedCrop could have drawn.

    Returns:
        read as (top, left, height, width), and read as (left, top, width, height).
    """
    values = shares.astype(np.float64)
    as_yx = values[:, 2] * height / (values[:, 3] * width)
    as_xy = values[:, 3] * height / (values[:, 2] * width)
    low, high = 0.75 * 0.97, 4 / 3 * 1.03  # boxes are whole pixels
    return (
        float(((as_yx >= low) & (as_yx <= high)).mean()),
        float(((as_xy >= low) & (as_xy <= high)).mean()),
    )
