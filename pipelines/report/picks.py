"""Which masks are worth looking at: rescued and misled by the mask score, and missed. Nothing but numbers.

rescued  a good mask (true MaskIoU from 0.75 on) that stands higher by mask score than by class score, and among the
         first G of its category, which has G instances: ordered by how many worse masks the mask score took it past
misled   a poor mask (true MaskIoU below 0.5), the highest mask scores first
missed   an instance that no detection of its category covers by half: large ones first, and those that nothing comes
         near, by area times what their best IoU lacks of 0.5

Ranks are over all detections of a category; equal scores stand as in `CocoAP`: by image id, then as stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from msrcnn.metrics.maskiou import MATCHED_IOU
from pipelines.report.rows import Rows

GOOD_IOU = 0.75
KINDS = ("rescued", "misled", "missed")


@dataclass(frozen=True)
class Pick:
    """A mask to show.

    Attributes:
        kind: of `KINDS`.
        category: its number.
        group: the row group.
        image: the image's place in the row group.
        image_id: the image's id.
        row: which detection of the image, or, if missed, which instance.
        order: what picks of a kind are ordered by, the highest first: masks passed, mask score, area in pixels times
            the share of IoU 0.5 that is lacking.
        rank_class: of a detection in its category by class score, from 1; 0 for an instance.
        rank_mask: likewise by mask score.
    """

    kind: str
    category: int
    group: int
    image: int
    image_id: int
    row: int
    order: float
    rank_class: int = 0
    rank_mask: int = 0


def picks_of(rows: Rows, number: int) -> dict[str, list[Pick]]:
    """At most `number` picks of each kind; see `chosen`."""
    kinds: dict[str, list[list[Pick]]] = {kind: [] for kind in KINDS}
    for category in range(1, len(rows.instances)):
        mine = rows.detections[rows.detections["category"] == category]
        ranked = Ranked.of(mine)
        kinds["rescued"].append(_rescued(mine, ranked, int(rows.instances[category]), number))
        kinds["misled"].append(_misled(mine, ranked, number))
        kinds["missed"].append(_missed(rows.missed[rows.missed["category"] == category], number))
    return {kind: chosen(of, number) for kind, of in kinds.items()}


def chosen(by_category: Sequence[Sequence[Pick]], number: int) -> list[Pick]:
    """The best of each category, then the second of each, until there are `number`; ordered over all categories."""
    taken: list[Pick] = []
    for place in range(max(map(len, by_category), default=0)):
        turn = [picks[place] for picks in by_category if place < len(picks)]
        taken += _ordered(turn)[: number - len(taken)]
    return _ordered(taken)


@dataclass(frozen=True)
class Ranked:
    """The detections of a category, D of them, in order."""

    by_class: npt.NDArray[np.int64]  # [D], the detections by descending class score
    rank_class: npt.NDArray[np.int64]  # [D], of each detection, from 1
    rank_mask: npt.NDArray[np.int64]  # [D], by descending mask score

    @classmethod
    def of(cls, detections: npt.NDArray[np.void]) -> Ranked:
        """Ranks them."""
        orders, ranks = [], []
        for score in ("class_score", "mask_score"):
            order = np.lexsort((detections["row"], detections["image_id"], -detections[score]))
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(1, len(order) + 1)
            orders.append(order)
            ranks.append(rank)
        return cls(orders[0], *ranks)


def _rescued(found: npt.NDArray[np.void], ranked: Ranked, instances: int, number: int) -> list[Pick]:
    up = ranked.rank_class - ranked.rank_mask
    candidates = np.flatnonzero((found["true"] >= GOOD_IOU) & (ranked.rank_mask <= instances) & (up > 0))
    true, rank_mask = found["true"][ranked.by_class], ranked.rank_mask[ranked.by_class]
    passed = np.zeros(len(candidates), dtype=np.int64)
    for i, candidate in enumerate(candidates):  # linear in the ranks above: 0.2 s for 11,000 instances
        above = slice(ranked.rank_class[candidate] - 1)
        passed[i] = np.sum((rank_mask[above] > ranked.rank_mask[candidate]) & (true[above] < found["true"][candidate]))
    best = candidates[np.lexsort((found["row"][candidates], found["image_id"][candidates], -passed))]
    count = dict(zip(candidates.tolist(), passed.tolist(), strict=True))
    return [_pick("rescued", found, ranked, i, count[i]) for i in best.tolist()[:number] if count[i] > 0]


def _misled(found: npt.NDArray[np.void], ranked: Ranked, number: int) -> list[Pick]:
    poor = np.flatnonzero(found["true"] < MATCHED_IOU)
    best = poor[np.argsort(ranked.rank_mask[poor])][:number]
    return [_pick("misled", found, ranked, i, float(found["mask_score"][i])) for i in best.tolist()]


def _missed(missed: npt.NDArray[np.void], number: int) -> list[Pick]:
    order = missed["area"] * (1 - missed["covered"] / MATCHED_IOU)
    best = np.lexsort((missed["row"], missed["image_id"], -order))[:number]
    return [Pick("missed", *_where(missed[i]), order=float(order[i])) for i in best.tolist()]


def _pick(kind: str, found: npt.NDArray[np.void], ranked: Ranked, index: int, order: float) -> Pick:
    return Pick(kind, *_where(found[index]), order, int(ranked.rank_class[index]), int(ranked.rank_mask[index]))


def _where(row: np.void) -> tuple[int, int, int, int, int]:
    """Category, row group, the image's place in it, its id, and what of the image."""
    return int(row["category"]), int(row["group"]), int(row["image"]), int(row["image_id"]), int(row["row"])


def _ordered(picks: Iterable[Pick]) -> list[Pick]:
    return sorted(picks, key=lambda p: (-p.order, p.category, p.image_id, p.row))
