"""The pixel contract's resampler: cut, resize and flip one view, bit for bit as pillow-simd.

Source: `ImagingResample` of pillow-simd 12.1.1 for 8-bit pixels (`precompute_coeffs`,
`normalize_coeffs_8bpc` and the two convolution passes); torch's uint8
`interpolate(antialias=True)` has the same arithmetic. Weights are computed in float64, then
rounded to int16 at the highest precision at which the largest weight still fits; the
horizontal pass comes first and rounds to uint8.

A *canvas* is a flat uint8 buffer of RGBX pixels (4 bytes, the last one ignored) with
`canvas_bytes` bytes: the kernels read, but never use, a little more than the image.
"""

from __future__ import annotations

import math

import numpy as np

from trainer.replay.jit import inlined_kernel, kernel
from trainer.replay.simd import CHUNK, COLUMNS, ROWS, TAPS, horizontal_step, vertical_step

SUPPORT = {"bilinear": 1, "bicubic": 2}  # filter radius in pixels; names the filter as well
_WEIGHT_BITS = 15  # int16
_PRECISION_BITS = 22  # 32-bit sums of 8-bit pixels with two bits to spare


@inlined_kernel
def _filter(x, support):  # type: ignore[no-untyped-def]
    x = abs(x)
    if support == 1:
        return 1.0 - x if x < 1.0 else 0.0
    a = -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


@kernel
def weights(length, size, support):  # type: ignore[no-untyped-def]
    """Fixed-point weights that resize `length` pixels to `size`.

    Returns:
        (first int64 [size], count int64 [size], weight int16 [size, padded taps], precision):
        output i is (half + sum_t weight[i, t] * pixel[first[i] + t]) >> precision.
    """
    scale = length / size
    filterscale = max(scale, 1.0)
    radius = support * filterscale
    taps = math.ceil(radius) * 2 + 1
    padded = (taps + TAPS - 1) // TAPS * TAPS
    exact = np.zeros((size, padded), np.float64)
    first = np.empty(size, np.int64)
    count = np.empty(size, np.int64)
    inverse = 1.0 / filterscale
    largest = 0.0
    for i in range(size):
        center = (i + 0.5) * scale
        low = max(int(center - radius + 0.5), 0)
        high = min(int(center + radius + 0.5), length)
        total = 0.0
        for t in range(high - low):
            value = _filter((t + low - center + 0.5) * inverse, support)
            exact[i, t] = value
            total += value
        for t in range(high - low):
            if total != 0.0:
                exact[i, t] /= total
            largest = max(largest, exact[i, t])
        first[i] = low
        count[i] = high - low
    precision = 0
    while precision < _PRECISION_BITS:
        if int(0.5 + largest * (1 << (precision + 1))) >= (1 << _WEIGHT_BITS):
            break
        precision += 1
    weight = np.empty((size, padded), np.int16)
    unit = float(1 << precision)
    for i in range(size):
        for t in range(padded):
            value = exact[i, t] * unit
            weight[i, t] = int(value - 0.5) if value < 0 else int(value + 0.5)
    return first, count, weight, precision


@kernel
def canvas_bytes(height, width):  # type: ignore[no-untyped-def]
    """Bytes of a canvas for an image, with what the kernels read beyond it."""
    return (height + ROWS) * width * 4 + 4 * TAPS


@kernel
def cut(canvas, canvas_width, top, left, height, width, flip, support, out):  # type: ignore[no-untyped-def]
    """One view: cut the box, resize it to the output's side, mirror it.

    Args:
        canvas: uint8 [canvas_bytes], RGBX pixels in rows of `canvas_width` pixels.
        top, left, height, width: the box in pixels, wholly inside the image.
        flip: mirror left-right after resizing.
        support: a value of `SUPPORT`.
        out: uint8 [size, size, 3], C-contiguous, written.
    """
    size = out.shape[0]
    row_bytes = 3 * size
    columns = (size + COLUMNS - 1) // COLUMNS * COLUMNS
    pitch = (3 * columns + 4 + CHUNK - 1) // CHUNK * CHUNK
    between = np.empty((height + ROWS) * pitch, np.uint8)
    first, count, weight, precision = weights(width, size, support)
    canvas_pitch = 4 * canvas_width
    origin = canvas.ctypes.data + top * canvas_pitch + 4 * left
    stride = weight.shape[1] * 2
    steps = (count.max() + TAPS - 1) // TAPS
    starts = np.zeros(columns, np.int64)
    ordered = np.zeros((columns, weight.shape[1]), np.int16)
    for column in range(size):
        i = size - 1 - column if flip else column
        starts[column] = first[i]
        ordered[column] = weight[i]
    for row in range(0, height, ROWS):
        source = origin + row * canvas_pitch
        target = between.ctypes.data + row * pitch
        for column in range(0, columns, COLUMNS):
            horizontal_step(
                source, canvas_pitch, starts.ctypes.data + 8 * column,
                ordered.ctypes.data + column * stride, stride, steps, target + 3 * column, pitch,
                precision,
            )  # fmt: skip
    if height != width:
        first, count, weight, precision = weights(height, size, support)
        stride = weight.shape[1] * 2
    # narrow outputs go through rows of one whole chunk
    narrow = row_bytes < CHUNK
    wide_rows = np.empty((size if narrow else 0) * CHUNK, np.uint8)
    target_pitch = CHUNK if narrow else row_bytes
    for row in range(size):
        source = between.ctypes.data + first[row] * pitch
        target = (wide_rows.ctypes.data if narrow else out.ctypes.data) + row * target_pitch
        taps = weight.ctypes.data + row * stride
        pairs = (count[row] + 1) // 2
        for start in range(0, target_pitch - CHUNK, CHUNK):
            vertical_step(source + start, pitch, taps, pairs, target + start, precision)
        last = target_pitch - CHUNK  # overlaps the chunk before it: nothing is written beyond
        vertical_step(source + last, pitch, taps, pairs, target + last, precision)
    if narrow:
        for row in range(size):
            for column in range(size):
                for channel in range(3):
                    out[row, column, channel] = wide_rows[row * CHUNK + 3 * column + channel]
