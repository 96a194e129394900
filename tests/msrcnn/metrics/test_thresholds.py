"""Precision, recall and F1 by score threshold, against pycocotools' matches counted one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from msrcnn.metrics.coco_rows import annotation_dicts, image_dicts
from msrcnn.metrics.matches import Matches
from msrcnn.metrics.thresholds import SCORES, threshold_tables
from tests.mask_ap import crowded, scored_rows

CATEGORIES = ((1, "disc"), (2, "ring"), (3, "rare"))


def _tables(truths, detections):
    matches = Matches(CATEGORIES)
    matches.update(truths, detections)
    return {(t.ranking, t.iou): t for t in threshold_tables(matches)}


def _decided(truths, detections, ranking):
    """Category, score and at IoU 0.5 and 0.75 whether it is a true positive, of each detection that COCO counts."""
    scores = [d.class_scores if ranking == "class" else d.mask_scores for d in detections]
    truth = COCO()
    truth.dataset = {
        "images": image_dicts(truths), "annotations": [row for t in truths for row in annotation_dicts(t)],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
    }  # fmt: skip
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(scored_rows(truths, detections, scores)), "segm")
    evaluation.evaluate()
    found = []
    for image in evaluation.evalImgs:
        if image is not None and image["aRng"] == [0, 1e10]:
            for d, score in enumerate(image["dtScores"]):
                for iou, t in ((0.5, 0), (0.75, 5)):
                    if not image["dtIgnore"][t, d]:
                        found.append((iou, image["category_id"], score, image["dtMatches"][t, d] > 0))
    return found


@pytest.mark.parametrize("ranking", ["class", "mask"])
@pytest.mark.parametrize("seed", range(2))
def test_counts_are_those_of_pycocotools(make_scene, seed, ranking):
    """Scenes with crowds, coarse scores with many equal ones, and over 100 detections in an image."""
    truths, detections = crowded(make_scene, seed)
    tables, decided = _tables(truths, detections), _decided(truths, detections, ranking)
    instances = {0: sum(int((~t.crowd).sum()) for t in truths)}
    instances |= {c: sum(int(((t.categories == c) & ~t.crowd).sum()) for t in truths) for c in (1, 2, 3)}
    for iou in (0.5, 0.75):
        table = tables[ranking, iou]
        assert table.instances == instances[0]
        assert [kept.score for kept in table.grid] == list(SCORES)
        for kept in table.grid:
            right = [true for at, _, score, true in decided if at == iou and score >= np.float32(kept.score)]
            assert kept.detections == len(right)
            assert kept.recall == pytest.approx(sum(right) / instances[0])
            if right:
                assert kept.precision == pytest.approx(np.mean(right))
                harmonic = 2 / (1 / kept.precision + 1 / kept.recall) if any(right) else 0
                assert kept.f1 == pytest.approx(harmonic)
            else:
                assert np.isnan(kept.precision)
        for category, best in [(0, table.best), *((c.number, c.best) for c in table.per_category)]:
            rows = [(score, true) for at, c, score, true in decided if at == iou and category in (0, c)]
            every = {score: [true for s, true in rows if s >= score] for score, _ in rows}
            if category == 3:
                assert best is None  # no instance
                continue
            f1 = {score: 2 * sum(right) / (len(right) + instances[category]) for score, right in every.items()}
            highest = max(f1.values())
            assert best.f1 == pytest.approx(highest)
            assert best.score == pytest.approx(max(s for s, value in f1.items() if value == pytest.approx(highest)))
            assert best.detections == len(every[min(every, key=lambda s: abs(s - best.score))])


def test_a_score_is_kept_at_the_threshold_that_it_equals(make_scene):
    """Some of the grid's numbers are less in float32, as scores are."""
    scene = make_scene(1, np.random.default_rng(0), 3, len(SCORES), 2)
    scores = np.array(SCORES, np.float32)
    found = replace(scene.detections, class_scores=scores, maskious=np.ones_like(scores))
    truth = replace(scene.truth, crowd=np.zeros_like(scene.truth.crowd))
    grid = _tables([truth], [found])["mask", 0.5].grid
    assert [kept.detections for kept in grid] == list(range(len(SCORES), 0, -1))


def test_without_detections_there_is_no_threshold(make_scene):
    truths, detections = crowded(make_scene, 0)
    table = _tables(truths, [])["mask", 0.5]
    assert table.best is None
    assert {kept.recall for kept in table.grid} == {0.0}
    assert {kept.f1 for kept in table.grid} == {0.0}
    empty = [replace(t, crowd=np.ones_like(t.crowd)) for t in truths]  # crowds alone
    table = _tables(empty, detections)["class", 0.5]
    assert table.instances == 0
    assert table.best is None
    assert all(np.isnan(kept.recall) for kept in table.grid)
