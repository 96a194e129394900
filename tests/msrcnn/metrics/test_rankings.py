"""Rankings by any score column, and bootstrap draws of their images, against COCO's tools on images really copied."""

from __future__ import annotations

import time
from dataclasses import replace
from math import isnan

import numpy as np
import pytest

from msrcnn.errors import InputError
from msrcnn.metrics import ranked as ranked_masks
from msrcnn.metrics.coco_ap import CocoAP
from msrcnn.metrics.rankings import MaskRankings
from msrcnn.metrics.resampling import image_draws
from tests.mask_ap import by_hotcoco, by_pycocotools, crowded, scored_rows

CATEGORIES = ((1, "disc"), (2, "ring"), (3, "rare"))


def _ranked(truths, detections, most=100, batch=4):
    rankings = MaskRankings(CATEGORIES, most)
    for i in range(0, len(truths), batch):
        ids = {t.image_id for t in truths[i : i + batch]}
        rankings.update(truths[i : i + batch], [d for d in detections if d.image_id in ids])
    return rankings


def _random_scores(detections, seed):
    """One score without equals a detection: as a column, and of each image as `detections` has them."""
    column = np.random.default_rng(seed).permutation(sum(len(d.rles) for d in detections)) / 7.0
    by_id = sorted(detections, key=lambda d: d.image_id)
    ends = np.cumsum([len(d.rles) for d in by_id])
    parts = {d.image_id: part for d, part in zip(by_id, np.split(column, ends[:-1]), strict=True)}
    return column, [parts[d.image_id] for d in detections]


def _values(found):
    return [found.ap, found.ap50, found.ap75]


def _same(found, expected):
    np.testing.assert_allclose(_values(found), expected, rtol=0, atol=1e-9)


def _copied(truths, detections, scores, counts):
    """Images with image i (by ascending id) counts[i] times, the copies under new ids."""
    times = dict(zip(sorted(t.image_id for t in truths), counts, strict=True))
    of_truths, of_detections, of_scores = [], [], []
    for truth in truths:
        for k in range(times[truth.image_id]):
            ids = 10_000 * (1000 * truth.image_id + k) + np.arange(len(truth.rles))
            of_truths.append(replace(truth, image_id=1000 * truth.image_id + k, annotation_ids=ids + 1))
    for found, values in zip(detections, scores, strict=True):
        for k in range(times[found.image_id]):
            of_detections.append(replace(found, image_id=1000 * found.image_id + k))
            of_scores.append(values)
    return of_truths, of_detections, of_scores


@pytest.mark.parametrize("seed", range(3))
def test_any_column_equals_hotcoco(make_scene, seed):
    truths, detections = crowded(make_scene, seed)
    rankings = _ranked(truths, detections)
    for draw in range(3):
        column, scores = _random_scores(detections, draw)
        expected = by_hotcoco(CATEGORIES, truths, scored_rows(truths, detections, scores))
        _same(rankings.rank(column).ap(), expected)
        _same(rankings.rank(column - 1e6).ap(), expected)  # scores may be negative


def test_equal_scores_are_ranked_by_row(make_scene):
    """The mask scores of the scenes tie within images and between them; `CocoAP` ranks them by itself."""
    truths, detections = crowded(make_scene, 5)
    ap = CocoAP(CATEGORIES)
    ap.update(truths, detections)
    expected = ap.summarise(bootstrap=0)
    rankings = _ranked(truths, detections)
    columns = rankings.columns
    products = (columns.class_scores.astype(np.float32) * columns.maskious.astype(np.float32)).astype(float)
    assert len(np.unique(products)) < len(products) / 4
    for scores, of_scores in ((products, expected.mask_by_mask), (columns.class_scores, expected.mask_by_class)):
        _same(rankings.rank(scores).ap(), [of_scores[name] for name in ("AP", "AP50", "AP75")])


@pytest.mark.parametrize("most", [1, 20, 100, 400])
def test_so_many_of_an_image_and_a_category_are_looked_at(make_scene, capsys, most):
    truths, detections = crowded(make_scene, 6)
    column, scores = _random_scores(detections, 0)
    found = _ranked(truths, detections, most).rank(column).ap()
    _same(found, by_pycocotools(CATEGORIES, truths, scored_rows(truths, detections, scores), most))
    capsys.readouterr()


