"""The scoring stage: every number of an evaluation, from stored detection rows and the ground truth in the shards.

A task scores one row group from its detections and its truth; tasks join what comes of it, eight at a time; the driver
summarises. Neither a network nor an image is read. Any split of the images gives the same numbers to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from msrcnn.errors import InputError
from msrcnn.maskiou_config import plain_name
from msrcnn.metrics.coco_ap import APReport, CocoAP
from msrcnn.metrics.maskiou import MaskIoUStats, ScoreBin, true_maskiou
from msrcnn.metrics.quality import Calibration, MaskIoUQuality
from msrcnn.metrics.thresholds import ThresholdTable, threshold_tables
from msrcnn.rows import ImageDetections, ImageTruth
from pipelines.detection_parts import StoredDetections, key_of, part_name
from pipelines.job_rows import raise_plainly
from pipelines.manifest import Manifest
from pipelines.parquet import read_table
from pipelines.progress import PROGRESS_SECONDS, Progress
from pipelines.reading import RowGroup
from pipelines.storage import Location, StorageError
from pipelines.stored_rows import TRUTH_COLUMNS, images_of, truths_of

Categories = Sequence[tuple[int, str]]
"""Contiguous number and name of each."""
JOINED = 8
"""Partial scores that a task joins."""
SCORER_CPUS = 1.0
TRIES = 20
"""Of a task whose node goes away, or whose storage fails."""
AT_ONCE = 100
"""Finished tasks that are noted at a time."""


@dataclass(frozen=True)
class Images:
    """What became of the images."""

    total: int
    with_detections: int
    without_detections: int
    failed: int

    def __add__(self, other: Images) -> Images:
        return Images(*(getattr(self, name) + getattr(other, name) for name in asdict(self)))


@dataclass(frozen=True)
class PartialScores:
    """The scores of some images, as they travel. Parts without an image in common can be joined.

    `heads` holds the same of each further MaskIoU head by its name, with that head's predictions in the place of the
    first one's, and is as large for each. `ap` takes about 130 bytes a detection and grows with them, `quality` stays
    below 24 MB. The process that joins and summarises N detections holds at most 1 kB * N beside 0.3 GB (measured:
    0.7 kB): a million take about 1 GB, so a driver with 16 GB scores 15 million, or 150,000 images of 100. What scores
    a row group of 64 images holds 0.4 GB.
    """

    ap: bytes
    quality: bytes
    images: Images
    detections: int
    heads: dict[str, PartialScores] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """Every number of an evaluation.

    `heads` holds those of each further MaskIoU head by its name; what is ranked by class score is the same in all.
    """

    dataset: str
    images: Images
    detections: int
    ap: APReport
    maskiou: MaskIoUStats
    bins: tuple[ScoreBin, ...]
    calibration: Calibration
    thresholds: tuple[ThresholdTable, ...]
    heads: dict[str, Summary] = field(default_factory=dict)


def read_part(group: RowGroup, folder: Location) -> tuple[list[ImageTruth], dict[int, ImageDetections]]:
    """The truth of a row group's images and their detections by image id; a failed image has none.

    Args:
        group: of the shards.
        folder: of detections, which has the row group's part.

    Raises:
        StorageError: one of them cannot be read.
        InputError: the part does not belong to the row group, or a score is not finite.
    """
    truths = truths_of(read_table(group.path, group.index, TRUTH_COLUMNS))
    place = folder / part_name(key_of(group))
    found = images_of(read_table(place))
    if unknown := found.keys() - {truth.image_id for truth in truths}:
        raise InputError(f"{place}: image {min(unknown)} is not in the shards' row group; give the shards that the "
                         "detections were made from")  # fmt: skip
    return truths, found


def score_part(group: RowGroup, folder: Location, categories: Categories, heads: Sequence[str] = ()) -> PartialScores:
    """Scores the images of a row group.

    Images that failed stay in the ground truth: what was not detected counts as missed.

    Args:
        group: of the shards.
        folder: of detections, which has the row group's part.
        categories: of the data set.
        heads: names of the further MaskIoU heads whose predictions are in the rows.

    Raises:
        InputError: as `read_part`, a category is unknown, a mask does not fit, or the rows are of other heads.
    """
    truths, found = read_part(group, folder)
    by_id = {truth.image_id: truth for truth in truths}
    for detected in found.values():
        if len(detected.categories) and detected.heads != len(heads):
            raise InputError(f"{folder / part_name(key_of(group))}: a row has {detected.heads} predicted MaskIoUs of "
                             f"further heads, expected are {len(heads)}; detect again")  # fmt: skip
    true = {image_id: true_maskiou(by_id[image_id], detected) for image_id, detected in found.items()}
    scores = _scored(truths, found, true, categories)
    parts = {}
    for number, name in enumerate(heads):
        of_head = {i: d.of_head(number) if len(d.categories) else d for i, d in found.items()}
        parts[name] = _scored(truths, of_head, true, categories)
    return replace(scores, heads=parts)


def _scored(
    truths: Sequence[ImageTruth], found: Mapping[int, ImageDetections], true: Mapping[int, np.ndarray],
    categories: Categories,
) -> PartialScores:  # fmt: skip
    """The scores of images whose true MaskIoUs are known."""
    ap, quality = CocoAP(categories), MaskIoUQuality()
    ap.update(truths, list(found.values()), true)
    quality.update(
        _joined(d.maskious for d in found.values()), _joined(d.class_scores for d in found.values()),
        _joined(true.values()), _joined(d.factors for d in found.values()),
    )  # fmt: skip
    detections = [len(d.categories) for d in found.values()]
    empty = detections.count(0)
    images = Images(len(truths), len(found) - empty, empty, len(truths) - len(found))
    return PartialScores(ap.to_bytes(), quality.to_bytes(), images, sum(detections))


def _joined(columns: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *columns])


def join(*parts: PartialScores) -> PartialScores:
    """The scores of all of them, of each head for itself."""
    if len(parts) == 1:
        return parts[0]
    return PartialScores(
        CocoAP.merge(CocoAP.from_bytes(part.ap) for part in parts).to_bytes(),
        MaskIoUQuality.merge(MaskIoUQuality.from_bytes(part.quality) for part in parts).to_bytes(),
        sum((part.images for part in parts), Images(0, 0, 0, 0)),
        sum(part.detections for part in parts),
        {name: join(*(part.heads[name] for part in parts)) for name in parts[0].heads},
    )


def summarise(name: str, scores: PartialScores, bootstrap: int, seed: int) -> Summary:
    """The numbers of all images.

    Args:
        name: of the data set.
        scores: of all its images.
        bootstrap: draws of the images for the intervals, of each head.
        seed: of the draws.
    """
    return _summarised(name, scores, bootstrap, seed, None)


def _summarised(name: str, scores: PartialScores, bootstrap: int, seed: int, main: CocoAP | None) -> Summary:
    """`summarise`; of a further head `main` is the first one's AP, from which it differs in mask scores alone."""
    quality, ap = MaskIoUQuality.from_bytes(scores.quality).summarise(), CocoAP.from_bytes(scores.ap)
    return Summary(
        name, scores.images, scores.detections, ap.summarise(bootstrap, seed, main),
        quality.stats, quality.bins, quality.calibration, threshold_tables(ap.matches),
        {head: _summarised(name, part, bootstrap, seed, ap) for head, part in scores.heads.items()},
    )  # fmt: skip


