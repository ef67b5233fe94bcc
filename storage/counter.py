"""Counter-based random words, and the integer arithmetic that turns them into boxes.

Philox4x64-10 is Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Raw words only:
the streams of numpy's Generator methods may change between releases.
"""

from __future__ import annotations

import decimal
import functools
import hashlib

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError

U64 = npt.NDArray[np.uint64]

TRIES = 10  # boxes drawn until one fits, as torchvision
MAX_RATIO = 16.0  # keeps table entries below 2^32
RATIO_STEPS = 1024  # table intervals over log(ratio); linear between, relative error < 1e-8
HALF = np.uint64(32)
LOW = np.uint64(0xFFFF_FFFF)


def philox_words(domain: str, seed: int, digest: bytes, first: int, count: int) -> U64:
    """Words `first` to `first + count - 1` of an image's stream; `first` is a multiple of 4."""
    if not 0 <= seed < 1 << 64:
        raise UsageError(f"seed is {seed}; expected 0 to 2^64 - 1")
    if len(digest) != 32:
        raise UsageError(f"digest has {len(digest)} bytes; expected the 32 of a SHA-256")
    material = b"teachonce/" + domain.encode() + b"\0" + seed.to_bytes(8, "little") + digest
    key = np.frombuffer(hashlib.sha256(material).digest()[:16], dtype="<u8")
    counter = np.array([first // 4, 0, 0, 0], np.uint64)  # numpy counts up before it generates
    stream = np.random.Philox(key=key.astype(np.uint64), counter=counter)
    return stream.random_raw(count)


def below(draw: U64, bound: U64 | np.uint64) -> U64:
    """A 32-bit draw scaled to 0 .. bound - 1 (bias at most bound / 2^32)."""
    return (draw * bound) >> HALF


def isqrt(value: U64) -> U64:
    """floor(sqrt(value)) for value < 2^62; the float root may be off by one, never by more."""
    root = np.sqrt(value.astype(np.float64)).astype(np.uint64)
    root -= (root * root > value).astype(np.uint64)
    return root + ((root + np.uint64(1)) ** 2 <= value).astype(np.uint64)


def round46(value: U64) -> U64:
    """Drop 46 fraction bits (16 of a side, 30 of a table entry), rounding half up."""
    return (value + np.uint64(1 << 45)) >> np.uint64(46)


def fixed32(value: float) -> int:
    """A number with 32 fraction bits."""
    return round(value * (1 << 32))


@functools.lru_cache(maxsize=8)
def ratio_tables(low: float, high: float) -> tuple[U64, U64]:
    """sqrt(ratio) and 1 / sqrt(ratio) at RATIO_STEPS + 1 even steps of log(ratio).

    uint64 with 30 fraction bits; sqrt(16) keeps them below 2^32.
    """
    with decimal.localcontext() as context:
        context.prec = 40
        log_low, log_high = decimal.Decimal(low).ln(), decimal.Decimal(high).ln()
        steps = [
            (log_low + (log_high - log_low) * i / RATIO_STEPS) / 2 for i in range(RATIO_STEPS + 1)
        ]
        one = decimal.Decimal(1 << 30)
        root = [int((x.exp() * one).to_integral_value()) for x in steps]
        inverse = [int(((-x).exp() * one).to_integral_value()) for x in steps]
    return np.array(root, np.uint64), np.array(inverse, np.uint64)


def interpolate(table: U64, position: U64) -> U64:
    """Linear between table entries; `position` has 32 fraction bits."""
    cell = (position >> HALF).astype(np.intp)
    fraction = (position & LOW).astype(np.int64) >> 2  # 30 bits, so the product fits in 62
    left, right = table[cell].astype(np.int64), table[cell + 1].astype(np.int64)
    return (left + (((right - left) * fraction) >> 30)).astype(np.uint64)


def box_sizes(
    words: U64,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    height: int,
    width: int,
) -> tuple[U64, U64, npt.NDArray[np.bool_]]:
    """Heights and widths of boxes with a random share of an area and ratio width / height.

    Args:
        words: [n, T], one random word a try.
        scale: smallest and largest share. ratio: smallest and largest, each equally likely in its
            logarithm.
        height, width: of the area, at most 2^28 together.
    Returns:
        heights and widths [n, T], clamped to the area, and which of them fitted unclamped.
    """
    low, high = (fixed32(value) for value in scale)
    fraction = np.uint64(low) + below(words >> HALF, np.uint64(high - low + 1))
    side = isqrt(np.uint64(height * width) * fraction)  # sqrt(area), 16 fraction bits
    root, inverse = ratio_tables(*ratio)
    draw = (words & LOW) * np.uint64(RATIO_STEPS)  # position in the table, 32 fraction bits
    box_width = round46(side * interpolate(root, draw))
    box_height = round46(side * interpolate(inverse, draw))
    one = np.uint64(1)
    fits = (
        (box_width >= one)
        & (box_width <= np.uint64(width))
        & (box_height >= one)
        & (box_height <= np.uint64(height))
    )
    return (
        np.clip(box_height, one, np.uint64(height)),
        np.clip(box_width, one, np.uint64(width)),
        fits,
    )
