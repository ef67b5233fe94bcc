"""The pixel operations of storage/colour.py and storage/randaugment.py, compiled, in place."""

from __future__ import annotations

import numpy as np

from storage.colour import ONE
from storage.randaugment import (
    KINDS,
    POINT,
    kept_bits,
    rotation_table,
    shear,
    shift,
    solarise_threshold,
    strength_factor,
)
from trainer.replay.jit import inlined_kernel, kernel

(
    _IDENTITY, _SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE, _BRIGHTNESS, _SATURATION,
    _CONTRAST, _SHARPNESS, _POSTERISE, _SOLARISE, _AUTOCONTRAST, _EQUALISE,
) = range(len(KINDS))  # fmt: skip
_POINT_ONE = 1 << POINT
_ROTATIONS = rotation_table()
_SEXTANT = 16
_HUES = 6 << _SEXTANT
_TO_LEVEL = 65_793

# the integer formulas of levels are the definition's own
_strength_factor = kernel(strength_factor)
_kept_bits = kernel(kept_bits)
_solarise_threshold = kernel(solarise_threshold)
_shear = kernel(shear)
_shift = kernel(shift)


@kernel
def augment_once(pixels, kind, level):  # type: ignore[no-untyped-def]
    """One operation of RandAugment on a view uint8 [S, S, 3]."""
    side = pixels.shape[0]
    tables = np.empty((3, 256), np.uint8)
    if kind == _SHEAR_X:
        _warp(pixels, _POINT_ONE, _shear(level), 0, 0, _POINT_ONE, 0)
    elif kind == _SHEAR_Y:
        _warp(pixels, _POINT_ONE, 0, 0, _shear(level), _POINT_ONE, 0)
    elif kind == _TRANSLATE_X:
        _warp(pixels, _POINT_ONE, 0, -_shift(level, side) * _POINT_ONE, 0, _POINT_ONE, 0)
    elif kind == _TRANSLATE_Y:
        _warp(pixels, _POINT_ONE, 0, 0, 0, _POINT_ONE, -_shift(level, side) * _POINT_ONE)
    elif kind == _ROTATE:
        cosine, sine = _ROTATIONS[abs(level), 0], _ROTATIONS[abs(level), 1]
        if level < 0:
            sine = -sine
        centre = side << POINT
        _warp(
            pixels, cosine, -sine, (centre - cosine * side + sine * side) >> 1,
            sine, cosine, (centre - sine * side - cosine * side) >> 1,
        )  # fmt: skip
    elif kind == _SATURATION:
        blend_with_grey(pixels, _strength_factor(level))
    elif kind == _SHARPNESS:
        _sharpen(pixels, _strength_factor(level))
    elif kind != _IDENTITY:
        _point_tables(pixels, kind, level, tables)
        look_up(pixels, tables)


@kernel
def _point_tables(pixels, kind, level, tables):  # type: ignore[no-untyped-def]
    """What the operations that look at one level at a time make of each."""
    if kind == _BRIGHTNESS:
        strengthen_table(_strength_factor(level), tables)
    elif kind == _CONTRAST:
        contrast_table(pixels, _strength_factor(level), tables)
    elif kind in (_AUTOCONTRAST, _EQUALISE):
        counts = np.zeros((3, 256), np.int64)
        for row in range(pixels.shape[0]):
            for column in range(pixels.shape[1]):
                for channel in range(3):
                    counts[channel, pixels[row, column, channel]] += 1
        for channel in range(3):
            if kind == _EQUALISE:
                _equalising_table(counts[channel], tables[channel])
            else:
                _stretching_table(counts[channel], tables[channel])
    else:
        mask = 256 - (1 << (8 - _kept_bits(level)))
        threshold = _solarise_threshold(level)
        for value in range(256):
            inverted = 255 - value if value >= threshold else value
            tables[:, value] = value & mask if kind == _POSTERISE else inverted


@kernel
def look_up(pixels, tables):  # type: ignore[no-untyped-def]
    """Every level of a channel replaced by its table's, uint8 [3, 256]."""
    for row in range(pixels.shape[0]):
        for column in range(pixels.shape[1]):
            for channel in range(3):
                pixels[row, column, channel] = tables[channel, pixels[row, column, channel]]


@kernel
def strengthen_table(factor, tables):  # type: ignore[no-untyped-def]
    """Tables of storage.colour.brightness."""
    for value in range(256):
        tables[:, value] = min((factor * value) >> 8, 255)


@kernel
def contrast_table(pixels, factor, tables):  # type: ignore[no-untyped-def]
    """Tables of storage.colour.contrast."""
    flat = pixels.reshape(-1)
    total = np.uint64(0)
    for i in range(np.uint64(0), np.uint64(flat.size), np.uint64(3)):
        total += _grey(flat[i], flat[i + np.uint64(1)], flat[i + np.uint64(2)])
    count = pixels.shape[0] * pixels.shape[1]
    mean = (ONE - factor) * np.int64(total)
    for value in range(256):
        mixed = (factor * count * value + mean) // (ONE * count)
        tables[:, value] = min(max(mixed, 0), 255)


@inlined_kernel
def _grey(red, green, blue):  # type: ignore[no-untyped-def]
    """storage.colour.grey: the division by 10,000 is this product, for all that can come."""
    weighed = (
        np.uint32(2989) * np.uint32(red)
        + np.uint32(5870) * np.uint32(green)
        + np.uint32(1140) * np.uint32(blue)
    )
    return (np.uint64(weighed) * np.uint64(1_717_987)) >> np.uint64(34)


