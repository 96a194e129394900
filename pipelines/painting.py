"""A mask drawn on an image's pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from msrcnn.rle import decode_crop

HATCH, HATCHED = 8, 3
"""Of so many diagonals so many are filled where a mask is hatched."""


def paint(
    pixels: npt.NDArray[np.uint8], rle: bytes, colour: npt.ArrayLike, fill: int, stroke: int = 1, hatched: bool = False
) -> tuple[npt.NDArray[np.bool_], tuple[int, int, int, int]]:
    """Fills and outlines a mask, in place.

    Args:
        pixels: uint8 [H, W, 3].
        rle: COCO compressed counts.
        colour: red, green, blue.
        fill: how much of the colour covers the image inside, of 256; all of it on the outline.
        stroke: width of the outline in pixels, inside the mask.
        hatched: whether it is filled on diagonals only.

    Returns:
        The mask, bool [h, w], and its left, top, w, h in pixels.
    """
    crop, (left, top, w, h) = decode_crop(rle, len(pixels))
    mask = crop.astype(bool)  # [h, w]
    inner = np.pad(mask, stroke)
    for _ in range(stroke):
        inner = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    filled = mask
    if hatched:
        y, x = np.mgrid[:h, :w]
        filled = mask & ((x + y) % HATCH < HATCHED)
    region, tint = pixels[top : top + h, left : left + w], np.asarray(colour).astype(np.uint16)
    region[filled] = (region[filled].astype(np.uint16) * (256 - fill) + tint * fill) >> 8
    region[mask & ~inner] = tint
    return mask, (left, top, w, h)
