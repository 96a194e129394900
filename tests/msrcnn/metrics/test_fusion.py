"""Sweeps of the fused score against hotcoco and pycocotools on the same scores."""

from __future__ import annotations

import time
from dataclasses import replace
from math import isnan

import numpy as np
import pytest

from msrcnn.errors import InputError
from msrcnn.metrics.coco_ap import CocoAP
from msrcnn.metrics.fusion import Fusion, FusionSweep, fusion_grid
from tests.mask_ap import by_hotcoco, by_pycocotools, crowded, scored_rows

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


def _by_coco(of, categories, truths, detections, fusion):
    """`of` is hotcoco or pycocotools, given the rows that the setting keeps."""
    scores = [_fused(found, fusion) for found in detections]
    kept = [np.flatnonzero(of_image >= fusion.threshold) for of_image in scores]
    if fusion.top_k is not None:
        best = [k[np.argsort(-s[k], kind="stable")][: fusion.top_k] for k, s in zip(kept, scores, strict=True)]
        kept = [np.sort(k) for k in best]
    return of(categories, truths, scored_rows(truths, detections, scores, kept))


def _same(found, expected):
    np.testing.assert_allclose([found.ap, found.ap50, found.ap75], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_settings_equal_hotcoco(make_scene, seed):
    truths, detections = crowded(make_scene, seed)
    for found, fusion in zip(_sweep(CATEGORIES, truths, detections).evaluate(SETTINGS), SETTINGS, strict=True):
        assert found.fusion == fusion
        _same(found, _by_coco(by_hotcoco, CATEGORIES, truths, detections, fusion))


def test_settings_equal_pycocotools(make_scene, capsys):
    truths, detections = crowded(make_scene, 9)
    for found in _sweep(CATEGORIES, truths, detections).evaluate(SETTINGS[:3]):
        _same(found, _by_coco(by_pycocotools, CATEGORIES, truths, detections, found.fusion))
    capsys.readouterr()


@pytest.mark.parametrize("seed", range(2))
def test_thresholds_and_top_k_equal_hotcoco(make_scene, seed):
    truths, detections = crowded(make_scene, seed)
    grid = fusion_grid((1.0,), (0.5, 1.0), thresholds=(0.1, 0.4), top_ks=(1, 10, None))
    assert len(grid) == 12
    results = _sweep(CATEGORIES, truths, detections).evaluate(grid)
    for found in results:
        _same(found, _by_coco(by_hotcoco, CATEGORIES, truths, detections, found.fusion))
    assert len({found.ap for found in results}) > 6


def test_ones_are_the_report_of_the_evaluation(make_scene):
    """Where no prediction is negative: the evaluation ranks those below the others, the sweep at 0."""
    truths, detections = crowded(make_scene, 1)
    detections = [replace(d, maskious=np.abs(d.maskious)) for d in detections]
    ap = CocoAP(CATEGORIES)
    ap.update(truths, detections)
    report = ap.summarise(bootstrap=0)
    by_class, by_mask = _sweep(CATEGORIES, truths, detections).evaluate([Fusion(1, 0), Fusion(1, 1)])
    _same(by_class, [report.mask_by_class[name] for name in ("AP", "AP50", "AP75")])
    _same(by_mask, [report.mask_by_mask[name] for name in ("AP", "AP50", "AP75")])


def test_a_worth_is_fused_in_the_place_of_the_maskiou(make_scene):
    truths, detections = crowded(make_scene, 6)
    with_worths = [replace(d, maskious=d.class_scores, worths=d.maskious) for d in detections]
    assert _sweep(CATEGORIES, truths, with_worths).evaluate(SETTINGS) == _sweep(
        CATEGORIES, truths, detections
    ).evaluate(SETTINGS)


def test_the_order_of_the_images_does_not_matter(make_scene):
    """Equal scores are ranked by image id; the scenes' coarse scores have many."""
    truths, detections = crowded(make_scene, 2)
    results = _sweep(CATEGORIES, truths, detections).evaluate(SETTINGS)
    assert _sweep(CATEGORIES, truths[::-1], detections[::-1], batch=1).evaluate(SETTINGS) == results


def test_images_can_follow_a_first_answer(make_scene):
    truths, detections = crowded(make_scene, 3)
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
    _by_coco(by_hotcoco, categories, truths, detections, grid[-1])
    assert setting < (time.perf_counter() - begin) / 3
