"""Masks in the form that the COCO libraries read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hotcoco.mask

from msrcnn.errors import InputError


def mask_dicts(image_id: int, height: int, width: int, rles: Sequence[bytes]) -> list[dict[str, Any]]:
    """Masks in the form that the COCO libraries read.

    Raises:
        InputError: a mask is no run-length encoding, or has more pixels than the image.
    """
    masks = [{"size": [height, width], "counts": rle} for rle in rles]
    try:
        hotcoco.mask.area(masks)  # reads every run, so that later calls cannot fail half-way
    except ValueError as error:
        raise InputError(
            f"image {image_id}: a mask does not fit {height}x{width} pixels ({error}); were the masks "
            "made from this image at this size?"
        ) from error
    return masks
