"""The true MaskIoU of detections, the oracle score (Table 7), and the terms in which scores are compared with it."""

from __future__ import annotations

from dataclasses import dataclass

import hotcoco.mask
import numpy as np
import numpy.typing as npt

from msrcnn.errors import InputError
from msrcnn.metrics.coco_masks import mask_dicts
from msrcnn.rows import ImageDetections, ImageTruth

Floats = npt.NDArray[np.floating]

MATCHED_IOU = 0.5
"""A detection counts as matched from this true MaskIoU on."""

BIN_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Fig. 2's bins of true MaskIoU; a bin holds its lower edge, the last one its upper edge too."""


def true_maskiou(truth: ImageTruth, detections: ImageDetections) -> npt.NDArray[np.float64]:
    """The MaskIoU that a perfect MaskIoU head would have predicted.

    It is the highest mask IoU at image resolution with a non-crowd instance of the detection's class, 0 if
    there is none; several detections may share an instance. The paper leaves this open; one definition
    serves Fig. 2, Fig. 5 and Table 7.

    Returns:
        float64 [D], between 0 and 1.

    Raises:
        InputError: the two are of different images, or a mask does not fit into the image.
    """
    return overlaps(truth, detections).true


@dataclass(frozen=True)
class Overlaps:
    """How detections and non-crowd instances of the same category overlap in an image."""

    true: npt.NDArray[np.float64]  # [D], see `true_maskiou`
    instance: npt.NDArray[np.int64]  # [D], the instance of that IoU; -1 where no instance has the detection's category
    covered: npt.NDArray[np.float64]  # [G], each instance's highest IoU with a detection; 0 without one; nan for crowds


def overlaps(truth: ImageTruth, detections: ImageDetections) -> Overlaps:
    """What `true_maskiou` is made of, from both sides.

    Raises:
        InputError: as `true_maskiou`.
    """
    if truth.image_id != detections.image_id:
        raise InputError(
            f"truth of image {truth.image_id} came with detections of image {detections.image_id}; "
            "pair them by image id"
        )
    true, instance = np.zeros(len(detections.rles)), np.full(len(detections.rles), -1, dtype=np.int64)  # [D]
    covered = np.where(truth.crowd, np.nan, 0.0)  # [G]
    shape = (truth.height, truth.width)
    detected = mask_dicts(truth.image_id, *shape, detections.rles)
    annotated = mask_dicts(truth.image_id, *shape, truth.rles)
    for category in np.unique(detections.categories):
        instances = np.flatnonzero((truth.categories == category) & ~truth.crowd)  # [g]
        if len(instances) == 0:
            continue
        found = np.flatnonzero(detections.categories == category)  # [d]
        # hotcoco's IoU, not pycocotools': the same bits, but on cut-off counts pycocotools never returns.
        ious = hotcoco.mask.iou(
            [detected[i] for i in found], [annotated[i] for i in instances], [False] * len(instances)
        )  # [d, g]
        true[found], instance[found] = ious.max(axis=1), instances[ious.argmax(axis=1)]
        covered[instances] = ious.max(axis=0)
    return Overlaps(true, instance, covered)


def oracle_scores(class_scores: Floats, factors: Floats, true: Floats) -> npt.NDArray[np.float64]:
    """Table 7's score: the true MaskIoU in place of the predicted one, where there is a true one.

    A detection with true MaskIoU 0 keeps its prediction, so a false positive can still outrank a true one:
    the oracle is no upper bound in theory.

    Args:
        class_scores: [D] class scores.
        factors: [D] predicted MaskIoU, or what stands for it in mask scores.
        true: [D] from `true_maskiou`.

    Returns:
        float64 [D].
    """
    quality = np.where(true > 0, true, factors).astype(np.float64)
    return np.asarray(class_scores, dtype=np.float64) * quality


@dataclass(frozen=True)
class Agreement:
    """How scores agree with the true MaskIoU over one set of detections; see `quality.MaskIoUQuality`.

    A coefficient is nan for fewer than two detections or where either side does not vary; the error is nan
    for no detection.
    """

    count: int
    maskiou_pearson: float  # predicted MaskIoU with the true one: Fig. 5's correlation coefficient
    maskiou_spearman: float
    class_pearson: float  # class score with the true MaskIoU
    class_spearman: float
    mask_score_pearson: float  # mask score with the true MaskIoU
    mean_absolute_error: float  # of the predicted MaskIoU


@dataclass(frozen=True)
class MaskIoUStats:
    """`Agreement` over all detections, and over the matched ones (true MaskIoU >= 0.5)."""

    all_detections: Agreement
    matched: Agreement


@dataclass(frozen=True)
class ScoreBin:
    """Two bars of Fig. 2: mean scores of the detections with true MaskIoU between `low` and `high`.

    As in the paper, only detections with both true MaskIoU and class score above 0.5 take part.
    """

    low: float
    high: float
    count: int
    class_score: float  # mean; nan in an empty bin
    mask_score: float  # mean; nan in an empty bin
