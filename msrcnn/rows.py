"""One image's ground truth and one image's detections, as plain arrays: what stored rows become in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageTruth:
    """The annotated instances of one image; G of them."""

    image_id: int
    height: int  # pixels
    width: int  # pixels
    annotation_ids: np.ndarray  # int64 [G]
    categories: np.ndarray  # int32 [G], contiguous 1..C
    boxes: np.ndarray  # float32 [G, 4]: x0, y0, x1, y1 in pixels
    areas: np.ndarray  # float32 [G], pixels of the mask
    crowd: np.ndarray  # bool [G]
    rles: list[bytes]  # COCO compressed counts of the [height, width] masks


@dataclass(frozen=True)
class ImageDetections:
    """The detections of one image; D of them."""

    image_id: int
    categories: np.ndarray  # int32 [D], contiguous 1..C
    boxes: np.ndarray  # float32 [D, 4]: x0, y0, x1, y1 in pixels
    class_scores: np.ndarray  # float32 [D], after SoftNMS
    maskious: np.ndarray  # float32 [D], predicted MaskIoU, not clamped
    rles: list[bytes]  # COCO compressed counts of the [height, width] masks

    @property
    def mask_scores(self) -> np.ndarray:
        """Class score x predicted MaskIoU, float32 [D]: what masks are ranked by (the paper, section 3.1)."""
        return self.class_scores * self.maskious
