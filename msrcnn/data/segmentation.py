"""A COCO segmentation, in any of its forms, checked and turned into compressed run-length codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from msrcnn.data.rejected import AnnotationError, Reason


def instance_rle(annotation: Mapping[str, Any], height: int, width: int) -> bytes:
    """The mask as COCO compressed counts, equal pixel for pixel to pycocotools' `COCO.annToMask`.

    Args:
        annotation: with `segmentation`: polygons (flat lists x, y, x, y, ...) or an RLE, compressed or not.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        counts without inner runs of length zero, so that boxes taken from them are tight.

    Raises:
        AnnotationError: the segmentation is absent or broken.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        polygons = _checked_polygons(segmentation, height, width)
        return mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))["counts"]
    if isinstance(segmentation, dict):
        uncompressed = {"size": [height, width], "counts": _checked_counts(segmentation, height, width)}
        return mask_utils.frPyObjects(uncompressed, height, width)["counts"]
    kind = "absent" if segmentation is None else f"a {type(segmentation).__name__}"
    raise AnnotationError(Reason.ANNOTATION_RECORD, f"segmentation is {kind}, expected polygons or an RLE")


def _checked_polygons(segmentation: list[Any], height: int, width: int) -> list[list[float]]:
    """The polygons as lists of floats.

    Points may lie up to one image size outside (the mask is clipped). Farther ones are refused: pycocotools
    walks along every edge and allocates in proportion to its length. Two points are refused because it would
    take four numbers for a box.
    """
    if not segmentation:
        raise AnnotationError(Reason.POLYGON, "it has no polygon")
    polygons = []
    for part, polygon in enumerate(segmentation):
        try:
            points = np.asarray(polygon)
        except ValueError:  # ragged nesting
            points = np.asarray(None)
        if points.ndim != 1 or points.size < 6 or points.size % 2 or points.dtype.kind not in "iuf":
            raise AnnotationError(Reason.POLYGON, f"part {part} is no flat list of 3 or more x, y pairs")
        points = points.astype(np.float64).reshape(-1, 2)  # [2n] -> [n, 2]
        if not np.isfinite(points).all():
            raise AnnotationError(Reason.POLYGON, f"part {part} has a NaN or infinite coordinate")
        size = np.array([width, height])
        if (points < -size).any() or (points > 2 * size).any():
            raise AnnotationError(
                Reason.POLYGON, f"part {part} leaves the {width}x{height} image by more than its size"
            )
        polygons.append(points.ravel().tolist())
    return polygons


def _checked_counts(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    """The run lengths of an RLE, in any of its forms, without inner runs of length zero.

    pycocotools does not notice runs that end before the image does (the rest of its mask is then whatever was
    in memory), so their sum is checked here.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise AnnotationError(Reason.RLE, f"its size is {size}, the image's is {[height, width]} (height, width)")
    if isinstance(counts, str):
        counts = _parse_compressed(counts)
    if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
        raise AnnotationError(Reason.RLE, "'counts' is neither a compressed text nor a list of run lengths")
    if sum(counts) != height * width:
        raise AnnotationError(Reason.RLE, f"its runs cover {sum(counts)} pixels, the image has {height * width}")
    runs = [counts[0]]
    joined = False
    for count in counts[1:]:
        if joined:  # the run before was empty: its two neighbours are one run
            runs[-1] += count
            joined = False
        elif count == 0:
            joined = True
        else:
            runs.append(count)
    return runs


def _parse_compressed(text: str) -> list[int]:
    """Run lengths from COCO's compressed counts (`rleFrString` of the COCO API).

    Base-32 digits, the low one first; from the fourth run on each is the difference to the run two before it.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise AnnotationError(Reason.RLE, f"'counts' has the character {character!r}, which no compressed RLE has")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:  # more digits follow
            continue
        if digit & 16:  # the sign bit of the last digit
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise AnnotationError(Reason.RLE, "'counts' ends inside a number")
    return counts
