"""Outlines of masks: exact, oriented, and what COCO makes of them."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from msrcnn.outlines import area_of, outlines


def filled(rings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Even-odd filling, by counting for each pixel the vertical edges left of it."""
    crossings = np.zeros((height, width + 1), int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
            assert (x0 == x1) != (y0 == y1)  # along the pixels' edges, and never of no length
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0] += 1
    return crossings.cumsum(1)[:, :width] % 2 == 1


def parts(mask: np.ndarray) -> int:
    """How many 4-connected pieces a mask has."""
    left, count = mask.copy(), 0
    while left.any():
        count += 1
        stack = [tuple(np.argwhere(left)[0])]
        while stack:
            y, x = stack.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and left[y, x]:
                left[y, x] = False
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return count


@pytest.mark.parametrize("seed", range(60))
def test_rings_filled_give_the_mask_again(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2)
    mask = rng.random((height, width)) < rng.choice([0.1, 0.5, 0.6, 0.9])
    rings = outlines(mask)
    assert np.array_equal(filled(rings, height, width), mask)
    assert sum(map(area_of, rings)) == mask.sum()
    assert sum(area_of(ring) > 0 for ring in rings) == parts(mask)  # one outer ring a piece


def test_a_ring_around_a_hole():
    mask = np.ones((3, 4), np.uint8)
    mask[1, 1:3] = 0
    outer, hole = outlines(mask)
    assert outer.tolist() == [[0, 0], [4, 0], [4, 3], [0, 3]]
    assert (area_of(outer), area_of(hole)) == (12, -2)
    assert sorted(hole.tolist()) == [[1, 1], [1, 2], [3, 1], [3, 2]]


def test_an_empty_mask_has_no_outline():
    assert outlines(np.zeros((5, 4))) == []


def test_pixels_that_touch_at_a_corner_are_apart():
    assert [area_of(ring) for ring in outlines(np.eye(3))] == [1, 1, 1]
    assert [area_of(ring) for ring in outlines(np.eye(3)[::-1])] == [1, 1, 1]


def test_coco_reads_outer_rings_as_the_mask():
    y, x = np.mgrid[:40, :50]
    mask = (((x - 22) / 15) ** 2 + ((y - 18) / 11) ** 2 < 1).astype(np.uint8)
    (ring,) = outlines(mask)
    decoded = coco_mask.decode(coco_mask.frPyObjects([ring.flatten().tolist()], 40, 50))[:, :, 0]
    assert np.array_equal(decoded, mask)
