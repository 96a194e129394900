"""A mask as polygons along the edges of its pixels: for drawing, for COCO's polygons, for pages."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def outlines(mask: npt.ArrayLike) -> list[npt.NDArray[np.int32]]:
    """The exact outline of a binary mask: filled by the even-odd rule, the rings give its pixels again.

    Pixels that touch at a corner only belong to different rings (4-connected).

    Args:
        mask: [h, w], anything but 0 is foreground.

    Returns:
        Rings of corner points, int32 [P, 2] as x, y; pixel (y, x) has the corners (x, y) to (x + 1, y + 1). The first
        point is not repeated. Outer rings run clockwise as seen on a screen, holes the other way. In the order of
        their topmost, then leftmost, corner.
    """
    inside = np.pad(np.asarray(mask) != 0, 1)  # [h + 2, w + 2]
    x, y, across, down = _corners(inside)
    along = np.empty(len(x), np.int64)  # the corner at the other end of a corner's horizontal edge
    upright = np.empty(len(x), np.int64)  # and of its vertical one
    for partner, order in ((along, np.lexsort((across, x, y))), (upright, np.lexsort((down, y, x)))):
        partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    rings, seen = [], np.zeros(len(x), bool)
    for start in np.lexsort((across, x, y)).tolist():
        if seen[start]:
            continue
        ring, corner = [], start
        while not seen[corner]:
            other = int(along[corner])
            ring += [corner, other]
            seen[corner] = seen[other] = True
            corner = int(upright[other])
        points = np.stack([x[ring], y[ring]], 1).astype(np.int32)  # [P, 2]
        hole = not inside[y[start] + 1, x[start] + 1]  # the pixel below and right of the topmost, leftmost corner
        rings.append(points[::-1] if hole else points)
    return rings


def area_of(ring: npt.NDArray[np.integer]) -> float:
    """The area inside a ring [P, 2] in pixels, negative for a hole of `outlines`."""
    x, y = ring.astype(np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def _corners(inside: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], ...]:
    """Where outlines turn, x and y; and, where two outlines meet at a point, which of the two comes first.

    Of the 2 x 2 pixels around a corner, one or three are foreground, or two diagonal ones; then there are two corners
    at the point. `across` orders them along a row (0 ends an edge, 1 begins one), `down` along a column.
    """
    a, b, c, d = (p.astype(np.int8) for p in (inside[:-1, :-1], inside[:-1, 1:], inside[1:, :-1], inside[1:, 1:]))
    total = a + b + c + d
    single = np.argwhere((total == 1) | (total == 3))  # [n, 2] as y, x
    falling = np.argwhere((total == 2) & (a == d) & (a == 1))  # the pixels above left and below right
    rising = np.argwhere((total == 2) & (b == c) & (b == 1))  # those above right and below left
    zero, one = (np.full(len(falling), v) for v in (0, 1))
    none, some = (np.full(len(rising), v) for v in (0, 1))
    place = np.concatenate([single, falling, falling, rising, rising])
    across = np.concatenate([np.zeros(len(single), int), zero, one, none, some])
    down = np.concatenate([np.zeros(len(single), int), zero, one, some, none])
    return place[:, 1], place[:, 0], across, down
