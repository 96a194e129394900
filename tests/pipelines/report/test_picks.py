"""Which masks the gallery shows, against a slow search through boolean masks."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.report.picks import GOOD_IOU, Pick, chosen, picks_of
from pipelines.report.rows import read_rows_of
from pipelines.report.runs import open_runs


def iou(a, b) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def by_hand(scenes, category):
    """Detections of a category (image, row, class score, mask score, true IoU), what is missed, the instances."""
    detections, missed, instances = [], [], 0
    for scene in scenes:
        truth, found = scene.truth, scene.detections
        mine = [g for g in range(len(truth.rles)) if truth.categories[g] == category and not truth.crowd[g]]
        instances += len(mine)
        order = np.argsort(-found.class_scores, kind="stable")
        places = [(row, d) for row, d in enumerate(order) if found.categories[d] == category]
        for row, d in places:
            true = max((iou(scene.detection_masks[d], scene.truth_masks[g]) for g in mine), default=0.0)
            detections.append((truth.image_id, row, float(found.class_scores[d]), float(found.mask_scores[d]), true))
        for g in mine:
            best = max((iou(scene.detection_masks[d], scene.truth_masks[g]) for _, d in places), default=0.0)
            if best < 0.5:
                missed.append((truth.image_id, g, scene.truth_masks[g].sum() * (1 - 2 * best)))
    return detections, missed, instances


def ranks(detections, score):
    order = sorted(range(len(detections)), key=lambda i: (-detections[i][score], *detections[i][:2]))
    return {i: rank for rank, i in enumerate(order, start=1)}


def expected(scenes, category):
    detections, missed, instances = by_hand(scenes, category)
    by_class, by_mask = ranks(detections, 2), ranks(detections, 3)
    rescued, misled = [], []
    for i, (image, row, _, mask_score, true) in enumerate(detections):
        passed = sum(by_class[j] < by_class[i] and by_mask[j] > by_mask[i] and other[4] < true
                     for j, other in enumerate(detections))  # fmt: skip
        if true >= GOOD_IOU and by_mask[i] <= instances and by_mask[i] < by_class[i] and passed:
            rescued.append((passed, image, row, by_class[i], by_mask[i]))
        if true < 0.5:
            misled.append((mask_score, image, row, by_class[i], by_mask[i]))
    rescued.sort(key=lambda r: (-r[0], r[1], r[2]))
    misled.sort(key=lambda r: r[4])
    missed.sort(key=lambda m: (-m[2], *m[:2]))
    return rescued, misled, missed


@pytest.fixture
def rows(made):
    return read_rows_of(open_runs([made.first], [], [], True)[0], False, lambda _: None)


def test_picks_are_those_of_a_slow_search(made, rows):
    picks = picks_of(rows, 10_000)
    assert all(len(of) > 5 for of in picks.values())
    for category in (1, 2, 3):
        rescued, misled, missed = expected(made.scenes, category)
        mine = {kind: [p for p in of if p.category == category] for kind, of in picks.items()}
        shown = [(p.order, p.image_id, p.row, p.rank_class, p.rank_mask) for p in mine["rescued"]]
        assert shown == rescued
        shown = [(p.image_id, p.row, p.rank_class, p.rank_mask) for p in mine["misled"]]
        assert shown == [m[1:] for m in misled]
        assert [p.order for p in mine["misled"]] == pytest.approx([m[0] for m in misled], abs=1e-6)
        assert [(p.image_id, p.row) for p in mine["missed"]] == [m[:2] for m in missed]
        assert [p.order for p in mine["missed"]] == pytest.approx([m[2] for m in missed], rel=1e-6)
        assert rows.instances[category] == by_hand(made.scenes, category)[2]


def test_every_category_has_its_best_before_any_has_its_second():
    def picks(category, orders):
        return [Pick("misled", category, 0, 0, i, 0, order) for i, order in enumerate(orders)]

    by_category = [picks(1, [0.9, 0.8, 0.7]), picks(2, []), picks(3, [0.3, 0.2])]
    assert [(p.category, p.order) for p in chosen(by_category, 3)] == [(1, 0.9), (1, 0.8), (3, 0.3)]
    assert [(p.category, p.order) for p in chosen(by_category, 1)] == [(1, 0.9)]
    assert len(chosen(by_category, 99)) == 5


def test_few_picks_are_the_first_of_many(rows):
    many, few = picks_of(rows, 10_000), picks_of(rows, 3)
    for kind, of in few.items():
        assert len(of) == 3
        best = {max(p.order for p in many[kind] if p.category == category) for category in (1, 2, 3)}
        assert {p.order for p in of} == best
