"""COCO's greedy matching of ranked masks to annotated instances, of all images and at all thresholds at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds, over which AP is the mean."""
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's ranges of area in pixels, both ends included."""
LOWEST = IOU_THRESHOLDS.min()
"""A detection that overlaps everything less can neither take an instance nor be ignored."""

_REQUIRED = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)  # as in pycocotools

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """An image's truth and detections of one category where some overlap matters."""

    rows: Ints  # [n] detections that reach the lowest threshold with some instance, as numbers over all images
    overlaps: Floats  # [n, g] with each instance, those that are no crowd first
    crowd: Bools  # [g]
    areas: Floats  # [g], of each instance, as annotated


@dataclass(frozen=True)
class Bucket:
    """Groups with about as many instances each, padded to the same number g."""

    rows: Ints  # [n] detections
    group: Ints  # [n] the group of each, from 0
    overlaps: Floats  # [n, g] with instances that are no crowd; -1 where padded
    crowd_overlap: Floats  # [n] the highest with a crowd, -1 for none
    areas: Floats  # [groups, g] of these instances; nan where padded


def buckets_of(groups: Sequence[Group]) -> list[Bucket]:
    """All groups, those with 1, 2, up to 4, up to 8, ... instances that are no crowd together."""
    by_size: dict[int, list[Group]] = {}
    for group in groups:
        size = 1 << max(0, int((~group.crowd).sum()) - 1).bit_length()  # 1, 2, 4, ...
        by_size.setdefault(size, []).append(group)
    buckets = []
    for size, alike in by_size.items():
        rows = np.concatenate([g.rows for g in alike])
        overlaps = np.full((len(rows), size), -1.0)
        crowd_overlap = np.full(len(rows), -1.0)
        areas = np.full((len(alike), size), np.nan)
        begin = 0
        for i, g in enumerate(alike):
            end, real = begin + len(g.rows), int((~g.crowd).sum())
            overlaps[begin:end, :real], areas[i, :real] = g.overlaps[:, :real], g.areas[:real]
            if real < len(g.crowd):
                crowd_overlap[begin:end] = g.overlaps[:, real:].max(axis=1)
            begin = end
        number = np.repeat(np.arange(len(alike)), [len(g.rows) for g in alike])
        buckets.append(Bucket(rows, number, overlaps, crowd_overlap, areas))
    return buckets


def ranks_within(group: Ints, scores: Floats, kept: Bools) -> Ints:
    """Each kept row's rank in its group by descending score; equal scores in the order of the rows.

    Args:
        group: [N] from 0.
        scores: [N].
        kept: [N] rows that take part.

    Returns:
        [N] from 0; the highest int64 where not kept.
    """
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((-scores[rows], group[rows]))]  # stable
    sorted_group = group[rows]
    begins = np.flatnonzero(np.diff(sorted_group, prepend=-1))  # groups are numbered from 0
    lengths = np.diff(begins, append=len(rows))
    ranks = np.full(len(scores), np.iinfo(np.int64).max)
    ranks[rows] = np.arange(len(rows)) - np.repeat(begins, lengths)
    return ranks


def match(
    buckets: Sequence[Bucket], scores: Floats, kept: Bools, areas: Sequence[str] = ("all",)
) -> tuple[Bools, Bools]:
    """COCO's greedy matching at all thresholds.

    In the order of the scores each detection takes the instance that is left with the highest overlap, of equal ones
    the last. What takes none but overlaps a crowd is ignored. Instances outside a range of areas come second: what
    takes one of these is ignored. All groups take their r-th detection at once.

    Args:
        buckets: of `buckets_of`.
        scores: [N].
        kept: [N] rows that take part.
        areas: A ranges, of `AREAS`, each for itself.

    Returns:
        Whether each detection took an instance, and whether it is ignored: bool [N, A, 10] each.
    """
    hit = np.zeros((len(scores), len(areas), len(_REQUIRED)), dtype=bool)
    ignored = np.zeros_like(hit)
    for bucket in buckets:
        present = kept[bucket.rows]
        ranks = ranks_within(bucket.group, scores[bucket.rows], present)  # among those that overlap enough
        order = np.argsort(ranks, kind="stable")[: int(present.sum())]
        steps = np.split(order, np.flatnonzero(np.diff(ranks[order])) + 1)
        last_first = bucket.areas[:, ::-1]  # [groups, g]
        outside = np.stack([~within(last_first, area) for area in areas], 1)[:, :, None]  # [groups, A, 1, g]
        free = np.ones((len(last_first), len(areas), len(_REQUIRED), last_first.shape[1]), dtype=bool)
        for step in steps:  # [m] members of the bucket, one of a group
            group, rows = bucket.group[step], bucket.rows[step]
            left = np.where(free[group], bucket.overlaps[step, None, None, ::-1], -1.0)  # [m, A, 10, g]
            hit[rows] = taken = _take(np.where(outside[group], -1.0, left), _REQUIRED, free, group)
            by_crowd = bucket.crowd_overlap[step, None, None]  # [m, 1, 1]
            passed = by_crowd >= _REQUIRED  # [m, 1, 10]
            if outside.any():  # a crowd that is overlapped more is taken before, as often as one likes
                left = np.where(outside[group] & ~taken[..., None], left, -1.0)
                passed = passed | _take(left, np.maximum(_REQUIRED, by_crowd), free, group)
            ignored[rows] = ~taken & passed
    return hit, ignored


def within(areas: npt.ArrayLike, area: str) -> Bools:
    """Whether areas in pixels are in one of `AREAS`, of any shape; also where they are nan."""
    low, high = AREAS[area]
    values = np.asarray(areas, dtype=np.float64)
    return ~((values < low) | (values > high))


def _take(left: Floats, required: Floats, free: Bools, group: Ints) -> Bools:
    """Lets each member take the instance with the highest overlap if it is enough, and marks that in `free`.

    Args:
        left: [m, A, 10, g] overlaps, -1 with what it may not take.
        required: [10] or [m, 1, 10].
        free: [groups, A, 10, g], changed in place.
        group: [m] of each member.

    Returns:
        Whether it took one, [m, A, 10].
    """
    best = left.argmax(axis=3)  # [m, A, 10]
    taken: Bools = left.max(axis=3) >= required  # [m, A, 10]
    of, area, threshold = np.nonzero(taken)
    free[group[of], area, threshold, best[of, area, threshold]] = False
    return taken
