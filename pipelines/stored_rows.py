"""Stored rows as the method's own columns: the truth in shards, the detections in parts. Imports no torch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from msrcnn.errors import InputError
from msrcnn.rows import ImageDetections, ImageTruth

TRUTH_COLUMNS = ["image_id", "height", "width", "instances"]


def truths_of(table: pa.Table) -> list[ImageTruth]:
    """The ground truth in a table of shard rows, without the images."""
    truths = []
    for row in table.select(TRUTH_COLUMNS).to_pylist():
        instances = row["instances"]
        truths.append(
            ImageTruth(
                row["image_id"],
                row["height"],
                row["width"],
                np.array([i["annotation_id"] for i in instances], dtype=np.int64),
                np.array([i["category"] for i in instances], dtype=np.int32),
                np.array([i["bbox"] for i in instances], dtype=np.float32).reshape(-1, 4),
                np.array([i["area"] for i in instances], dtype=np.float32),
                np.array([i["iscrowd"] for i in instances], dtype=bool),
                [i["rle"] for i in instances],
            )
        )
    return truths


def by_image(table: pa.Table) -> pa.Table:
    """Detection rows ordered by image and, in an image, by descending class score; equal scores as they were."""
    order = [("image_id", "ascending"), ("class_score", "descending")]
    return table.take(pc.sort_indices(table, sort_keys=order))


def images_of(table: pa.Table) -> dict[int, ImageDetections]:
    """Detection rows by image; an image without detections has an entry of length 0, a failed one has none.

    Args:
        table: detection rows in any order. Boxes and scores keep their precision: float32 in our own rows, float64 in
            those of another detector's results.

    Raises:
        InputError: a score is not finite.
    """
    table = by_image(table)
    whole = table.filter(pc.is_null(table["error"]))
    rows = whole.filter(pc.is_valid(whole["category"]))
    ids = rows["image_id"].to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)] if len(ids) else []
    categories, scores = rows["category"].to_numpy().astype(np.int32), rows["class_score"].to_numpy()
    maskious, rles = rows["maskiou"].to_numpy(), rows["rle"].to_pylist()
    worths = pc.coalesce(rows["worth"], rows["maskiou"]).to_numpy()  # null in what other detectors found
    flat = pc.list_flatten(rows["bbox"]).to_numpy()
    if len(flat) != 4 * len(ids):
        raise InputError("detection rows: a box does not have 4 sides; detect again")
    boxes = flat.reshape(-1, 4)  # [4 * D] -> [D, 4]
    heads = _head_maskious(rows)
    found = {
        image_id: ImageDetections(
            image_id, categories[:0], boxes[:0], scores[:0], maskious[:0], [], heads[:0], worths[:0]
        )
        for image_id in pc.unique(whole["image_id"]).to_pylist()
    }
    for start, end in pairwise(bounds):
        image_id, part = int(ids[start]), slice(start, end)
        found[image_id] = ImageDetections(
            image_id,
            categories[part],
            boxes[part],
            scores[part],
            maskious[part],
            rles[part],
            heads[part],
            worths[part],
        )
    return found


def _head_maskious(rows: pa.Table) -> np.ndarray:
    """What further MaskIoU heads predicted, float32 [D, V]."""
    flat = pc.list_flatten(rows["maskious"]).to_numpy()
    counts = pc.fill_null(pc.list_value_length(rows["maskious"]), 0).to_numpy()
    heads = int(counts.max(initial=0))
    if (counts != heads).any():
        raise InputError("detection rows: some have more predicted MaskIoUs than others; detect again")
    return flat.reshape(len(rows), heads)  # [D * V] -> [D, V]
