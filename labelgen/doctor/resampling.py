"""Resamplers in plain numpy: the contract's, and those that are taken for it by mistake.

They are what the doctor compares a machine's pixels with, so they share no code with the paths.
Products of integer weights and pixels are summed in float64, which holds them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

CONTRACT, PILLOW, AREA, POINTS = "contract", "pillow", "area", "no-antialias"
AREA_LINEAR = "area-linear"  # what INTER_AREA is where a side is enlarged
NARROW_BITS, PRECISION = 15, 22  # int16 weights of pillow-simd; bits of Pillow's int32 weights


def _bilinear(x: Floats) -> Floats:
    return np.asarray(np.maximum(1 - np.abs(x), 0), np.float64)


def _bicubic(x: Floats) -> Floats:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _box(x: Floats) -> Floats:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _hamming(x: Floats) -> Floats:
    x = np.abs(x)
    return np.where(x < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(math.pi * x)), 0)


def _lanczos(x: Floats) -> Floats:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


FILTERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "bilinear": (_bilinear, 1), "bicubic": (_bicubic, 2), "box": (_box, 0.5),
    "hamming": (_hamming, 1), "lanczos": (_lanczos, 3),
}  # fmt: skip


def resize(pixels: Pixels, size: int, filter_name: str, kind: str = CONTRACT) -> Pixels:
    """uint8 [H, W, 3] to [size, size, 3].

    Args:
        kind: CONTRACT (docs/pixels.md), PILLOW (Pillow's wider weights), AREA (OpenCV's
            INTER_AREA) or POINTS (the filter at its own width, without antialiasing).
    """
    height, width = pixels.shape[:2]
    return resize_box(pixels, (0, 0, height, width), size, filter_name, kind)


def resize_box(
    pixels: Pixels, box: tuple[int, int, int, int], size: int, filter_name: str, kind: str
) -> Pixels:
    """`resize` of a part (top, left, height, width); filters read what lies around it, as Pillow's
    `resize(box=...)` does."""
    top, left, tall, wide = box
    if (tall, wide) == (size, size):
        return pixels[top : top + tall, left : left + wide].copy()
    if kind == AREA and min(tall, wide) < size:
        kind = AREA_LINEAR
    across = _weights(pixels.shape[1], left, wide, size, filter_name, kind)
    down = _weights(pixels.shape[0], top, tall, size, filter_name, kind)
    if kind in (AREA, AREA_LINEAR, POINTS):
        floats = np.einsum("ij,jkc->ikc", down, np.einsum("ij,kjc->kic", across, pixels))
        return np.asarray(np.rint(floats).clip(0, 255), np.uint8)
    rows = _pass(across, pixels.transpose(1, 0, 2).astype(np.float64), kind)
    return _pass(down, rows.transpose(1, 0, 2), kind).astype(np.uint8)


def nearest(pixels: Pixels, size: int) -> Pixels:
    """uint8 [H, W, 3] to [size, size, 3], the pixel that each centre lies in."""
    height, width = pixels.shape[:2]
    rows = ((np.arange(size) + 0.5) * height / size).astype(np.intp)
    columns = ((np.arange(size) + 0.5) * width / size).astype(np.intp)
    return np.asarray(pixels[rows[:, None], columns])


def _pass(weights: Floats, lines: Floats, kind: str) -> Floats:
    """Fixed-point sums of lines [n, m, 3] by weights [size, n]: [size, m, 3], rounded to levels."""
    largest, precision = float(weights.max()), PRECISION
    if kind == CONTRACT:
        precision = 0
        while precision < PRECISION and int(0.5 + largest * (2 << precision)) < 1 << NARROW_BITS:
            precision += 1
    scaled = weights * float(1 << precision)
    whole = np.trunc(scaled + np.copysign(0.5, scaled))
    sums = (whole @ lines.reshape(len(lines), -1)).reshape(len(weights), *lines.shape[1:])
    sums = np.floor((sums + (1 << precision >> 1)) / (1 << precision))
    clipped: Floats = np.clip(sums, 0, 255)
    return clipped


@lru_cache(maxsize=64)  # of one crop after the other, under all hypotheses
def _weights(length: int, start: int, part: int, size: int, filter_name: str, kind: str) -> Floats:
    """Weights float64 [size, length] of an axis whose pixels from `start` on, `part` of them, are
    resized."""
    scale = part / size
    places = np.arange(length, dtype=np.float64)
    if kind == AREA_LINEAR:
        return _area_linear(length, start, part, size)
    if kind == AREA:
        edges = start + np.arange(size)[:, None] * scale
        shared = np.minimum(edges + scale, places + 1) - np.maximum(edges, places)
        return np.asarray(np.maximum(shared, 0) / scale)
    function, radius = FILTERS[filter_name]
    wider = 1.0 if kind == POINTS else max(scale, 1.0)
    reach = radius * wider
    found = np.zeros((size, length))
    for i in range(size):
        centre = start + (i + 0.5) * scale
        if kind == POINTS:  # beyond the part its border pixel counts again
            taps = math.floor(centre - 0.5) + np.arange(
                1 - math.ceil(radius), 1 + math.ceil(radius)
            )
            values = function(np.asarray(taps + 0.5 - centre, np.float64))
            np.add.at(found[i], np.clip(taps, start, start + part - 1), values)
        else:
            low, high = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), length)
            found[i, low:high] = function((places[low:high] - centre + 0.5) / wider)
        found[i] /= found[i].sum() or 1
    return found


def _area_linear(length: int, start: int, part: int, size: int) -> Floats:
    """Weights of OpenCV's INTER_AREA where a side is enlarged: linear, by where pixels end."""
    scale = part / size
    found = np.zeros((size, length))
    for i in range(size):
        low = math.floor(i * scale)
        share = (i + 1) - (low + 1) / scale
        share = share - math.floor(share) if share > 0 else 0.0
        found[i, start + min(low, part - 1)] += 1 - share
        found[i, start + min(low + 1, part - 1)] += share
    return found
