"""Images, annotations and detections in the form that the COCO libraries read, checked as these would not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from msrcnn.errors import InputError
from msrcnn.metrics.coco_masks import mask_dicts
from msrcnn.metrics.maskiou import oracle_scores, true_maskiou
from msrcnn.rows import ImageDetections, ImageTruth


def pair_images(
    truths: Sequence[ImageTruth],
    detections: Sequence[ImageDetections],
    numbers: npt.NDArray[np.int64],
    seen: Set[int] = frozenset(),
) -> list[tuple[ImageTruth, ImageDetections]]:
    """The images with detections; refuses what hotcoco would take in silence or partly.

    Args:
        truths: every image, those without instances too.
        detections: of these images in any order; an image without any may be absent.
        numbers: [C] the categories that there are.
        seen: ids of images that came before.

    Raises:
        InputError: an image comes twice, detections have no truth, or a category is unknown.
    """
    ids, found_ids = [truth.image_id for truth in truths], [found.image_id for found in detections]
    for listed in (ids, found_ids):
        twice = {image_id for image_id, count in Counter(listed).items() if count > 1}
        refuse_repeated(twice | {image_id for image_id in listed if image_id in seen})
    by_id = dict(zip(ids, truths, strict=True))
    for found in detections:
        if found.image_id not in by_id:
            raise InputError(
                f"detections of image {found.image_id} have no ground truth; evaluate against the data "
                "set that they were made from"
            )
    rows: list[ImageTruth | ImageDetections] = [*truths, *detections]
    for row in rows:
        unknown = ~np.isin(row.categories, numbers)
        if unknown.any():
            raise InputError(
                f"image {row.image_id}: category {row.categories[unknown][0]} is not one of the data "
                f"set's {len(numbers)}; use a model that was trained for this data set"
            )
    return [(by_id[found.image_id], found) for found in detections]


def refuse_repeated(image_ids: set[int]) -> None:
    """Raises InputError if there is any."""
    if image_ids:
        raise InputError(
            f"image {min(image_ids)} was scored twice ({len(image_ids)} such images); give every image "
            "once, in one partition"
        )


def image_dicts(truths: Sequence[ImageTruth]) -> list[dict[str, Any]]:
    """The images."""
    return [{"id": truth.image_id, "height": truth.height, "width": truth.width} for truth in truths]


def annotation_dicts(truth: ImageTruth) -> list[dict[str, Any]]:
    """The annotations of an image."""
    masks = mask_dicts(truth.image_id, truth.height, truth.width, truth.rles)
    boxes = _xywh(truth.boxes)
    return [
        {
            "id": int(truth.annotation_ids[i]),
            "image_id": truth.image_id,
            "category_id": int(truth.categories[i]),
            "bbox": boxes[i],
            "area": float(truth.areas[i]),
            "iscrowd": int(truth.crowd[i]),
            "segmentation": masks[i],
        }
        for i in range(len(masks))
    ]


def detection_dicts(
    truth: ImageTruth, found: ImageDetections, true: npt.NDArray[np.float64] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Result rows of an image per ranking: box, class, mask, oracle.

    A mask's row has no `bbox`, or its area would become the box's.

    Args:
        truth: the image's ground truth.
        found: the image's detections, D of them.
        true: [D] from `true_maskiou`; computed where it is not given.

    Raises:
        InputError: a mask does not fit the image, or `true` is not of these detections.
    """
    if true is None:
        true = true_maskiou(truth, found)
    elif len(true) != len(found.rles):
        raise InputError(f"image {truth.image_id}: {len(true)} true MaskIoUs for {len(found.rles)} detections")
    scores = {
        "class": found.class_scores.tolist(),
        "mask": found.mask_scores.tolist(),
        "oracle": oracle_scores(found.class_scores, found.factors, true).tolist(),
    }
    masks = mask_dicts(truth.image_id, truth.height, truth.width, found.rles)
    common = [{"image_id": truth.image_id, "category_id": int(number)} for number in found.categories]
    rows: dict[str, list[dict[str, Any]]] = {
        ranking: [a | {"segmentation": mask, "score": s} for a, mask, s in zip(common, masks, values, strict=True)]
        for ranking, values in scores.items()
    }
    boxes = zip(common, _xywh(found.boxes), scores["class"], strict=True)
    rows["box"] = [a | {"bbox": box, "score": s} for a, box, s in boxes]
    return rows


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    exact = boxes.astype(np.float64)  # [n, 4] x0 y0 x1 y1
    return np.concatenate([exact[:, :2], exact[:, 2:] - exact[:, :2]], axis=1).tolist()  # [n, 4] x y w h
