"""Colour operations on uint8 crops in integers: the definition of every stored colour draw.

Each repeats what torchvision does to uint8 tensors (transforms.v2.functional), with its float
arithmetic written as exact integer division, so that it gives the same bits everywhere. Factors
have 8 fraction bits: 256 leaves the picture as it is. docs/pixels.md is the text;
trainer/replay/colour.py is the same compiled, tested equal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

ONE = 256  # a factor of 1
TURN = 1536  # hue steps of a whole turn: 256 a sextant
_SEXTANT = 16  # fraction bits of a hue within its sextant
_HUES = 6 << _SEXTANT
_TO_LEVEL = 65_793  # 255.999 / 255 with 16 fraction bits: torchvision's way from 0..1 to uint8
_LEVELS = np.arange(256, dtype=np.int64)


def brightness(pixels: Pixels, factor: int) -> Pixels:
    """Blend with black: floor(factor p / 256), at most 255."""
    return _look_up(np.minimum(factor * _LEVELS >> 8, 255), pixels)


def contrast(pixels: Pixels, factor: int) -> Pixels:
    """Blend with the mean of the picture's grey, which is not rounded."""
    count = pixels.shape[0] * pixels.shape[1]
    mean = (ONE - factor) * int(grey(pixels).sum(dtype=np.int64))
    table = (factor * count * _LEVELS + mean) // (ONE * count)
    return _look_up(np.clip(table, 0, 255), pixels)


def saturation(pixels: Pixels, factor: int) -> Pixels:
    """Blend every pixel with its grey."""
    return blend(pixels, grey(pixels)[..., None], factor)


def grey(pixels: Pixels) -> npt.NDArray[np.int32]:
    """floor(0.2989 R + 0.587 G + 0.114 B), torchvision's rgb_to_grayscale; int32 [S, S]."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    weighed: npt.NDArray[np.int32] = (2989 * red + 5870 * green + 1140 * blue) // 10_000
    return weighed


def blend(pixels: Pixels, other: npt.NDArray[np.integer], factor: int) -> Pixels:
    """floor((factor p + (256 - factor) other) / 256), clipped to 0..255."""
    mixed = (factor * pixels.astype(np.int32) + (ONE - factor) * other.astype(np.int32)) >> 8
    return np.asarray(np.clip(mixed, 0, 255), np.uint8)


def hue(pixels: Pixels, shift: int) -> Pixels:
    """Turn the hue by `shift` steps of 1 / 1536 turn; grey pixels have none and stay.

    In the hexagon of HSV the largest and smallest channel stay, and which channel is which, and
    where the third lies between them, moves (torchvision's _rgb_to_hsv and _hsv_to_rgb).
    """
    if shift == 0:
        return pixels
    wide = np.moveaxis(pixels, -1, 0).astype(np.int64)
    red, green, blue = wide
    top = wide.max(axis=0)
    span = top - wide.min(axis=0)
    number = np.where(top == red, 0, np.where(top == green, 2, 4))
    ahead = np.where(number == 0, green - blue, np.where(number == 2, blue - red, red - green))
    angle = (number << _SEXTANT) + (ahead << _SEXTANT) // np.maximum(span, 1) + (shift << 8)
    turned = np.empty_like(pixels)
    for channel, place in enumerate((5, 3, 1)):  # sextants from red, green and blue to the far side
        away = (angle + (place << _SEXTANT)) % _HUES
        fall = np.clip(np.minimum(away, (4 << _SEXTANT) - away), 0, 1 << _SEXTANT)
        turned[..., channel] = ((top << _SEXTANT) - span * fall) * _TO_LEVEL >> 32
    return turned


def add(pixels: Pixels, offsets: npt.NDArray[np.integer]) -> Pixels:
    """One number added to each channel, clipped to 0..255."""
    return np.clip(pixels.astype(np.int16) + offsets.astype(np.int16), 0, 255).astype(np.uint8)


def _look_up(table: npt.NDArray[np.int64], pixels: Pixels) -> Pixels:
    found: Pixels = np.take(table.astype(np.uint8), pixels)
    return found
