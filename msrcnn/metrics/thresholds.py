"""What is kept, right and found where detections below a score are dropped: precision, recall and F1 by threshold.

Counts are micro: over the detections and instances of all categories together. Matching is COCO's, which takes
detections from the highest score down, so that dropping the lowest ones changes no match of the others. Crowds are no
instances, and what COCO ignores counts neither way.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from msrcnn.metrics.mask_matching import Bools, Floats
from msrcnn.metrics.matches import Matches

SCORES = tuple(i / 20 for i in range(1, 20))
"""0.05, 0.1, ... 0.95."""
IOUS = (0.5, 0.75)
BY = ("class", "mask")
"""Scores of masks that may be cut."""


@dataclass(frozen=True)
class Kept:
    """The detections from a score on; nan where there is nothing to divide by.

    F1 is 2 TP / (detections + instances), 0 where nothing is kept of what there is.
    """

    score: float  # the least that is kept
    detections: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class CategoryBest:
    """The threshold with the highest F1 of one category."""

    number: int
    name: str
    best: Kept | None  # None without instances or detections


@dataclass(frozen=True)
class ThresholdTable:
    """What each threshold of a score keeps, if a mask is right from an IoU on."""

    ranking: str  # class or mask: which score is cut
    iou: float
    instances: int
    grid: tuple[Kept, ...]  # at `SCORES`
    best: Kept | None  # where F1 is highest, of equal ones the highest score; None without instances or detections
    per_category: tuple[CategoryBest, ...]


def threshold_tables(matches: Matches) -> tuple[ThresholdTable, ...]:
    """One table for each score of `BY` and each IoU of `IOUS`: about 1 s for 500,000 detections."""
    instances = matches.instances().sum(axis=0)  # [C]
    tables = []
    for ranking in BY:
        for iou in IOUS:
            category, scores, hit, ignored = matches.columns(ranking, iou)
            order = np.argsort(-scores, kind="stable")
            order = order[~ignored[order]]
            category, scores, hit = category[order], scores[order], hit[order]  # the best first
            total = int(instances.sum())
            # In float32, as scores are and as `predict --min-score` compares: 0.7 of it is less than 0.7.
            kept = [int(np.searchsorted(-scores, -float(np.float32(score)), side="right")) for score in SCORES]
            true = np.concatenate([[0], np.cumsum(hit)])
            grid = [_kept(score, n, int(true[n]), total) for score, n in zip(SCORES, kept, strict=True)]
            by_category = np.argsort(category, kind="stable")
            ends = np.searchsorted(category[by_category], np.arange(len(instances) + 1)).tolist()
            rows = [by_category[begin:end] for begin, end in pairwise(ends)]
            bests = [_best(scores[of], hit[of], int(n)) for of, n in zip(rows, instances, strict=True)]
            tables.append(ThresholdTable(
                ranking, iou, total, tuple(grid), _best(scores, hit, total),
                tuple(CategoryBest(*named, best) for named, best in zip(matches.categories, bests, strict=True)),
            ))  # fmt: skip
    return tuple(tables)


def _best(scores: Floats, hit: Bools, instances: int) -> Kept | None:
    """Of the thresholds that lie at a detection's score; `scores` descend."""
    if len(scores) == 0 or instances == 0:
        return None
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of equal scores all are kept or none
    true, kept = np.cumsum(hit)[last], last + 1
    at = int(np.argmax(true / (kept + instances)))
    return _kept(float(scores[last[at]]), int(kept[at]), int(true[at]), instances)


def _kept(score: float, detections: int, true: int, instances: int) -> Kept:
    def share(part: int, whole: int) -> float:
        return part / whole if whole else float("nan")

    return Kept(score, detections, share(true, detections), share(true, instances),
                share(2 * true, detections + instances))  # fmt: skip
