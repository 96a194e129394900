"""How else scores could have been fused: mask AP under many rankings of stored detections, without the network.

Paper, section 3.1: s_mask = s_cls * s_iou. A sweep asks for s_cls^a * s_iou^b, for score thresholds and for fewer
detections an image. Overlaps are computed once; see `rankings`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from msrcnn.errors import InputError
from msrcnn.metrics.mask_matching import ranks_within
from msrcnn.metrics.rankings import MaskColumns, MaskRankings
from msrcnn.rows import ImageDetections, ImageTruth


@dataclass(frozen=True)
class Fusion:
    """One way to rank: class score^a * predicted MaskIoU^b, a negative MaskIoU taken as 0.

    Where detections have a `worth`, it takes the MaskIoU's place.

    The score is rounded to float32 like the stored mask score, so that (1, 1) ties where that ties.

    Raises:
        InputError: a value is not accepted.
    """

    class_power: float = 1.0  # a
    maskiou_power: float = 1.0  # b; 0 ranks as Mask R-CNN does
    threshold: float = 0.0  # detections with a lower fused score are dropped
    top_k: int | None = None  # so many of an image are kept, over all categories: the highest fused scores; None: all

    def __post_init__(self) -> None:
        for name in ("class_power", "maskiou_power", "threshold"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"Fusion.{name} is {value}; accepted are finite numbers from 0 on")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"Fusion.top_k is {self.top_k}; accepted are numbers from 1 on and None")


@dataclass(frozen=True)
class FusedAP:
    """Mask AP under one `Fusion`, as fractions; nan where the ground truth has no instance."""

    fusion: Fusion
    ap: float
    ap50: float
    ap75: float


def fusion_grid(
    class_powers: Iterable[float],
    maskiou_powers: Iterable[float],
    thresholds: Iterable[float] = (0.0,),
    top_ks: Iterable[int | None] = (None,),
) -> tuple[Fusion, ...]:
    """Every combination."""
    return tuple(Fusion(*values) for values in product(class_powers, maskiou_powers, thresholds, top_ks))


class FusionSweep:
    """Takes images once, then answers for any number of settings; `MaskRankings` with fused scores.

    `evaluate` gives what hotcoco and pycocotools give for the same scores.
    """

    def __init__(self, categories: Sequence[tuple[int, str]]) -> None:
        """Takes the contiguous number and the name of every category."""
        self._rankings = MaskRankings(categories)

    def update(self, truths: Sequence[ImageTruth], detections: Sequence[ImageDetections]) -> None:
        """Adds images and computes their overlaps, as `MaskRankings.update` does.

        Raises:
            InputError: as that.
        """
        self._rankings.update(truths, detections)

    def evaluate(self, fusions: Iterable[Fusion]) -> tuple[FusedAP, ...]:
        """Mask AP of each setting; about 0.1 s for 1000 images of 100 detections on one core.

        Raises:
            InputError: no image was added.
        """
        columns = self._rankings.columns
        return tuple(self._fused(columns, fusion) for fusion in fusions)

    def _fused(self, columns: MaskColumns, fusion: Fusion) -> FusedAP:
        fused = columns.class_scores**fusion.class_power * columns.factors.clip(0) ** fusion.maskiou_power
        scores = fused.astype(np.float32).astype(np.float64)
        kept = scores >= float(np.float32(fusion.threshold))
        if fusion.top_k is not None:
            kept &= ranks_within(columns.image, scores, kept) < fusion.top_k
        found = self._rankings.rank(scores, kept).ap()
        return FusedAP(fusion, found.ap, found.ap50, found.ap75)
