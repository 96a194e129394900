"""Masks as SVG paths: their outlines in a window of the image, simplified to what can be seen."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from msrcnn.outlines import area_of, outlines
from msrcnn.rle import decode_crop

TOLERANCES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""How far a simplified outline may be from the mask's, in pixels of the picture; the next where it stays too long."""
COARSE = 4.0
"""From this tolerance on small parts are left out before the rest is drawn more coarsely."""
LEAST = 12
"""Characters that a ring takes at least."""


@dataclass(frozen=True)
class Window:
    """The part of an image that a picture shows: pixels x0 to x1 and y0 to y1, drawn `scale` times as large."""

    x0: int
    y0: int
    x1: int
    y1: int
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture, in its pixels."""
        return max(1, round((self.x1 - self.x0) * self.scale)), max(1, round((self.y1 - self.y0) * self.scale))


def outline(rle: bytes, height: int, window: Window, most: int) -> str:
    """The `d` of an SVG path, to be filled by the even-odd rule; empty where the mask is not in the window.

    A path that is too long is drawn more coarsely; where that does not do, its smallest parts are left out.

    Args:
        rle: COCO compressed counts.
        height: of the mask's image, in pixels.
        window: of the picture, whose pixels are the path's units.
        most: characters of the path.
    """
    crop, (left, top, _, _) = decode_crop(rle, height)
    dx, dy = left - window.x0, top - window.y0  # the crop's corner in the window
    inside = crop[max(0, -dy) : max(0, window.y1 - top), max(0, -dx) : max(0, window.x1 - left)]
    corner = np.array([max(0, dx), max(0, dy)])
    rings = sorted(outlines(inside), key=lambda ring: -abs(area_of(ring)))[: most // LEAST]
    lines = [(_middles(ring) + corner) * window.scale for ring in rings]
    for tolerance in TOLERANCES:
        loops = [_loop(line, tolerance) for line in lines]
        lengths = list(accumulate(map(len, loops)))
        fitting = bisect_right(lengths, most)
        if fitting == len(loops) or (tolerance >= COARSE and fitting):
            return "".join(loops[:fitting])
    return ""


def _middles(ring: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """The middles of the edges of single pixels along a ring [P, 2], the first one again at the end: a line that cuts
    corners, so that slopes are straight."""
    steps = np.roll(ring, -1, axis=0) - ring  # [P, 2]
    lengths = np.abs(steps).sum(axis=1)  # [P]
    side = np.repeat(np.arange(len(ring)), lengths)  # [E]
    along = np.arange(len(side)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5  # [E]
    middles = ring[side] + np.sign(steps)[side] * along[:, None]
    return np.concatenate([middles, middles[:1]])


def simplified(points: npt.NDArray[np.float64], tolerance: float) -> npt.NDArray[np.float64]:
    """The points [n, 2] of a line without those nearer than `tolerance` to it (Douglas and Peucker, 1973)."""
    kept = np.zeros(len(points), dtype=bool)
    kept[[0, -1]] = True
    stretches = [(0, len(points) - 1)]
    while stretches:
        first, last = stretches.pop()
        if last - first < 2:
            continue
        along, between = points[last] - points[first], points[first + 1 : last] - points[first]
        length = float(np.hypot(*along))
        if length:
            distance = np.abs(along[0] * between[:, 1] - along[1] * between[:, 0]) / length
        else:  # of a closed line
            distance = np.hypot(between[:, 0], between[:, 1])
        farthest = int(np.argmax(distance))
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            stretches += [(first, middle), (middle, last)]
    return points[kept]


def _loop(points: npt.NDArray[np.float64], tolerance: float) -> str:
    """A closed line as a subpath, in tenths of a pixel relative to the point before."""
    tenths = np.rint(simplified(points, tolerance)[:-1] * 10).astype(int)
    if len(tenths) < 3:
        return ""
    steps = np.diff(tenths, axis=0)
    x, y = tenths[0]
    return f"M{_tenth(x)} {_tenth(y)}l" + " ".join(f"{_tenth(dx)} {_tenth(dy)}" for dx, dy in steps) + "z"


def _tenth(value: int) -> str:
    whole, rest = divmod(abs(int(value)), 10)
    return f"{'-' if value < 0 else ''}{whole or ('' if rest else 0)}{f'.{rest}' if rest else ''}"
