"""Stored matches give COCO's numbers in every range of areas, on all images and on draws of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from msrcnn.errors import InputError
from msrcnn.metrics.coco_ap import CocoAP
from msrcnn.metrics.matches import RANKINGS, RESAMPLED, Matches
from msrcnn.metrics.resampling import draw_blocks, image_draws
from tests.mask_ap import crowded

CATEGORIES = ((1, "disc"), (2, "ring"), (3, "rare"))
OF_REPORT = {"box": "box", "class": "mask_by_class", "mask": "mask_by_mask"}


def _scenes(make_scene, seed):
    """Areas on both sides of COCO's borders and on them; detections of all sizes, many with equal scores."""
    rng = np.random.default_rng(seed)
    truths, detections = crowded(make_scene, seed)
    sizes = np.array([20.0, 1024.0, 5000.0, 9216.0, 20000.0], np.float32)
    return [replace(t, areas=rng.choice(sizes, len(t.areas))) for t in truths], detections


def _matched(truths, detections):
    matches = Matches(CATEGORIES)
    matches.update(truths, detections)
    return matches


def _by_coco(truths, detections):
    """Of each ranking the numbers in the order of `RESAMPLED`, by hotcoco."""
    ap = CocoAP(CATEGORIES)
    ap.update(truths, detections)
    report = ap.summarise(bootstrap=0)
    return {ranking: [getattr(report, name)[m] for m in RESAMPLED] for ranking, name in OF_REPORT.items()}


def _values(matches, counts):
    """[rankings, R, RESAMPLED]."""
    found = []
    for ranking in RANKINGS:
        whole = matches.ranked(ranking).aps(counts)
        parts = [matches.ranked(ranking, area).aps(counts)[:, :1] for area in ("small", "medium", "large")]
        found.append(np.concatenate([whole, *parts], 1))
    return np.stack(found)


@pytest.mark.parametrize("seed", range(6))
def test_every_range_of_areas_equals_hotcoco(make_scene, seed):
    truths, detections = _scenes(make_scene, seed)
    expected = list(_by_coco(truths, detections).values())
    assert np.isfinite(expected).all()
    found = _values(_matched(truths, detections), np.ones((1, len(truths)), int))[:, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_draws_are_images_copied_under_new_ids(make_scene):
    rng = np.random.default_rng(7)
    truths, detections = _scenes(make_scene, 0)
    detections = [
        replace(d, class_scores=rng.random(len(d.rles), np.float32), maskious=rng.random(len(d.rles), np.float32))
        for d in detections
    ]  # no equal scores: their order among copies is another
    by_id = {d.image_id: d for d in detections}
    samples = _matched(truths, detections).resample(6, seed=3)
    for r, counts in enumerate(image_draws(len(truths), 6, 3)):
        of_truths, of_detections = [], []
        for truth, times in zip(sorted(truths, key=lambda t: t.image_id), counts, strict=True):
            for k in range(times):
                new = 1000 * truth.image_id + k
                ids = 1000 * new + np.arange(len(truth.rles)) + 1
                of_truths.append(replace(truth, image_id=new, annotation_ids=ids))
                if truth.image_id in by_id:
                    of_detections.append(replace(by_id[truth.image_id], image_id=new))
        for ranking, expected in _by_coco(of_truths, of_detections).items():
            found = [samples[ranking][metric][r] for metric in RESAMPLED]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9, err_msg=ranking)


def test_the_split_and_the_order_of_parts_do_not_matter(make_scene):
    truths, detections = _scenes(make_scene, 1)
    whole, rng = _matched(truths, detections), np.random.default_rng(0)
    parts = []
    for indices in np.array_split(rng.permutation(len(truths)), 4):
        ids = {truths[i].image_id for i in indices}
        part = _matched([truths[i] for i in indices], [d for d in detections if d.image_id in ids])
        parts.append(Matches.from_bytes(part.to_bytes(), CATEGORIES))
    joined = Matches.merge(parts[::-1])
    assert np.array_equal(joined.image_ids, sorted(t.image_id for t in truths))
    one, other = whole.resample(5, 0), joined.resample(5, 0)
    assert all(np.array_equal(one[r][m], other[r][m], equal_nan=True) for r in RANKINGS for m in RESAMPLED)


def test_one_image_does_not_scatter(make_scene):
    truths, detections = _scenes(make_scene, 0)
    alone = _matched(truths[-1:], [d for d in detections if d.image_id == truths[-1].image_id])
    assert np.isfinite(alone.ranked("mask").ap().ap)
    assert np.isnan([of[metric] for of in alone.resample(3, 0).values() for metric in RESAMPLED]).all()
    assert np.isnan(alone.resample_categories("mask", 3, 0)).all()


def test_blocks_are_the_draws(monkeypatch):
    monkeypatch.setattr("msrcnn.metrics.resampling.BLOCK", 25)
    blocks = list(draw_blocks(10, 7, 4))
    assert [len(block) for block in blocks] == [2, 2, 2, 1]
    assert np.array_equal(np.concatenate(blocks), image_draws(10, 7, 4))


def test_what_is_no_state_or_has_other_categories_is_refused(make_scene):
    truths, detections = _scenes(make_scene, 0)
    with pytest.raises(InputError, match="not the state of a Matches"):
        Matches.from_bytes(b"x", CATEGORIES)
    with pytest.raises(InputError, match="different categories"):
        Matches.merge([_matched(truths, detections), Matches(CATEGORIES[:2])])
    with pytest.raises(InputError, match="no part"):
        Matches.merge([])
    with pytest.raises(InputError, match="images"):
        Matches(CATEGORIES).resample(3, 0)
