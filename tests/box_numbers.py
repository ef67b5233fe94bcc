"""Numbers of boxes by docs/format.md section 1.1, in Python's integers."""

from __future__ import annotations

import math
from collections.abc import Sequence


def plain_number(height_of: int, width_of: int, box: Sequence[int], flip: int) -> int:
    """The number of a box (top, left, height, width) in an image of these padded sides."""
    top, left, height, width = box
    a, b = (height, width) if height_of <= width_of else (width, height)
    S = min(height_of, width_of)
    D = 7 * (S + 1) // 12 + 2
    K = (S + 1) // 2 * D
    least = math.ceil(3 * a / 4)
    if least <= b <= 4 * a // 3:
        u = b - least
        size = (a - 1) * D + u if 2 * a <= S + 1 else (S - a) * D + D - 1 - u
        return 1 + (2 * (top * (width_of - width + 1) + left) + flip) * K + size
    rest = ((top * width_of + left) * height_of + height - 1) * width_of + width - 1
    return 1 + 2 * K * height_of * width_of + 2 * rest + flip
