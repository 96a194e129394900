"""One image's ground truth and one image's detections as plain numpy columns: what stored rows become in memory."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from msrcnn.errors import InputError


@dataclass(frozen=True)
class ImageTruth:
    """The annotated instances of one image (G of them, 0 included).

    Raises:
        InputError: the columns differ in length.
    """

    image_id: int
    height: int  # pixels of the original image
    width: int
    annotation_ids: npt.NDArray[np.int64]  # [G]
    categories: npt.NDArray[np.int32]  # [G], contiguous, 1..C
    boxes: npt.NDArray[np.float32]  # [G, 4], x0 y0 x1 y1 in pixels, as annotated
    areas: npt.NDArray[np.float32]  # [G], pixels, as annotated: decides small, medium, large
    crowd: npt.NDArray[np.bool_]  # [G]
    rles: list[bytes]  # G COCO compressed counts of the [height, width] mask

    @classmethod
    def unknown(cls, image_id: int, height: int, width: int) -> ImageTruth:
        """An image of which only the size is known."""
        return cls(
            image_id, height, width, np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32), np.zeros(0, bool), [],
        )  # fmt: skip

    def __post_init__(self) -> None:
        columns: dict[str, Sized] = {
            "categories": self.categories,
            "areas": self.areas,
            "crowd": self.crowd,
            "rles": self.rles,
        }
        _check_columns("truth", self.image_id, len(self.annotation_ids), self.boxes, columns)


@dataclass(frozen=True)
class ImageDetections:
    """The detections of one image (D of them, 0 included); the order decides between equal scores.

    Raises:
        InputError: the columns differ in length, or a score is not finite.
    """

    image_id: int
    categories: npt.NDArray[np.int32]  # [D], contiguous, 1..C
    boxes: npt.NDArray[np.float32]  # [D, 4], x0 y0 x1 y1 in pixels
    class_scores: npt.NDArray[np.float32]  # [D], after SoftNMS
    maskious: npt.NDArray[np.float32]  # [D], predicted MaskIoU of the predicted class, not clamped
    rles: list[bytes]  # D COCO compressed counts of the image's [height, width] mask
    head_maskious: npt.NDArray[np.float32] | None = None  # [D, V], those of further MaskIoU heads; None: there are none
    worths: npt.NDArray[np.float32] | None = None  # [D], what mask scores multiply class scores by; None: `maskious`

    def __post_init__(self) -> None:
        scores = {"class_scores": self.class_scores, "maskious": self.maskious}
        if self.head_maskious is not None:
            scores["head_maskious"] = self.head_maskious
        if self.worths is not None:
            scores["worths"] = self.worths
        columns: dict[str, Sized] = {**scores, "rles": self.rles}
        _check_columns("detections", self.image_id, len(self.categories), self.boxes, columns)
        for name, column in scores.items():
            finite = np.isfinite(column if column.ndim == 1 else column.sum(1))  # [D], the sum of [D, V]
            if not finite.all():
                raise InputError(
                    f"detections of image {self.image_id}: {name}[{int(np.argmin(finite))}] is not finite, "
                    "so it has no rank; did training diverge? Detect again with a sound checkpoint"
                )

    @property
    def factors(self) -> npt.NDArray[np.float32]:
        """What mask scores multiply class scores by, [D]."""
        return self.maskious if self.worths is None else self.worths

    @property
    def mask_scores(self) -> npt.NDArray[np.float32]:
        """What ranks masks, float32 [D] like the stored column; class score x predicted MaskIoU in the paper."""
        return self.class_scores * self.factors

    @property
    def heads(self) -> int:
        """V, the number of further MaskIoU heads."""
        return 0 if self.head_maskious is None else self.head_maskious.shape[1]

    def of_head(self, number: int) -> ImageDetections:
        """The detections as a detector with this further head alone gives them; heads count from 0."""
        assert self.head_maskious is not None
        return replace(self, maskious=self.head_maskious[:, number], worths=None, head_maskious=None)


def _check_columns(
    what: str, image_id: int, rows: int, boxes: npt.NDArray[np.float32], columns: dict[str, Sized]
) -> None:
    if boxes.shape != (rows, 4):
        raise InputError(f"{what} of image {image_id}: boxes have shape {boxes.shape}, expected ({rows}, 4)")
    for name, column in columns.items():
        if len(column) != rows:
            raise InputError(f"{what} of image {image_id}: {name} has {len(column)} entries, expected {rows}")
