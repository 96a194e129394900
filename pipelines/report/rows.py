"""One pass over the stored rows: what the gallery is chosen from, and the matches that runs are compared by.

Row groups are read one after the other, without their images. What stays are 48 bytes a detection, 40 a missed
instance, and for a comparison 68 bytes a detection (`msrcnn.metrics.matches`): 500,000 detections take 24 MB alone, and
34 MB more for each run that is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from msrcnn.metrics.maskiou import MATCHED_IOU, overlaps
from msrcnn.metrics.matches import Matches
from msrcnn.rows import ImageDetections, ImageTruth
from pipelines.progress import Progress
from pipelines.report.runs import Run
from pipelines.scoring import categories_of, read_part

DETECTION = np.dtype([
    ("group", "i4"), ("image", "i4"), ("row", "i4"), ("category", "i4"), ("image_id", "i8"),
    ("class_score", "f8"), ("mask_score", "f8"), ("true", "f8"),
])  # fmt: skip
"""A detection: its row group, the image's place in it, its own among the image's detections, scores, true MaskIoU."""
MISSED = np.dtype([
    ("group", "i4"), ("image", "i4"), ("row", "i4"), ("category", "i4"), ("image_id", "i8"), ("area", "f8"),
    ("covered", "f8"),
])  # fmt: skip
"""A non-crowd instance that no detection of its category covers by half: likewise; area in pixels, its best IoU."""


@dataclass(frozen=True)
class Rows:
    """What stays of the rows of a run.

    Attributes:
        detections: [D] of `DETECTION`.
        missed: [M] of `MISSED`.
        instances: [C + 1] non-crowd instances of each category by its number.
        matches: of all images, if they were asked for.
    """

    detections: npt.NDArray[np.void]
    missed: npt.NDArray[np.void]
    instances: npt.NDArray[np.int64]
    matches: Matches | None


def read_rows_of(run: Run, compared: bool, log: Callable[[str], None]) -> Rows:
    """Reads all rows of a run.

    Args:
        run: with manifest and detections.
        compared: whether to keep the matches.
        log: takes lines that say how far it is.

    Raises:
        InputError: detections and shards do not belong together.
    """
    assert run.manifest is not None
    assert run.detections is not None
    matches = Matches(categories_of(run.manifest)) if compared else None
    log(f"reading the detections of {run.name}: {run.manifest.rows} images")
    found, missed = [np.zeros(0, DETECTION)], [np.zeros(0, MISSED)]
    instances = np.zeros(len(run.manifest.categories) + 1, dtype=np.int64)
    progress = Progress(run.manifest.rows, log)
    for number, group in enumerate(run.groups):
        truths, by_id = read_part(group, run.detections.folder)
        for place, truth in enumerate(truths):
            instances += np.bincount(truth.categories[~truth.crowd], minlength=len(instances))
            detected = by_id.get(truth.image_id) or nothing(truth)
            overlap = overlaps(truth, detected)
            found.append(_detections(number, place, detected, overlap.true))
            missed.append(_missed(number, place, truth, overlap.covered))
        if matches is not None:
            matches.update(truths, list(by_id.values()))
        progress.add(len(truths))
    return Rows(np.concatenate(found), np.concatenate(missed), instances, matches)


def nothing(truth: ImageTruth) -> ImageDetections:
    """The detections of an image that has none, or that failed."""
    empty = np.zeros(0, dtype=np.float32)
    return ImageDetections(truth.image_id, empty.astype(np.int32), empty.reshape(0, 4), empty, empty, [])  # [0, 4]


def _detections(group: int, place: int, found: ImageDetections, true: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(true), DETECTION)
    rows["group"], rows["image"], rows["image_id"] = group, place, found.image_id
    rows["row"], rows["category"], rows["true"] = np.arange(len(true)), found.categories, true
    rows["class_score"], rows["mask_score"] = found.class_scores, found.mask_scores
    return rows


def _missed(group: int, place: int, truth: ImageTruth, covered: np.ndarray) -> np.ndarray:
    index = np.flatnonzero(covered < MATCHED_IOU)  # not those of crowds, which are nan
    rows = np.zeros(len(index), MISSED)
    rows["group"], rows["image"], rows["image_id"] = group, place, truth.image_id
    rows["row"], rows["category"] = index, truth.categories[index]
    rows["area"], rows["covered"] = truth.areas[index], covered[index]
    return rows
