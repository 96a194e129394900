"""How well scores tell the quality of masks: true MaskIoU, oracle (Table 7), Fig. 2 and Fig. 5."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

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
    if truth.image_id != detections.image_id:
        raise InputError(
            f"truth of image {truth.image_id} came with detections of image {detections.image_id}; "
            "pair them by image id"
        )
    best = np.zeros(len(detections.rles))  # [D]
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
        best[found] = ious.max(axis=1)
    return best


def oracle_scores(class_scores: Floats, maskious: Floats, true: Floats) -> npt.NDArray[np.float64]:
    """Table 7's score: the true MaskIoU in place of the predicted one, where there is a true one.

    A detection with true MaskIoU 0 keeps its prediction, so a false positive can still outrank a true one:
    the oracle is no upper bound in theory.

    Args:
        class_scores: [D] class scores.
        maskious: [D] predicted MaskIoU.
        true: [D] from `true_maskiou`.

    Returns:
        float64 [D].
    """
    quality = np.where(true > 0, true, maskious).astype(np.float64)
    return np.asarray(class_scores, dtype=np.float64) * quality


@dataclass(frozen=True)
class Agreement:
    """How scores agree with the true MaskIoU over one set of detections.

    A coefficient is nan for fewer than two detections or where either side does not vary; the error is nan
    for no detection.
    """

    count: int
    maskiou_pearson: float  # predicted MaskIoU with the true one: Fig. 5's correlation coefficient
    maskiou_spearman: float
    class_pearson: float  # class score with the true MaskIoU
    class_spearman: float
    mask_score_pearson: float  # class score x predicted MaskIoU with the true MaskIoU
    mean_absolute_error: float  # of the predicted MaskIoU


@dataclass(frozen=True)
class MaskIoUStats:
    """`Agreement` over all detections, and over the matched ones (true MaskIoU >= 0.5)."""

    all_detections: Agreement
    matched: Agreement


def maskiou_stats(predicted: Floats, class_scores: Floats, true: Floats) -> MaskIoUStats:
    """Correlations of a whole evaluation; exact, from columns concatenated over the images.

    Args:
        predicted: [N] predicted MaskIoU.
        class_scores: [N] class scores.
        true: [N] from `true_maskiou`.
    """
    predicted, class_scores, true = (np.asarray(x, dtype=np.float64) for x in (predicted, class_scores, true))
    matched = true >= MATCHED_IOU
    return MaskIoUStats(
        all_detections=_agreement(predicted, class_scores, true),
        matched=_agreement(predicted[matched], class_scores[matched], true[matched]),
    )


@dataclass(frozen=True)
class ScoreBin:
    """Two bars of Fig. 2: mean scores of the detections with true MaskIoU between `low` and `high`."""

    low: float
    high: float
    count: int
    class_score: float  # mean; nan in an empty bin
    mask_score: float  # mean; nan in an empty bin


def score_bins(predicted: Floats, class_scores: Floats, true: Floats) -> tuple[ScoreBin, ...]:
    """Mean class score and mean mask score per bin of true MaskIoU (Fig. 2).

    As in the paper, only detections with both true MaskIoU and class score above 0.5 take part.

    Args:
        predicted: [N] predicted MaskIoU.
        class_scores: [N] class scores.
        true: [N] from `true_maskiou`.
    """
    predicted, class_scores, true = (np.asarray(x, dtype=np.float64) for x in (predicted, class_scores, true))
    kept = (true > BIN_EDGES[0]) & (class_scores > 0.5)
    predicted, class_scores, true = predicted[kept], class_scores[kept], true[kept]
    index = np.searchsorted(BIN_EDGES[1:-1], true, side="right")  # [n], the bin of each detection
    bins = []
    for i, (low, high) in enumerate(pairwise(BIN_EDGES)):
        inside = index == i
        scores = class_scores[inside]
        means = (scores.mean(), (scores * predicted[inside]).mean()) if inside.any() else (np.nan, np.nan)
        bins.append(ScoreBin(low, high, int(inside.sum()), float(means[0]), float(means[1])))
    return tuple(bins)


def _agreement(predicted: Floats, class_scores: Floats, true: Floats) -> Agreement:
    ranks = _average_ranks(true)
    return Agreement(
        count=len(true),
        maskiou_pearson=_pearson(predicted, true),
        maskiou_spearman=_pearson(_average_ranks(predicted), ranks),
        class_pearson=_pearson(class_scores, true),
        class_spearman=_pearson(_average_ranks(class_scores), ranks),
        mask_score_pearson=_pearson(class_scores * predicted, true),
        mean_absolute_error=float(np.abs(predicted - true).mean()) if len(true) else float("nan"),
    )


def _pearson(x: Floats, y: Floats) -> float:
    # The range decides, not the variance: rounding of the mean gives a constant column a tiny variance.
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    r = x @ y / np.sqrt((x @ x) * (y @ y))
    return float(np.clip(r, -1.0, 1.0))


def _average_ranks(values: Floats) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # the highest rank of each distinct value
    return (last - (counts - 1) / 2)[inverse]
