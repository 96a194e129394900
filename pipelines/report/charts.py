"""Charts as inline SVG. Colours are CSS classes of the page, so that one chart does for light and dark.

Units are those of the view box, which is as wide as a chart is on a large screen in CSS pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 40.0
Point = tuple[float, float]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number on an axis."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}"


class Chart:
    """A chart with two linear axes.

    Args:
        x: range of the horizontal axis.
        y: likewise.
        size: width and height.
        left: room for the labels on the left.
    """

    def __init__(self, x: Point, y: Point, size: tuple[int, int] = (440, 300), left: float = LEFT) -> None:
        self.x, self.y = (_opened(*x), _opened(*y))
        self.width, self.height = size
        self.left, self.right, self.top, self.bottom = left, size[0] - RIGHT, TOP, size[1] - BOTTOM
        self._parts: list[str] = []

    def at(self, x: float, y: float) -> Point:
        """Where a point is drawn; one beyond an axis' end lies at the edge."""
        fx = min(1.0, max(0.0, (x - self.x[0]) / (self.x[1] - self.x[0])))
        fy = min(1.0, max(0.0, (y - self.y[0]) / (self.y[1] - self.y[0])))
        return self.left + fx * (self.right - self.left), self.bottom - fy * (self.bottom - self.top)

    def axes(self, x_label: str, y_label: str, x_ticks: Sequence[float] | None = None, grid_x: bool = True) -> None:
        """Grid, numbers and names of the axes."""
        for value in ticks(*self.x) if x_ticks is None else x_ticks:
            px, _ = self.at(value, self.y[0])
            if grid_x:
                self._add(f'<path class="grid" d="M{px:.1f} {self.top:.1f}V{self.bottom:.1f}"/>')
            self.text(px, self.bottom + 15, short(value), "middle")
        for value in ticks(*self.y):
            _, py = self.at(self.x[0], value)
            self._add(f'<path class="grid" d="M{self.left:.1f} {py:.1f}H{self.right:.1f}"/>')
            self.text(self.left - 6, py + 4, short(value), "end")
        self._add(f'<path class="axis" d="M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}"/>')
        self.text((self.left + self.right) / 2, self.height - 6, x_label, "middle", "label")
        if y_label:
            y = (self.top + self.bottom) / 2
            self._add(f'<text class="label" text-anchor="middle" transform="translate(12 {y:.1f}) rotate(-90)">'
                      f"{escape(y_label)}</text>")  # fmt: skip

    def text(self, x: float, y: float, text: str, anchor: str = "start", css: str = "tick") -> None:
        """Words at a place in the view box."""
        self._add(f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Iterable[Point], css: str, marks: bool = False) -> None:
        """Points joined; what is not finite leaves a gap."""
        pieces: list[list[Point]] = [[]]
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                pieces[-1].append(self.at(x, y))
            elif pieces[-1]:
                pieces.append([])
        for piece in filter(None, pieces):
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in piece)
            self._add(f'<path class="line {css}" d="M{path}"/>')
            if marks or len(piece) == 1:
                self._parts += [f'<circle class="mark {css}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in piece]

    def bar(self, x: Point, y: Point, css: str) -> None:
        """A rectangle between two values on each axis."""
        (x0, y0), (x1, y1) = self.at(x[0], y[0]), self.at(x[1], y[1])
        left, top, width, height = min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)
        self._add(f'<rect class="bar {css}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>')

    def cells(self, cells: Iterable[tuple[int, int]], side: float, opacity: float) -> None:
        """Squares of `side` on both axes, by column and row, all equally dark."""
        (x0, y0), (x1, y1) = self.at(self.x[0], self.y[0]), self.at(self.x[0] + side, self.y[0] + side)
        width, height = x1 - x0, y0 - y1
        path = "".join(f"M{x0 + column * width:.1f} {y0 - row * height:.1f}h{width:.1f}v{-height:.1f}h{-width:.1f}z"
                       for column, row in cells)  # fmt: skip
        if path:
            self._add(f'<path class="heat" fill-opacity="{opacity:.2f}" d="{path}"/>')

    def svg(self, name: str) -> str:
        """The chart.

        Args:
            name: what it is, for those who do not see it.
        """
        return (f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(name)}">'
                f"{''.join(self._parts)}</svg>")  # fmt: skip

    def _add(self, part: str) -> None:
        self._parts.append(part)


def _opened(low: float, high: float) -> Point:
    return (low, high) if high > low else (low, low + 1.0)
