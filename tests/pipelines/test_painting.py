"""A mask on pixels: what is filled, what is outlined, and what is left as it was."""

from __future__ import annotations

import numpy as np
import pytest

from msrcnn.rle import encode_crops
from pipelines.painting import HATCH, HATCHED, paint

COLOUR = (250, 10, 130)


@pytest.mark.parametrize("stroke", [1, 3])
@pytest.mark.parametrize("hatched", [False, True])
def test_inside_outline_and_outside(stroke, hatched):
    pixels = np.full((60, 80, 3), 100, np.uint8)
    (rle,) = encode_crops([np.ones((40, 48), bool)], [(20, 10)], 60, 80)
    mask, box = paint(pixels, rle, COLOUR, 128, stroke, hatched)
    assert (mask.shape, mask.all(), box) == ((40, 48), True, (20, 10, 48, 40))
    region = pixels[10:50, 20:68].copy()
    inner = region[stroke:-stroke, stroke:-stroke].reshape(-1, 3)
    tinted = (inner == (np.array(COLOUR) + 100) // 2).all(1)
    assert (tinted | (inner == 100).all(1)).all()
    assert tinted.mean() == pytest.approx(HATCHED / HATCH if hatched else 1, abs=0.01)
    region[stroke:-stroke, stroke:-stroke] = COLOUR
    assert (region == COLOUR).all()
    pixels[10:50, 20:68] = 100
    assert (pixels == 100).all()


def test_an_empty_mask_changes_nothing():
    pixels = np.full((6, 8, 3), 100, np.uint8)
    (rle,) = encode_crops([np.zeros((6, 8), bool)], [(0, 0)], 6, 8)
    mask, _ = paint(pixels, rle, COLOUR, 128)
    assert mask.size == 0
    assert (pixels == 100).all()