def categories_of(manifest: Manifest) -> list[tuple[int, str]]:
    """As the metrics take them."""
    return [(c.number, c.name) for c in manifest.categories]


def _one_thread() -> None:
    """hotcoco would start a thread a core in each of the tasks that share them. Has effect before its first use."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")


def _score_task(group: RowGroup, folder: Location, categories: Categories, heads: Sequence[str]) -> PartialScores:
    _one_thread()
    return score_part(group, folder, categories, heads)


def _join_task(*parts: PartialScores) -> PartialScores:
    _one_thread()
    return join(*parts)


def score_all(
    manifest: Manifest, groups: Sequence[RowGroup], detections: StoredDetections, log: Callable[[str], None],
    cpus: float = SCORER_CPUS,
) -> PartialScores:  # fmt: skip
    """Scores a whole data set on the Ray cluster that this process is connected to.

    Args:
        manifest: of the shards.
        groups: all their row groups.
        detections: the parts of these.
        log: takes lines that say how far it is.
        cpus: what a task asks of the cluster.

    Raises:
        InputError: from `score_part`, or a task was lost again and again.
    """
    log(f"scoring the detections on {manifest.rows} images")
    # By default what a trial of Ray Tune starts must fit into the trial's own reservation. Nodes that go away, as spot
    # ones do, cost a task tries, as does a storage that fails; and so does a task that its node has no memory for.
    options: dict[str, Any] = {
        "num_cpus": cpus, "scheduling_strategy": "DEFAULT", "max_retries": TRIES, "retry_exceptions": [StorageError],
    }  # fmt: skip
    score_task, join_task = ray.remote(**options)(_score_task), ray.remote(**options)(_join_task)
    shared = detections.folder, categories_of(manifest), detections.origin.heads
    leaves = {score_task.remote(group, *shared): group.rows for group in groups}
    level = list(leaves)
    while len(level) > 1:
        level = [join_task.remote(*level[i : i + JOINED]) for i in range(0, len(level), JOINED)]
    progress = Progress(manifest.rows, log)
    try:
        while leaves:
            done, _ = ray.wait(list(leaves), num_returns=min(len(leaves), AT_ONCE), timeout=PROGRESS_SECONDS)
            for ref in done:
                progress.add(leaves.pop(ref))  # which also lets go of its scores, once they are joined
        return ray.get(level[0])
    except RayError as error:
        raise_plainly(error)


def summary_metrics(summary: Summary) -> dict[str, float]:
    """The numbers that go to MLflow, by name."""
    ap, all_, matched = summary.ap, summary.maskiou.all_detections, summary.maskiou.matched
    metrics: dict[str, float] = {}
    for ranking, values in (
        ("box", ap.box), ("mask_by_class", ap.mask_by_class), ("mask_by_mask", ap.mask_by_mask),
        ("mask_by_oracle", ap.mask_by_oracle),
    ):  # fmt: skip
        metrics |= {f"{ranking}/{name}": value for name, value in values.items()}
    metrics |= {
        "gain/AP": ap.gain, "gain/low": ap.gain_interval[0], "gain/high": ap.gain_interval[1],
        "oracle_gap": ap.oracle_gap, "oracle_gap_closed": ap.oracle_gap_closed,
    }  # fmt: skip
    for name, part in (("all", all_), ("matched", matched)):
        metrics |= {f"maskiou_{name}/{key}": float(value) for key, value in asdict(part).items()}
    calibration = summary.calibration
    for name in ("class_score", "maskiou", "mask_score"):
        metrics[f"calibration_error/{name}"] = getattr(calibration, name).error
    for head, of_head in summary.heads.items():
        metrics |= {f"heads/{plain_name(head)}/{name}": value for name, value in head_metrics(of_head).items()}
    return metrics


def head_metrics(summary: Summary) -> dict[str, float]:
    """What MaskIoU heads are compared by: mask AP by mask score, correlation of predicted and true MaskIoU."""
    by_mask, agreement = summary.ap.mask_by_mask, summary.maskiou
    return {
        **{name: by_mask[name] for name in ("AP", "AP50", "AP75")},
        "correlation": agreement.all_detections.maskiou_pearson,
        "correlation_matched": agreement.matched.maskiou_pearson,
    }
