"""Mask AP of given scores by hotcoco and by pycocotools, and scenes that have what is hard about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from msrcnn.metrics.coco_rows import annotation_dicts, detection_dicts, image_dicts
from msrcnn.rows import ImageDetections, ImageTruth

Categories = Sequence[tuple[int, str]]
Rows = list[dict[str, Any]]


def scored_rows(
    truths: Sequence[ImageTruth],
    detections: Sequence[ImageDetections],
    scores: Sequence[np.ndarray],
    kept: Sequence[np.ndarray] | None = None,
) -> Rows:
    """Result rows with the scores of each image's detections [D], of those alone that are kept (indices)."""
    by_id, rows = {t.image_id: t for t in truths}, []
    for number, (found, of_image) in enumerate(zip(detections, scores, strict=True)):
        masks = detection_dicts(by_id[found.image_id], found)["class"]
        there = range(len(masks)) if kept is None else kept[number]
        rows += [masks[i] | {"score": float(of_image[i])} for i in there]
    return rows


def by_hotcoco(categories: Categories, truths: Sequence[ImageTruth], rows: Rows) -> list[float]:
    """AP, AP50 and AP75."""
    evaluator = hotcoco.StreamingEval([{"id": number, "name": name} for number, name in categories], "segm")
    evaluator.update(image_dicts(truths), [row for truth in truths for row in annotation_dicts(truth)], rows)
    final = evaluator.finalize()
    metrics = hotcoco.compare(final, final)["metrics_a"]
    return [metrics[name] for name in ("AP", "AP50", "AP75")]


def by_pycocotools(categories: Categories, truths: Sequence[ImageTruth], rows: Rows, most: int = 100) -> list[float]:
    """AP, AP50 and AP75 of the first `most` detections of an image and a category."""
    truth = COCO()
    truth.dataset = {
        "images": image_dicts(truths),
        "annotations": [row for t in truths for row in annotation_dicts(t)],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(rows), "segm")
    evaluation.params.maxDets = [most]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [10, 101, C], -1 where a category has no instance
    return [float(part[part > -1].mean()) for part in (precision, precision[0], precision[5])]


def crowded(make_scene: Callable[..., Any], seed: int) -> tuple[list[ImageTruth], list[ImageDetections]]:
    """Crowds, images without instances, without detections, without both, and two with over 100 detections."""
    rng = np.random.default_rng(seed)
    counts = [(6, 15), (0, 8), (5, 0), (0, 0), (9, 260), (3, 12), (30, 150), (1, 30), (4, 4)]
    ids = rng.permutation(100)[: len(counts)] + 1
    scenes = [make_scene(int(i), rng, *count, classes=2) for i, count in zip(ids, counts, strict=True)]
    assert any(s.truth.crowd.any() for s in scenes)
    return [s.truth for s in scenes], [s.detections for s in scenes]
