"""What one seed of a study says: mask AP of every ranking on all images and on draws of them, correlations, errors.

All rankings are of the same detections: the heads stand on the frozen trunk that the paper's head was trained with, so
that differences between them have nothing to do with boxes or masks. Numbers are computed from stored detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import pearsonr, spearmanr  # type: ignore[import-untyped]

from msrcnn.errors import InputError
from msrcnn.metrics.maskiou import MATCHED_IOU, oracle_scores, true_maskiou
from msrcnn.metrics.rankings import MaskColumns, MaskRankings
from msrcnn.metrics.resampling import drawn_pearson, image_draws, varies
from pipelines.detection_parts import DETECTIONS, read_parts
from pipelines.manifest import read_manifest
from pipelines.reading import row_groups
from pipelines.scoring import categories_of, read_part
from pipelines.storage import locate
from pipelines.study_plan import POWERS

Floats = npt.NDArray[np.float64]
CLASS, ORACLE, PAPER, FROZEN = "class score", "oracle", "paper", "(a)"
"""Rankings without a head; the paper's head, trained with its trunk; the same head trained on the frozen trunk."""
DRAWS_SEED = 0
BINS = (0.0, 0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of true MaskIoU, in which errors are told."""


@dataclass(frozen=True)
class Detected:
    """The detections of one evaluation as columns, and what is true of them."""

    masks: MaskRankings
    boxes: MaskRankings
    columns: MaskColumns
    true: Floats  # [N], true MaskIoU
    area: Floats  # [N], of the box, pixels
    order: npt.NDArray[np.int64]  # [N], place among the image's detections by class score, from 0


def ranking(head: str, power: float) -> str:
    """The name of class score x MaskIoU^power."""
    return f"{head}^{power:g}"


def read_detected(evaluation: Path, shards: Path, most: int) -> Detected:
    """Reads an evaluation's detections.

    Args:
        evaluation: folder of `msrcnn evaluate`.
        shards: what was evaluated on.
        most: detections of an image and category that AP looks at.

    Raises:
        InputError: they do not belong together.
    """
    manifest = read_manifest(shards)
    groups = row_groups(manifest)
    stored = read_parts(locate(evaluation) / DETECTIONS, manifest, groups)
    masks, boxes = (MaskRankings(categories_of(manifest), most, of) for of in ("masks", "boxes"))
    true: dict[int, tuple[Floats, Floats]] = {}
    for group in groups:
        truths, found = read_part(group, stored.folder)
        masks.update(truths, list(found.values()))
        boxes.update(truths, list(found.values()))
        for truth in truths:
            if (detections := found.get(truth.image_id)) is not None:
                sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
                true[truth.image_id] = true_maskiou(truth, detections), sides.prod(1).astype(np.float64)
    columns = masks.columns
    quality, area = (
        np.concatenate([np.zeros(0), *(true[i][k] for i in columns.image_ids.tolist() if i in true)]) for k in (0, 1)
    )
    by_score = np.lexsort((-columns.class_scores, columns.image))
    order = np.empty_like(by_score)
    order[by_score] = np.arange(len(order)) - np.searchsorted(columns.image, columns.image[by_score])
    return Detected(masks, boxes, columns, quality, area, order)


def measure(
    evaluations: Mapping[str, Path],
    shards: Path,
    heads: Sequence[str],
    most: Sequence[int],
    draws: int,
    powers: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Everything that a study's tables need of one seed: AP in percent, of boxes by class score; nan where undefined.

    Args:
        evaluations: folders by kind: paper, heads, and where there are such plain and nms.
        shards: what all of them were evaluated on.
        heads: short names of the further MaskIoU heads, in the order of the models'.
        most: numbers of detections an image; all but AP of masks is of the first.
        draws: of images.
        powers: by head, the power of its MaskIoU that was chosen elsewhere, drawn besides power 1; None where it is
            being chosen: every power is drawn.

    Raises:
        InputError: the evaluations are not of the same detections.
    """
    found = {kind: read_detected(folder, shards, max(most)) for kind, folder in evaluations.items()}
    paper = found["paper"]
    images = len(paper.columns.image_ids)
    counts = image_draws(images, draws, DRAWS_SEED)
    maskious = predicted(paper, found.pop("heads"), heads)
    first = paper.order < most[0]
    with_class = {CLASS: paper.columns.class_scores, **maskious}
    return {
        "draws": draws,
        "images": images,
        "detections": len(paper.true),
        "masks": mask_aps(paper, maskious, most, counts, powers),
        "others": {kind: own_aps(kind, one, most[0], counts) for kind, one in found.items() if kind != "paper"},
        "box": {kind: _ap(one.boxes, one.columns.class_scores, one.order < most[0], counts)
                for kind, one in found.items()},
        "agreement": {head: agreement(values[first], paper.true[first], paper.columns.image[first], counts)
                      for head, values in with_class.items()},
        "errors": {head: errors(values[first], paper.true[first]) for head, values in maskious.items()},
        "limits": {head: limits(paper, values, first) for head, values in maskious.items()},
    }  # fmt: skip


def predicted(paper: Detected, others: Detected, heads: Sequence[str]) -> dict[str, Floats]:
    """Predicted MaskIoU [N] of every head by its short name.

    Raises:
        InputError: the heads' detections are not the paper's.
    """
    one, two = paper.columns, others.columns
    if not all(
        np.array_equal(getattr(one, name), getattr(two, name)) for name in ("image", "category", "class_scores")
    ):
        raise InputError("the heads' detections are not those of the trunk that they were trained on; evaluate both "
                         "with as many CPU threads")  # fmt: skip
    by_head = two.head_maskious.reshape(len(two.image), len(heads))  # [0, 0] where nothing was detected
    further = dict(zip(heads, by_head.T, strict=True))
    return {name: values.clip(0) for name, values in {PAPER: one.maskious, FROZEN: two.maskious, **further}.items()}


def mask_aps(
    found: Detected, maskious: Mapping[str, Floats], most: Sequence[int], counts: npt.NDArray[np.int64],
    powers: Mapping[str, float] | None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Mask AP of each ranking by its name.

    Args:
        found: the detections.
        maskious: [N] of each head.
        most: numbers of detections an image; draws are of the first.
        counts: int [R, I], the draws.
        powers: as `measure` takes them.
    """
    scores = found.columns.class_scores
    oracle = oracle_scores(scores, maskious[PAPER], found.true)
    columns = {CLASS: scores, ORACLE: oracle}
    for head, values in maskious.items():
        columns |= {ranking(head, power): fused(scores, values, power) for power in POWERS}
    drawn = {CLASS, ORACLE}
    for head in maskious:
        drawn |= {ranking(head, p) for p in (POWERS if powers is None else (1.0, powers.get(head, 1.0)))}
    aps: dict[str, dict[str, Any]] = {}
    for name, column in columns.items():
        draws = counts if name in drawn else counts[:0]
        aps[name] = _ap(found.masks, column, found.order < most[0], draws)
        aps[name] |= {f"AP at {n}": _ap(found.masks, column, found.order < n, counts[:0])["AP"] for n in most[1:]}
    return aps


def fused(class_scores: Floats, maskious: Floats, power: float) -> Floats:
    """Class score x MaskIoU^power [N], rounded as stored scores are."""
    return (class_scores * maskious**power).astype(np.float32).astype(np.float64)


def _ap(
    rankings: MaskRankings, scores: Floats, kept: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """AP, AP50 and AP75 in percent, and AP of the draws."""
    ranked = rankings.rank(scores, kept)
    whole = ranked.ap()
    values: dict[str, Any] = {"AP": 100 * whole.ap, "AP50": 100 * whole.ap50, "AP75": 100 * whole.ap75}
    return values | ({"draws": (100 * ranked.aps(counts)[:, 0]).round(4).tolist()} if len(counts) else {})


def own_aps(kind: str, found: Detected, most: int, counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The same for a detector of its own detections: by class score, and by mask score if it has a MaskIoU head."""
    scores, kept = found.columns.class_scores, found.order < most
    columns = {CLASS: scores}
    if kind != "plain":
        columns["mask score"] = fused(scores, found.columns.factors.clip(0), 1.0)
    return {name: _ap(found.masks, column, kept, counts) for name, column in columns.items()}


def agreement(
    values: Floats, true: Floats, image: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Correlation with the true MaskIoU, over all detections and over matched ones; of the first with draws.

    nan for fewer than two detections, or where either side does not vary.

    Args:
        values, true: [N].
        image: [N], each detection's.
        counts: int [R, I].
    """
    found: dict[str, Any] = {}
    for name, rows in (("all", np.full(len(true), True)), ("matched", true >= MATCHED_IOU)):
        of = values[rows], true[rows]
        varied = all(varies(column) for column in of)
        found[f"pearson, {name}"] = float(pearsonr(*of)[0]) if varied else np.nan
        found[f"spearman, {name}"] = float(spearmanr(*of)[0]) if varied else np.nan
    if len(counts):
        found["draws"] = drawn_pearson(values, true, image, counts).round(5).tolist()
    return found


def errors(values: Floats, true: Floats) -> list[dict[str, float]]:
    """Where a head errs: predicted less true MaskIoU, by bins of the true one."""
    bins = np.clip(np.searchsorted(BINS, true, side="right") - 1, 0, len(BINS) - 2)
    found = []
    for b, (low, high) in enumerate(pairwise(BINS)):
        error = (values - true)[bins == b]
        mean = {"bias": float(error.mean()), "error": float(np.abs(error).mean())} if len(error) else {}
        found.append({"low": low, "high": high, "count": len(error), **mean})
    return found


def limits(found: Detected, values: Floats, kept: npt.NDArray[np.bool_]) -> dict[str, float]:
    """What limits the gain: mask AP if the head knew the true MaskIoU of some detections."""
    scores, true, area = found.columns.class_scores, found.true, found.area
    matched, (small, large) = true >= MATCHED_IOU, np.quantile(area[kept], [1 / 3, 2 / 3]) if kept.any() else (0.0, 0.0)
    known = {
        "none": np.zeros(len(true), bool), "unmatched": ~matched, "matched": matched,
        "the smallest third": area < small, "the middle third": (area >= small) & (area < large),
        "the largest third": area >= large, "all": np.ones(len(true), bool),
    }  # fmt: skip
    return {
        name: _ap(found.masks, fused(scores, np.where(rows, true, values), 1.0), kept, np.zeros((0, 0), np.int64))["AP"]
        for name, rows in known.items()
    }
