"""The COCO API's own example: 100 images and fake results, whose official numbers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from msrcnn.rows import ImageDetections, ImageTruth


def corners(boxes: list[list[float]]) -> np.ndarray:
    """Boxes as COCO writes them (x, y, width, height) as corners, float32 [n, 4]."""
    xywh = np.array(boxes).reshape(-1, 4)
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]).astype(np.float32)


def counts(segmentation: Any, height: int, width: int) -> bytes:
    """A segmentation of any kind as compressed counts."""
    encoded = coco_mask.frPyObjects(segmentation, height, width)
    return (coco_mask.merge(encoded) if isinstance(encoded, list) else encoded)["counts"]


def truth_of(image: dict[str, Any], rows: list[dict[str, Any]], numbers: dict[int, int]) -> ImageTruth:
    """An image's annotations as they stand in the file, areas and boxes too."""
    height, width = image["height"], image["width"]
    return ImageTruth(
        image["id"], height, width, np.array([a["id"] for a in rows], np.int64),
        np.array([numbers[a["category_id"]] for a in rows], np.int32), corners([a["bbox"] for a in rows]),
        np.array([a["area"] for a in rows], np.float32), np.array([a["iscrowd"] for a in rows], bool),
        [counts(a["segmentation"], height, width) for a in rows],
    )  # fmt: skip


def found_of(truth: ImageTruth, rows: list[dict[str, Any]], numbers: dict[int, int]) -> ImageDetections:
    """An image's results; MaskIoU 1, and an empty mask where there are only boxes."""
    empty = coco_mask.encode(np.zeros((truth.height, truth.width), np.uint8, order="F"))["counts"]
    return ImageDetections(
        truth.image_id, np.array([numbers[r["category_id"]] for r in rows], np.int32),
        corners([r.get("bbox", [0, 0, 1, 1]) for r in rows]), np.array([r["score"] for r in rows], np.float32),
        np.ones(len(rows), np.float32),
        [r["segmentation"]["counts"].encode() if "segmentation" in r else empty for r in rows],
    )  # fmt: skip


def reference_scenes(
    data: Path, kind: str
) -> tuple[list[ImageTruth], dict[int, ImageDetections | None], list[tuple[int, str]]]:
    """Truths, results of a kind (segm or bbox) by image, and the categories' source ids and names."""
    truth = json.loads((data / "ap_reference" / "ground_truth.json").read_text())
    results = json.loads((data / "ap_reference" / f"results_{kind}.json").read_text())
    categories = [(c["id"], c["name"]) for c in truth["categories"]]
    numbers = {source: i for i, (source, _) in enumerate(categories, start=1)}
    truths = [truth_of(i, [a for a in truth["annotations"] if a["image_id"] == i["id"]], numbers)
              for i in truth["images"]]  # fmt: skip
    found = {t.image_id: found_of(t, [r for r in results if r["image_id"] == t.image_id], numbers) for t in truths}
    return truths, found, categories
