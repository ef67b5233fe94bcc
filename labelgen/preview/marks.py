"""Where the boxes of a photo and their numbers go; the same for the picture and for the page."""

from __future__ import annotations

from collections.abc import Sequence

OUTLINES = (
    "#e63c3c", "#1f8f46", "#2f62d9", "#c97800", "#8a3cb4", "#0e8f9b", "#c2357f", "#6b6b1e",
)  # fmt: skip


def outline(view: int) -> str:
    """Colour of a view's box."""
    return OUTLINES[view % len(OUTLINES)]


def scaled_box(
    box: Sequence[int], scale: float, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), inclusive, of a (top, left, height, width) box in a scaled picture."""
    top, left, height, width = box
    corners = [round(value * scale) for value in (left, top, left + width, top + height)]
    x0, y0 = min(corners[0], size[0] - 1), min(corners[1], size[1] - 1)
    x1, y1 = min(corners[2], size[0]) - 1, min(corners[3], size[1]) - 1
    return x0, y0, max(x0, x1), max(y0, y1)


def badge_places(
    boxes: Sequence[tuple[int, int, int, int]], size: tuple[int, int], badge: tuple[int, int]
) -> list[tuple[int, int]]:
    """Left and top of a badge for each box, inside the picture: in the first of its corners where
    no badge is yet, else in the first free place to the right or below of the first one."""
    taken: list[tuple[int, int]] = []
    width, height = badge
    right, bottom = max(size[0] - width, 0), max(size[1] - height, 0)

    def is_free(x: int, y: int) -> bool:
        return all(abs(x - a) >= width or abs(y - b) >= height for a, b in taken)

    for x0, y0, x1, y1 in boxes:
        far_x, far_y = x1 - width + 1, y1 - height + 1
        corners = [(x0, y0), (far_x, y0), (x0, far_y), (far_x, far_y)]
        along = [(x, y) for y in range(y0, bottom + 1, height) for x in range(x0, right + 1, width)]
        places = [(min(max(x, 0), right), min(max(y, 0), bottom)) for x, y in (*corners, *along)]
        taken.append(next((place for place in places if is_free(*place)), places[0]))
    return taken