def test_what_is_not_kept_is_not_there(make_scene):
    truths, detections = crowded(make_scene, 7)
    column, scores = _random_scores(detections, 0)
    kept = [np.flatnonzero(of_image > column.mean()) for of_image in scores]
    expected = by_hotcoco(CATEGORIES, truths, scored_rows(truths, detections, scores, kept))
    _same(_ranked(truths, detections).rank(column, column > column.mean()).ap(), expected)


def test_columns_are_in_the_order_of_image_ids(make_scene):
    truths, detections = crowded(make_scene, 8)
    rng = np.random.default_rng(0)
    detections = [replace(d, head_maskious=rng.random((len(d.rles), 2)).astype(np.float32)) for d in detections]
    columns = _ranked(truths, detections).columns
    ordered = sorted(detections, key=lambda d: d.image_id)
    assert columns.image_ids.tolist() == sorted(t.image_id for t in truths)
    ids = [d.image_id for d in ordered for _ in d.rles]
    assert columns.image_ids[columns.image].tolist() == ids
    for name in ("class_scores", "maskious", "head_maskious"):
        np.testing.assert_array_equal(getattr(columns, name), np.concatenate([getattr(d, name) for d in ordered]))
    np.testing.assert_array_equal(columns.category + 1, np.concatenate([d.categories for d in ordered]))
    again = _ranked(truths[::-1], detections[::-1], batch=1)
    assert _values(again.rank(columns.head_maskious[:, 1]).ap()) == _values(
        _ranked(truths, detections).rank(columns.head_maskious[:, 1]).ap()
    )


def test_counts_of_one_change_nothing_and_draws_can_be_taken_together(make_scene, monkeypatch):
    monkeypatch.setattr(ranked_masks, "BLOCK", 3000)  # several draws at a time, and several times
    truths, detections = crowded(make_scene, 1)
    ranked = _ranked(truths, detections).rank(_random_scores(detections, 1)[0])
    assert ranked.ap(np.ones(len(truths), int)) == ranked.ap()
    draws = image_draws(len(truths), 20, seed=0)
    together = ranked.aps(draws)
    np.testing.assert_allclose(together, [_values(ranked.ap(draw)) for draw in draws], rtol=1e-13)
    assert len(np.unique(together[:, 0])) > 10


@pytest.mark.parametrize("seed", range(3))
def test_a_drawn_image_is_one_that_was_copied(make_scene, seed):
    """Images counted 0, 1, 2 and more times, against hotcoco on copies under new ids."""
    truths, detections = crowded(make_scene, seed)
    column, scores = _random_scores(detections, seed)
    ranked = _ranked(truths, detections).rank(column)
    draws = image_draws(len(truths), 6, seed)
    assert (draws == 0).any()
    assert (draws > 2).any()
    for counts in draws:
        of_truths, of_detections, of_scores = _copied(truths, detections, scores, counts)
        rows = scored_rows(of_truths, of_detections, of_scores)
        _same(ranked.ap(counts), by_hotcoco(CATEGORIES, of_truths, rows))


def test_all_images_twice_is_the_same(make_scene):
    truths, detections = crowded(make_scene, 2)
    ranked = _ranked(truths, detections).rank(_random_scores(detections, 2)[0])
    _same(ranked.ap(np.full(len(truths), 2)), _values(ranked.ap()))


def test_a_category_that_is_not_drawn_is_left_out(make_scene):
    """As where no image has an instance of it: nan if there is none at all."""
    rng = np.random.default_rng(0)
    scenes = [make_scene(i, rng, 6, 30, 1) for i in (1, 2)]
    truths = [scenes[0].truth, replace(scenes[1].truth, categories=np.full(6, 2, np.int32))]
    detections = [scenes[0].detections, replace(scenes[1].detections, categories=np.full(30, 2, np.int32))]
    column = _random_scores(detections, 0)[0]
    ranked = _ranked(truths, detections).rank(column)
    first, second = (_ranked([truths[i]], [detections[i]]) for i in (0, 1))
    first, second = _values(first.rank(column[:30]).ap()), _values(second.rank(column[30:]).ap())
    assert _values(ranked.ap([3, 0])) == pytest.approx(first)
    assert _values(ranked.ap([0, 1])) == pytest.approx(second)
    assert _values(ranked.ap()) == pytest.approx(np.mean([first, second], axis=0))
    assert isnan(ranked.ap([0, 0]).ap)


