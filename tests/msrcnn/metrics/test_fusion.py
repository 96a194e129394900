"""Sweeps of the fused score against hotcoco and pycocotools on the same scores."""

from __future__ import annotations

import time
from dataclasses import replace
from math import isnan

import hotcoco
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from msrcnn.errors import InputError
from msrcnn.metrics.coco_ap import CocoAP
from msrcnn.metrics.coco_rows import annotation_dicts, detection_dicts, image_dicts
from msrcnn.metrics.fusion import Fusion, FusionSweep, fusion_grid

CATEGORIES = ((1, "disc"), (2, "ring"), (3, "rare"))
SETTINGS = (Fusion(1, 0), Fusion(1, 1), Fusion(0.5, 2), Fusion(0, 1), Fusion(0, 0), Fusion(2, 0.5))


def _sweep(categories, truths, detections, batch=3):
    sweep = FusionSweep(categories)
    for i in range(0, len(truths), batch):
        ids = {t.image_id for t in truths[i : i + batch]}
        sweep.update(truths[i : i + batch], [d for d in detections if d.image_id in ids])
    return sweep


def _fused(found, fusion):
    """The score as its definition says, in float32 like the stored ones."""
    quality = np.maximum(found.maskious.astype(float), 0)
    return (found.class_scores.astype(float) ** fusion.class_power * quality**fusion.maskiou_power).astype(np.float32)


def _rows(truths, detections, fusion):
    by_id, rows = {t.image_id: t for t in truths}, []
    for found in detections:
        scores = _fused(found, fusion)
        kept = np.flatnonzero(scores >= fusion.threshold)
        if fusion.top_k is not None:
            kept = np.sort(kept[np.argsort(-scores[kept], kind="stable")][: fusion.top_k])
        masks = detection_dicts(by_id[found.image_id], found)["class"]
        rows += [masks[i] | {"score": float(scores[i])} for i in kept]
    return rows


def _by_hotcoco(categories, truths, detections, fusion):
    evaluator = hotcoco.StreamingEval([{"id": number, "name": name} for number, name in categories], "segm")
    annotations = [row for truth in truths for row in annotation_dicts(truth)]
    evaluator.update(image_dicts(truths), annotations, _rows(truths, detections, fusion))
    final = evaluator.finalize()
    metrics = hotcoco.compare(final, final)["metrics_a"]
    return [metrics[name] for name in ("AP", "AP50", "AP75")]


def _by_pycocotools(categories, truths, detections, fusion):
    truth = COCO()
    truth.dataset = {
        "images": image_dicts(truths),
        "annotations": [row for t in truths for row in annotation_dicts(t)],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(_rows(truths, detections, fusion)), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:3]


def _same(found, expected):
    np.testing.assert_allclose([found.ap, found.ap50, found.ap75], expected, rtol=0, atol=1e-9)


def _crowded(make_scene, seed):
    """Crowds, images without instances, without detections, without both, and two with over 100 detections."""
    rng = np.random.default_rng(seed)
    counts = [(6, 15), (0, 8), (5, 0), (0, 0), (9, 260), (3, 12), (30, 150), (1, 30), (4, 4)]
    ids = rng.permutation(100)[: len(counts)] + 1
    scenes = [make_scene(int(i), rng, *count, classes=2) for i, count in zip(ids, counts, strict=True)]
    assert any(s.truth.crowd.any() for s in scenes)
    return [s.truth for s in scenes], [s.detections for s in scenes]


@pytest.mark.parametrize("seed", range(4))
def test_settings_equal_hotcoco(make_scene, seed):
    truths, detections = _crowded(make_scene, seed)
    for found, fusion in zip(_sweep(CATEGORIES, truths, detections).evaluate(SETTINGS), SETTINGS, strict=True):
        assert found.fusion == fusion
        _same(found, _by_hotcoco(CATEGORIES, truths, detections, fusion))


def test_settings_equal_pycocotools(make_scene, capsys):
    truths, detections = _crowded(make_scene, 9)
    for found in _sweep(CATEGORIES, truths, detections).evaluate(SETTINGS[:3]):
        _same(found, _by_pycocotools(CATEGORIES, truths, detections, found.fusion))
    capsys.readouterr()


@pytest.mark.parametrize("seed", range(2))
def test_thresholds_and_top_k_equal_hotcoco(make_scene, seed):
    truths, detections = _crowded(make_scene, seed)
    grid = fusion_grid((1.0,), (0.5, 1.0), thresholds=(0.1, 0.4), top_ks=(1, 10, None))
    assert len(grid) == 12
    results = _sweep(CATEGORIES, truths, detections).evaluate(grid)
    for found in results:
        _same(found, _by_hotcoco(CATEGORIES, truths, detections, found.fusion))
    assert len({found.ap for found in results}) > 6


