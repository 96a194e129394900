"""Detections as rows, the form in which they leave the method: stored by the pipeline, answered by a served model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from msrcnn.errors import InputError
from msrcnn.masks import paste_and_encode
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch, Detections


def detection_rows(
    batch: Batch, found: Detections, images: Sequence[ImageTruth], min_score: float | None = None
) -> list[list[dict[str, Any]]]:
    """Each image's detections as rows: boxes in image pixels, masks pasted and encoded at image resolution.

    An image without a detection has one row, without a category.

    Args:
        batch, found, images: what the detector was given, what it found, and the images' ids and sizes.
        min_score: the least mask score of a detection, masks below it are not pasted; absent, all are kept.

    Raises:
        InputError: a box or score is not finite.
    """
    found = found.to("cpu")
    scores = found.mask_scores
    rows: list[list[dict[str, Any]]] = []
    for b, truth in enumerate(images):
        _check_finite(found, b, truth.image_id)
        common = {"image_id": truth.image_id, "height": truth.height, "width": truth.width}
        valid = found.valid[b] if min_score is None else found.valid[b] & (scores[b] >= float(min_score))  # [D]
        boxes = found.boxes[b, valid] / batch.scales[b].flip(0).repeat(2)  # [n, 4]: divided by x, y, x, y scale
        limit = torch.tensor([truth.width, truth.height] * 2)
        boxes = torch.minimum(boxes, limit)
        rles = paste_and_encode(found.masks[b, valid], boxes, truth.height, truth.width)
        columns = zip(
            found.labels[b, valid].tolist(), boxes.tolist(), found.class_scores[b, valid].tolist(),
            found.maskious[b, valid].tolist(), found.worths[b, valid].tolist(), found.head_maskious[b, valid].tolist(),
            scores[b, valid].tolist(), rles, strict=True,
        )  # fmt: skip
        names = ("category", "bbox", "class_score", "maskiou", "worth", "maskious", "mask_score", "rle")
        rows.append([common | dict(zip(names, values, strict=True)) for values in columns] or [common])
    return rows


def _check_finite(found: Detections, b: int, image_id: int) -> None:
    columns = {"boxes": found.boxes, "class_scores": found.class_scores, "maskious": found.maskious,
               "worths": found.worths, "head_maskious": found.head_maskious}  # fmt: skip
    for name, column in columns.items():
        if not column[b, found.valid[b]].isfinite().all():
            raise InputError(f"image {image_id}: the model gives {name} that are not finite; did training diverge? "
                             "Give a sound one")  # fmt: skip