def test_nothing_found_is_zero_and_nothing_to_find_is_nan(make_scene):
    scene, empty = (make_scene(i, np.random.default_rng(i), n, 9, 2) for i, n in ((1, 4), (2, 0)))
    assert _ranked([scene.truth], []).rank([]).ap().ap == 0
    assert isnan(_ranked([empty.truth], [empty.detections]).rank(np.arange(9)).ap().ap)


def test_a_ranking_stays_when_images_follow(make_scene):
    truths, detections = crowded(make_scene, 3)
    rankings = _ranked(truths[:4], detections[:4])
    count = len(rankings.columns.image)
    ranked = rankings.rank(np.arange(count))
    before = ranked.ap()
    rankings.update(truths[4:], detections[4:])
    assert ranked.ap() == before
    column = _random_scores(detections, 0)[0]
    assert rankings.rank(column).ap() == _ranked(truths, detections).rank(column).ap()


def test_bad_input_is_refused(make_scene):
    with pytest.raises(InputError, match="most = 0 is not accepted"):
        MaskRankings(CATEGORIES, 0)
    with pytest.raises(InputError, match="no image was added"):
        _ = MaskRankings(CATEGORIES).columns
    scene, other = (make_scene(i, np.random.default_rng(i), 4, 9, 2) for i in (1, 2))
    rankings = _ranked([scene.truth], [scene.detections])
    with pytest.raises(InputError, match="image 2: its detections have 3 further MaskIoUs, those before it 0"):
        rankings.update([other.truth], [replace(other.detections, head_maskious=np.zeros((9, 3), np.float32))])
    with pytest.raises(InputError, match="image 1 was scored twice"):
        rankings.update([scene.truth], [scene.detections])
    assert rankings.columns.image_ids.tolist() == [1]
    for scores, kept, message in (
        (np.zeros(8), None, r"scores have shape \(8,\); expected is one for each of the 9"),
        (np.zeros(9), np.ones(10, bool), r"kept have shape \(10,\)"),
        (np.r_[np.zeros(8), np.nan], None, r"scores\[8\] is nan, so a detection of image 1"),
    ):
        with pytest.raises(InputError, match=message):
            rankings.rank(scores, kept)
    ranked = rankings.rank(np.arange(9))
    for counts in ([1, 1], [-1], [0.5]):
        with pytest.raises(InputError, match="one for each of the 1 images"):
            ranked.ap(counts)


def test_a_draw_costs_far_less_than_a_ranking(make_scene):
    rng = np.random.default_rng(0)
    scenes = [make_scene(i, rng, 30, 100, 1) for i in range(1, 11)]
    ids = [100 * k + i for k in range(15) for i in range(10)]
    truths = [replace(scenes[i % 100].truth, image_id=i) for i in ids]
    detections = [replace(scenes[i % 100].detections, image_id=i) for i in ids]
    rankings = _ranked(truths, detections, batch=50)
    column, draws = rng.random(len(rankings.columns.image)), image_draws(len(truths), 20, 0)
    rankings.rank(column)
    begin = time.perf_counter()
    ranked = rankings.rank(column)
    ranking = time.perf_counter() - begin
    begin = time.perf_counter()
    ranked.aps(draws)
    assert (time.perf_counter() - begin) / len(draws) < ranking / 3


@pytest.mark.parametrize("seed", range(3))
def test_boxes_equal_hotcoco(make_scene, seed):
    truths, detections = crowded(make_scene, seed)
    ap = CocoAP(CATEGORIES)
    ap.update(truths, detections)
    box = ap.summarise(bootstrap=0).box
    rankings = MaskRankings(CATEGORIES, of="boxes")
    rankings.update(truths, detections)
    _same(rankings.rank(rankings.columns.class_scores).ap(), [box[name] for name in ("AP", "AP50", "AP75")])