@kernel
def blend_with_grey(pixels, factor):  # type: ignore[no-untyped-def]
    """storage.colour.saturation. Two plain loops a row: LLVM makes vectors of those."""
    width = pixels.shape[1]
    greys = np.empty(3 * width, np.int32)
    factor, rest = np.int32(factor), np.int32(ONE - factor)
    for number in range(pixels.shape[0]):
        row = pixels[number].reshape(-1)
        for column in range(width):
            at = 3 * column
            grey = np.int32(_grey(row[at], row[at + 1], row[at + 2])) * rest
            greys[at], greys[at + 1], greys[at + 2] = grey, grey, grey
        for i in range(3 * width):
            mixed = np.int32(factor * np.int32(row[i]) + greys[i]) >> 8
            row[i] = min(max(mixed, 0), 255)


@kernel
def turn_hue(pixels, amount):  # type: ignore[no-untyped-def]
    """storage.colour.hue, without branches and in loops of which LLVM makes vectors."""
    if amount == 0:
        return
    width, turn = pixels.shape[1], np.int32(_HUES)
    angles, tops, spans = (
        np.empty(width, np.int32), np.empty(width, np.int32), np.empty(width, np.int32)
    )  # fmt: skip
    for number in range(pixels.shape[0]):
        row = pixels[number].reshape(-1)
        _measure_hues(row, angles, tops, spans)
        for channel in range(3):
            place = np.int32((amount << 8) + ((5 - 2 * channel) << _SEXTANT))
            for column in range(width):
                away = np.int32(angles[column] + place)
                away = np.int32(away - turn) if away >= turn else away
                away = np.int32(away - turn) if away >= turn else away
                away = np.int32(away + turn) if away < 0 else away
                fall = min(max(min(away, np.int32(4 << _SEXTANT) - away), 0), 1 << _SEXTANT)
                level = np.int64((tops[column] << _SEXTANT) - spans[column] * fall)
                row[3 * column + channel] = (level * _TO_LEVEL) >> 32


@kernel
def _measure_hues(row, angles, tops, spans):  # type: ignore[no-untyped-def]
    """Hue, largest channel and its distance from the smallest, of every pixel of a flat row."""
    for column in range(angles.size):
        at = 3 * column
        red, green, blue = np.int32(row[at]), np.int32(row[at + 1]), np.int32(row[at + 2])
        top = max(red, max(green, blue))
        span = top - min(red, min(green, blue))
        ahead = green - blue if top == red else (blue - red if top == green else red - green)
        # the sextant before the hue's own, as one is added to keep the dividend positive; the
        # quotient of such small numbers is never near enough to a whole one for floats to miss it
        before = np.int32(-1) if top == red else (np.int32(1) if top == green else np.int32(3))
        share = np.int32(np.float64((ahead + span) << _SEXTANT) / np.float64(max(span, 1)))
        angles[column] = (before << _SEXTANT) + share
        tops[column] = top
        spans[column] = span


@kernel
def _warp(pixels, xx, xy, x0, yx, yy, y0):  # type: ignore[no-untyped-def]
    """storage.randaugment.warp with across = (xx, xy, x0) and down = (yx, yy, y0)."""
    side = pixels.shape[0]
    source = pixels.copy()
    for row in range(side):
        for column in range(side):
            x = (xx * (2 * column + 1) + xy * (2 * row + 1) + 2 * x0) >> (POINT + 1)
            y = (yx * (2 * column + 1) + yy * (2 * row + 1) + 2 * y0) >> (POINT + 1)
            inside = 0 <= x < side and 0 <= y < side
            for channel in range(3):
                pixels[row, column, channel] = source[y, x, channel] if inside else 0


@kernel
def _sharpen(pixels, factor):  # type: ignore[no-untyped-def]
    """storage.randaugment.sharpness."""
    side = pixels.shape[0]
    source = pixels.copy()
    for row in range(side):
        for column in range(side):
            border = row in (0, side - 1) or column in (0, side - 1)
            for channel in range(3):
                smooth = np.int64(source[row, column, channel])
                if not border:
                    total = 4 * smooth
                    for y in range(row - 1, row + 2):
                        for x in range(column - 1, column + 2):
                            total += np.int64(source[y, x, channel])
                    smooth = (2 * total + 13) // 26
                value = np.int64(source[row, column, channel])
                mixed = (factor * value + (ONE - factor) * smooth) >> 8
                pixels[row, column, channel] = min(max(mixed, 0), 255)


@kernel
def _stretching_table(counts, table):  # type: ignore[no-untyped-def]
    low, high = 255, 0
    for value in range(256):
        if counts[value]:
            low, high = min(low, value), max(high, value)
    for value in range(256):
        inside = min(max(value, low), high)  # others don't occur
        table[value] = 255 * (inside - low) // (high - low) if high > low else value


@kernel
def _equalising_table(counts, table):  # type: ignore[no-untyped-def]
    total, last = 0, 0
    for value in range(256):
        total += counts[value]
        if counts[value]:
            last = counts[value]
    step = (total - last) // 255
    before = 0
    for value in range(256):
        if step:
            table[value] = 0 if value == 0 else min((before + step // 2) // step, 255)
        else:
            table[value] = value
        before += counts[value]