def test_ones_are_the_report_of_the_evaluation(make_scene):
    """Where no prediction is negative: the evaluation ranks those below the others, the sweep at 0."""
    truths, detections = _crowded(make_scene, 1)
    detections = [replace(d, maskious=np.abs(d.maskious)) for d in detections]
    ap = CocoAP(CATEGORIES)
    ap.update(truths, detections)
    report = ap.summarise(bootstrap=0)
    by_class, by_mask = _sweep(CATEGORIES, truths, detections).evaluate([Fusion(1, 0), Fusion(1, 1)])
    _same(by_class, [report.mask_by_class[name] for name in ("AP", "AP50", "AP75")])
    _same(by_mask, [report.mask_by_mask[name] for name in ("AP", "AP50", "AP75")])


def test_the_order_of_the_images_does_not_matter(make_scene):
    """Equal scores are ranked by image id; the scenes' coarse scores have many."""
    truths, detections = _crowded(make_scene, 2)
    results = _sweep(CATEGORIES, truths, detections).evaluate(SETTINGS)
    assert _sweep(CATEGORIES, truths[::-1], detections[::-1], batch=1).evaluate(SETTINGS) == results


def test_images_can_follow_a_first_answer(make_scene):
    truths, detections = _crowded(make_scene, 3)
    sweep = _sweep(CATEGORIES, truths[:4], detections[:4])
    sweep.evaluate(SETTINGS[:1])
    sweep.update(truths[4:], detections[4:])
    assert sweep.evaluate(SETTINGS) == _sweep(CATEGORIES, truths, detections).evaluate(SETTINGS)


def test_nothing_found_is_zero_and_nothing_to_find_is_nan(make_scene):
    scene, empty = (make_scene(i, np.random.default_rng(i), n, 9, 2) for i, n in ((1, 4), (2, 0)))
    sweep = FusionSweep(CATEGORIES)
    sweep.update([scene.truth], [])
    assert sweep.evaluate([Fusion()])[0].ap == 0
    nothing = FusionSweep(CATEGORIES)
    nothing.update([empty.truth], [empty.detections])
    assert isnan(nothing.evaluate([Fusion()])[0].ap)


def test_bad_input_is_refused(make_scene):
    scene = make_scene(1, np.random.default_rng(0), 4, 9, 2)
    sweep = FusionSweep(CATEGORIES)
    with pytest.raises(InputError, match="no image was added"):
        sweep.evaluate([Fusion()])
    sweep.update([scene.truth], [scene.detections])
    before = sweep.evaluate(SETTINGS)
    with pytest.raises(InputError, match="image 1 was scored twice"):
        sweep.update([scene.truth], [scene.detections])
    next_one = make_scene(2, np.random.default_rng(0), 4, 9, 2)
    with pytest.raises(InputError, match="image 2: category 8"):
        sweep.update([next_one.truth], [replace(next_one.detections, categories=np.full(9, 8, np.int32))])
    assert sweep.evaluate(SETTINGS) == before
    for values, message in (
        ({"class_power": -1}, "Fusion.class_power is -1"),
        ({"maskiou_power": float("nan")}, "Fusion.maskiou_power is nan"),
        ({"threshold": float("inf")}, "Fusion.threshold is inf"),
        ({"top_k": 0}, "Fusion.top_k is 0"),
    ):
        with pytest.raises(InputError, match=message):
            Fusion(**values)


def test_a_setting_costs_far_less_than_an_evaluation(make_scene):
    rng = np.random.default_rng(0)
    scenes = [make_scene(i, rng, 7, 100, 20) for i in range(1, 16)]
    categories = [(i, f"thing {i}") for i in range(1, 21)]
    truths = [replace(s.truth, image_id=100 * k + s.truth.image_id) for s in scenes for k in range(12)]
    detections = [replace(s.detections, image_id=100 * k + s.detections.image_id) for s in scenes for k in range(12)]
    sweep = _sweep(categories, truths, detections, batch=100)
    grid = fusion_grid((0.5, 1, 2), (0, 0.5, 1, 2))
    sweep.evaluate(grid[:1])
    begin = time.perf_counter()
    sweep.evaluate(grid)
    setting = (time.perf_counter() - begin) / len(grid)
    begin = time.perf_counter()
    _by_hotcoco(categories, truths, detections, grid[-1])
    assert setting < (time.perf_counter() - begin) / 3
