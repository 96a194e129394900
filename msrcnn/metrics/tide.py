"""What average precision is lost to: the error kinds of TIDE (Bolya et al., ECCV 2020) on a sample of images."""

from __future__ import annotations

from collections.abc import Sequence

import hotcoco
import numpy as np

from msrcnn.errors import InputError
from msrcnn.metrics.coco_rows import annotation_dicts, detection_dicts, image_dicts, pair_images
from msrcnn.rows import ImageDetections, ImageTruth

ERRORS = {
    "Cls": "wrong class",
    "Loc": "poor mask",
    "Both": "wrong class, poor mask",
    "Dupe": "duplicate",
    "Bkg": "nothing there",
    "Miss": "missed instance",
    "FP": "any false positive",
    "FN": "any missed instance",
}
"""TIDE's six main kinds, then its two special ones, which contain them.

A mask is good from IoU 0.5 on; below 0.1 nothing is there. `Miss` are instances that no error of another kind
accounts for, `FN` all that were not found.
"""

RANKINGS = ("class", "mask", "oracle", "box")


def tide_errors(
    categories: Sequence[tuple[int, str]],
    truths: Sequence[ImageTruth],
    detections: Sequence[ImageDetections],
    ranking: str,
) -> dict[str, float]:
    """How much higher AP50 would be without one kind of error.

    Holds all masks at once (`CocoAP`'s mergeable states keep no overlaps), so give it a sample of the images and say
    which: the same ones for rankings that are compared.

    Args:
        categories: contiguous number and name of every category.
        truths: the images, at least one.
        detections: of these images in any order; an image without any may be absent.
        ranking: masks by class, mask or oracle score, or boxes by class score; one of `RANKINGS`.

    Returns:
        The gain in AP50, a fraction, of each of `ERRORS`. The gains do not add up: errors hide one another.

    Raises:
        InputError: as `CocoAP.update`, or there is no image, or the ranking is unknown.
    """
    if ranking not in RANKINGS:
        raise InputError(f"ranking {ranking!r}: accepted are {', '.join(RANKINGS)}")
    if not truths:
        raise InputError("nothing to analyse: the sample has no image; sample at least one")
    numbers = np.array([number for number, _ in categories], dtype=np.int64)
    paired = pair_images(truths, detections, numbers)
    annotated = {
        "images": image_dicts(truths),
        "annotations": [row for truth in truths for row in annotation_dicts(truth)],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    truth = hotcoco.COCO(annotated)
    found = truth.load_res([row for pair in paired for row in detection_dicts(*pair)[ranking]])
    evaluator = hotcoco.COCOeval(truth, found, "bbox" if ranking == "box" else "segm")
    evaluator.evaluate()
    lost = evaluator.tide_errors(pos_thr=0.5, bg_thr=0.1)["delta_ap"]
    return {kind: float(lost[kind]) for kind in ERRORS}
