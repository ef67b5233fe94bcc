"""Charts as inline SVG for `storage.page`: sharp at any size, coloured by the page's own style.

Every mark has a title that browsers show under the pointer, with the exact value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from storage.page import Html, element, join, shorten

WIDTH, HEIGHT = 420, 240  # units of a chart's own coordinates
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40
ROW = 20  # height of a bar with a label
COLUMN = 6.2  # mean width of a character in the charts' font
CELL = 22
MANY_POINTS = 40  # of a curve: dots beyond it would hide the line
CURVES = ("var(--mark)", "var(--bad)", "var(--good)", "var(--pale)")


def histogram(
    edges: Sequence[float], counts: Sequence[float], x_label: str, y_label: str = "labels"
) -> Html:
    """Bars between `edges` (one more than `counts`)."""
    total = sum(counts) or 1
    plot = _Plot(edges[0], edges[-1], 0, max(max(counts, default=0), 1e-12))
    bars = []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        left, right, top = plot.x(low), plot.x(high), plot.y(count)
        bars.append(element(
            "rect", element("title", f"{number(low)} to {number(high)}: {number(count)} "
                                     f"({100 * count / total:.2f} %)"),
            x=_at(left), y=_at(top), width=_at(max(right - left - 0.8, 0.4)),
            height=_at(plot.y(0) - top), class_="bar",
        ))  # fmt: skip
    return plot.drawn(join(bars), x_label, y_label)


def lines(
    x: Sequence[float],
    curves: Sequence[tuple[str, Sequence[float]]],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
) -> Html:
    """One curve or several over the same x; values that aren't finite leave gaps."""
    finite = [v for _, values in curves for v in values if math.isfinite(v)]
    low, high = y_range or (min(finite, default=0.0), max(finite, default=1.0))
    plot = _Plot(min(x), max(x), low, high if high > low else low + 1)
    drawn, radius = [], 3 if len(x) <= MANY_POINTS else 1.5
    for number_, (name, values) in enumerate(curves):
        colour = CURVES[number_ % len(CURVES)]
        points = [
            (plot.x(a), plot.y(b)) if math.isfinite(b) else None
            for a, b in zip(x, values, strict=True)
        ]
        drawn.append(element("path", d=_path(points), class_="curve", stroke=colour))
        drawn += [
            element("circle", element("title", f"{name}: {number(b)} at {number(a)}"),
                    cx=_at(point[0]), cy=_at(point[1]), r=radius, fill=colour)
            for a, b, point in zip(x, values, points, strict=True)
            if point is not None
        ]  # fmt: skip
        if len(curves) > 1:
            drawn.append(element("text", shorten(name, 24), x=LEFT + 8 + 150 * (number_ % 2),
                                 y=TOP + 12 + 14 * (number_ // 2),
                                 style=f"fill: {colour}"))  # fmt: skip
    return plot.drawn(join(drawn), x_label, y_label)


def bars(
    rows: Sequence[tuple[str, float]], limit: float | None = None, percent: bool = False
) -> Html:
    """Named values as horizontal bars, one a row, against `limit` (the largest by default)."""
    label, end = 170, 56
    limit = limit or max((value for _, value in rows), default=1.0) or 1.0
    room = WIDTH - label - end
    drawn = []
    for place, (name, value) in enumerate(rows):
        y, length = place * ROW, room * min(max(value / limit, 0), 1)
        shown = f"{100 * value:.1f} %" if percent else number(value)
        drawn += [
            element("text", element("title", name), shorten(name, int(label / COLUMN) - 1),
                    x=label - 6, y=y + 14, text_anchor="end"),
            element("rect", element("title", f"{name}: {shown}"), x=label, y=y + 3,
                    width=_at(length), height=ROW - 6, class_="bar"),
            element("text", shown, x=_at(label + length + 5), y=y + 14, class_="tick"),
        ]  # fmt: skip
    return _svg(WIDTH, max(len(rows), 1) * ROW, join(drawn))


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]
) -> Html:
    """Shares 0 to 1 as cells, dark where high; rows and columns are named."""
    label = 150
    width, height = label + CELL * len(columns) + 8, label + CELL * len(rows) + 4
    drawn = [
        element("text", element("title", name), shorten(name, 22),
                x=label - 6, y=label + CELL * i + 15, text_anchor="end")
        for i, name in enumerate(rows)
    ]  # fmt: skip
    for j, name in enumerate(columns):
        x = label + CELL * j + 14
        drawn.append(element("text", element("title", name), shorten(name, 22), x=x, y=label - 6,
                             transform=f"rotate(-90 {x} {label - 6})"))  # fmt: skip
    for i, row in enumerate(values):
        drawn += [
            element("rect", element("title", f"{rows[i]} → {columns[j]}: {100 * share:.2f} %"),
                    x=label + CELL * j, y=label + CELL * i, width=CELL - 1, height=CELL - 1,
                    fill="var(--mark)", fill_opacity=f"{0.06 + 0.94 * math.sqrt(share):.3f}")
            for j, share in enumerate(row)
        ]  # fmt: skip
    return _svg(width, height, join(drawn), style=f"max-width: {round(1.6 * width)}px")


def number(value: float) -> str:
    """Short but exact enough to read off: thousands apart, four digits of a fraction."""
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten, at most `most`."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * m for m in (1, 2, 5, 10, 20) if (high - low) / (power * m) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


class _Plot:
    """A frame with axes, from values to coordinates."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self._x, self._y = (x_low, x_high), (y_low, y_high)

    def x(self, value: float) -> float:
        low, high = self._x
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1)

    def y(self, value: float) -> float:
        low, high = self._y
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / ((high - low) or 1)

    def drawn(self, marks: Html, x_label: str, y_label: str) -> Html:
        """The chart: grid, marks, tick labels, names of the axes."""
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = []
        for value in ticks(*self._y, most=5):
            y = self.y(value)
            parts += [
                element("line", x1=LEFT, x2=right, y1=_at(y), y2=_at(y), class_="axis"),
                element("text", _tick(value), x=LEFT - 5, y=_at(y + 4), text_anchor="end",
                        class_="tick"),
            ]  # fmt: skip
        parts.append(marks)
        for value in ticks(*self._x):
            parts.append(element("text", _tick(value), x=_at(self.x(value)), y=bottom + 14,
                                 text_anchor="middle", class_="tick"))  # fmt: skip
        parts += [
            element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"),
            element("text", x_label, x=(LEFT + right) / 2, y=HEIGHT - 6, text_anchor="middle"),
            element("text", y_label, x=12, y=(TOP + bottom) / 2, text_anchor="middle",
                    transform=f"rotate(-90 12 {(TOP + bottom) / 2})"),
        ]  # fmt: skip
        return _svg(WIDTH, HEIGHT, join(parts))


def _svg(width: float, height: float, content: Html, style: str | None = None) -> Html:
    return element("svg", content, viewBox=f"0 0 {_at(width)} {_at(height)}", role="img",
                   style=style)  # fmt: skip


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    steps, pen = [], "M"
    for point in points:
        if point is not None:
            steps.append(f"{pen}{_at(point[0])} {_at(point[1])}")
        pen = "M" if point is None else "L"
    return " ".join(steps)


def _at(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _tick(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
