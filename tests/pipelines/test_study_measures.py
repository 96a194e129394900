"""What a study measures of a seed, against scipy, numpy, copied rows and COCO's own AP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from scipy import stats

from msrcnn.data.coco import read_coco, read_instance
from msrcnn.errors import InputError
from msrcnn.metrics.maskiou import true_maskiou
from msrcnn.metrics.rankings import MaskRankings
from msrcnn.metrics.resampling import image_draws
from pipelines.scoring_options import ScoreConfig
from pipelines.study_measures import (
    CLASS,
    FROZEN,
    ORACLE,
    PAPER,
    Detected,
    agreement,
    errors,
    fused,
    limits,
    mask_aps,
    own_aps,
    predicted,
    read_detected,
)
from tests.mask_ap import by_pycocotools, crowded, scored_rows
from tests.studies import HEADS

CATEGORIES = ((1, "disc"), (2, "ring"))


@pytest.fixture(scope="module")
def scene(make_scene):
    """Images with everything that is hard, as `read_detected` would give them."""
    truths, detections = crowded(make_scene, 3)
    masks, boxes = (MaskRankings(CATEGORIES, 400, of) for of in ("masks", "boxes"))
    for rankings in (masks, boxes):
        rankings.update(truths, detections)
    by_id = {truth.image_id: truth for truth in truths}
    found = sorted(detections, key=lambda one: one.image_id)
    true = np.concatenate([true_maskiou(by_id[one.image_id], one) for one in found])
    area = np.concatenate([(one.boxes[:, 2:] - one.boxes[:, :2]).prod(1) for one in found]).astype(float)
    order = np.concatenate([stats.rankdata(-one.class_scores, "ordinal") - 1 for one in found]).astype(int)
    return truths, found, Detected(masks, boxes, masks.columns, true, area, order)


def test_errors_are_told_by_the_true_maskiou():
    true = np.array([0.0, 0.05, 0.1, 0.49, 0.5, 0.95, 1.0])
    values = true + np.array([0.5, 0.1, 0.2, -0.4, 0.0, -0.3, -0.1])
    found = {(one["low"], one["high"]): one for one in errors(values, true)}
    assert {key: one["count"] for key, one in found.items()} == {
        (0.0, 0.1): 2, (0.1, 0.5): 2, (0.5, 0.6): 1, (0.6, 0.7): 0, (0.7, 0.8): 0, (0.8, 0.9): 0, (0.9, 1.0): 2,
    }  # fmt: skip
    low, middle, top = found[0.0, 0.1], found[0.1, 0.5], found[0.9, 1.0]
    assert (low["bias"], low["error"]) == (pytest.approx(0.3), pytest.approx(0.3))
    assert (middle["bias"], middle["error"]) == (pytest.approx(-0.1), pytest.approx(0.3))
    assert (top["bias"], top["error"]) == (pytest.approx(-0.2), pytest.approx(0.2))
    assert "bias" not in found[0.6, 0.7]


def test_agreement_is_scipys_and_that_of_copied_rows():
    rng = np.random.default_rng(1)
    image = np.sort(rng.integers(0, 20, 300))
    true = rng.random(300)
    values = (true + rng.normal(0, 0.4, 300)).clip(0)
    counts = image_draws(20, 30, 4)
    found = agreement(values, true, image, counts)
    assert found["pearson, all"] == pytest.approx(np.corrcoef(values, true)[0, 1])
    assert found["spearman, all"] == pytest.approx(np.corrcoef(stats.rankdata(values), stats.rankdata(true))[0, 1])
    matched = true >= 0.5
    assert found["pearson, matched"] == pytest.approx(np.corrcoef(values[matched], true[matched])[0, 1])
    for drawn, count in zip(found["draws"], counts, strict=True):
        times = count[image]
        copied = np.corrcoef(np.repeat(values, times), np.repeat(true, times))[0, 1]
        assert drawn == pytest.approx(copied, abs=1e-5)
    assert "draws" not in agreement(values, true, image, counts[:0])


@pytest.mark.parametrize("rows", [0, 1, 6])
def test_a_correlation_of_what_does_not_vary_is_not_defined(rows):
    values, true = np.full(rows, 0.3), np.linspace(0, 1, rows)
    found = agreement(values, true, np.arange(rows), image_draws(6, 10, 0))
    assert np.isnan(found.pop("draws")).all()
    assert np.isnan(list(found.values())).all()


def test_limits_are_of_heads_that_know_some_of_the_truth(scene):
    truths, found, detected = scene
    values = detected.columns.maskious.clip(0)
    kept = detected.order < 100
    limit = limits(detected, values, kept)

    def ap(quality):
        scores = (detected.columns.class_scores * quality).astype(np.float32)
        ends = np.cumsum([len(one.rles) for one in found])[:-1]
        places = [np.flatnonzero(part) for part in np.split(kept, ends)]
        rows = scored_rows(truths, found, np.split(scores, ends), places)
        return 100 * by_pycocotools(CATEGORIES, truths, rows)[0]

    assert limit["all"] == pytest.approx(ap(detected.true))
    assert limit["none"] == pytest.approx(ap(values))
    assert limit["matched"] == pytest.approx(ap(np.where(detected.true >= 0.5, detected.true, values)))
    assert limit["none"] < limit["matched"] < limit["all"]
    thirds = limits(detected, np.zeros_like(values), kept), limits(detected, detected.true, kept)
    assert len({*thirds[1].values()}) == 1  # who knows it all learns nothing
    assert thirds[0]["none"] != thirds[0]["the largest third"] != thirds[0]["the smallest third"]
    # thirds are of what is ranked: detections beyond, however large, move no border
    beyond = replace(detected, area=np.where(kept, detected.area, 1e9))
    assert limits(beyond, values, kept) == limit


def test_rankings_of_a_seed(scene):
    truths, found, detected = scene
    rng = np.random.default_rng(0)
    maskious = {PAPER: rng.random(len(detected.true)), "other": detected.true}
    counts = image_draws(len(truths), 20, 0)
    aps = mask_aps(detected, maskious, (100, 400), counts, {"other": 2.0})
    assert {name for name, of in aps.items() if "draws" in of} == {CLASS, ORACLE, "paper^1", "other^1", "other^2"}
    whole = detected.masks.rank(detected.columns.class_scores, detected.order < 100)
    assert aps[CLASS]["AP"] == pytest.approx(100 * whole.ap().ap)
    np.testing.assert_allclose(aps[CLASS]["draws"], [100 * whole.ap(draw).ap for draw in counts], atol=1e-4)
    rows = scored_rows(truths, found, [one.class_scores for one in found])
    assert aps[CLASS]["AP at 400"] == pytest.approx(100 * by_pycocotools(CATEGORIES, truths, rows, 400)[0])
    assert aps[CLASS]["AP at 400"] != aps[CLASS]["AP"]


def test_scores_are_rounded_as_stored_ones():
    scores, quality = np.array([0.9, 0.3], np.float32).astype(float), np.array([0.7, 0.1], np.float32).astype(float)
    expected = scores.astype(np.float32) * quality.astype(np.float32)
    assert (fused(scores, quality, 1.0) == expected).all()
    np.testing.assert_allclose(fused(scores, quality, 2.0), scores * quality * quality, rtol=1e-6)


def test_heads_that_saw_other_detections_are_refused(scene):
    _, _, detected = scene
    rows = len(detected.true)
    columns = replace(detected.columns, head_maskious=np.arange(rows * len(HEADS), dtype=float).reshape(rows, -1))
    heads = replace(detected, columns=columns)
    found = predicted(detected, heads, tuple(HEADS))
    assert list(found) == [PAPER, FROZEN, *HEADS]
    assert (found["(b)"] == columns.head_maskious[:, list(HEADS).index("(b)")]).all()
    assert (found[PAPER] == detected.columns.maskious.clip(0)).all()
    other = replace(columns, class_scores=columns.class_scores + np.eye(1, rows)[0])
    with pytest.raises(InputError, match="not those of the trunk that they were trained on"):
        predicted(detected, replace(heads, columns=other), tuple(HEADS))


def test_a_detector_is_ranked_by_its_own_mask_score(scene):
    """By what its mask scores multiply class scores by, which need not be its MaskIoU."""
    _, _, detected = scene
    columns, kept = detected.columns, detected.order < 100
    factors = np.random.default_rng(5).random(len(kept))
    other = replace(detected, columns=replace(columns, factors=factors))
    found = own_aps("nms", other, 100, np.zeros((0, 0), np.int64))
    assert found["mask score"]["AP"] == 100 * detected.masks.rank(fused(columns.class_scores, factors, 1), kept).ap().ap
    assert found[CLASS] == own_aps("plain", detected, 100, np.zeros((0, 0), np.int64))[CLASS]


def test_nothing_detected(scene):
    """No ranking finds anything; what is computed from detections is not defined."""
    rankings = MaskRankings(CATEGORIES)
    rankings.update(scene[0], [])
    none, no_index = np.zeros(0), np.zeros(0, np.int64)
    empty = Detected(rankings, rankings, rankings.columns, none, none, no_index)
    maskious = predicted(empty, empty, tuple(HEADS))
    assert [len(values) for values in maskious.values()] == [0] * (2 + len(HEADS))
    aps = mask_aps(empty, maskious, (100,), image_draws(len(scene[0]), 10, 0), {})
    assert {of["AP"] for of in aps.values()} == {0}
    assert {*limits(empty, none, none.astype(bool)).values()} == {0}
    assert [one["count"] for one in errors(none, none)] == [0] * 7


def write_results(annotations: Path, file: Path) -> None:
    """COCO results: of each instance its mask moved by up to 6 pixels, three times, with scores that know a little."""
    rng = np.random.default_rng(0)
    dataset = read_coco(annotations)
    numbers = {category.source_id: category.source_id for category in dataset.categories}
    rows = []
    for record in dataset.images:
        for annotation in record.annotations:
            instance = read_instance(annotation, record.height, record.width, numbers)
            size = {"size": [record.height, record.width]}
            mask = coco_mask.decode({**size, "counts": instance.rle})
            for _ in range(3):
                by = rng.integers(-6, 7, 2)
                rle = coco_mask.encode(np.asfortranarray(np.roll(mask, by, (0, 1))))["counts"].decode()
                rows.append({
                    "image_id": record.image_id, "category_id": instance.category, "score": rng.random(),
                    "maskiou": 1 / (1 + np.abs(by).sum()), "segmentation": {**size, "counts": rle},
                })  # fmt: skip
    file.write_text(json.dumps(rows))


@pytest.mark.ray
def test_stored_detections_and_what_is_true_of_them(shards, tmp_path):
    """Against the numbers of `msrcnn score`, which come from hotcoco's evaluation of dictionaries."""
    from pipelines.score import score

    write_results(shards / "images" / "annotations" / "instances_val.json", tmp_path / "results.json")
    config = ScoreConfig(detections=tmp_path / "results.json", shards=shards / "val", out=tmp_path / "scored",
                         figures=False, bootstrap=0, tracking=f"sqlite:///{tmp_path}/mlflow.db")  # fmt: skip
    summary = score(config, lambda _: None)
    found = read_detected(tmp_path / "scored", shards / "val", 100)
    columns = found.columns
    assert len(found.true) == summary.detections > 50
    everything = np.zeros((0, len(columns.image_ids)), np.int64)
    aps = mask_aps(found, {PAPER: columns.maskious}, (100,), everything, {})
    for name, of in ((CLASS, summary.ap.mask_by_class), ("paper^1", summary.ap.mask_by_mask),
                     (ORACLE, summary.ap.mask_by_oracle)):  # fmt: skip
        assert [aps[name][key] for key in ("AP", "AP50", "AP75")] == pytest.approx(
            [100 * of[key] for key in ("AP", "AP50", "AP75")], abs=1e-4
        )
    assert 5 < aps[CLASS]["AP"] < aps["paper^1"]["AP"] < aps[ORACLE]["AP"]
    assert 100 * found.boxes.rank(columns.class_scores).ap().ap == pytest.approx(100 * summary.ap.box["AP"], abs=1e-4)
    r = agreement(columns.maskious, found.true, columns.image, everything)
    for name, of in (("all", summary.maskiou.all_detections), ("matched", summary.maskiou.matched)):
        assert r[f"pearson, {name}"] == pytest.approx(of.maskiou_pearson, abs=1e-4)
        assert r[f"spearman, {name}"] == pytest.approx(of.maskiou_spearman, abs=1e-2)  # there from bins
    for image in range(len(columns.image_ids)):
        of_image = columns.image == image
        by_score = found.order[of_image][np.argsort(-columns.class_scores[of_image])]
        assert (by_score == np.arange(of_image.sum())).all()
    assert (found.area > 0).all()


def test_where_powers_are_chosen_every_ranking_has_draws(scene):
    """Tables of what was screened show each head at the power that comes out of it."""
    _, _, detected = scene
    values = {PAPER: detected.columns.maskious.clip(0), "detections": detected.columns.class_scores}
    counts = image_draws(len(detected.columns.image_ids), 5, 0)
    assert all("draws" in of for of in mask_aps(detected, values, (100,), counts, None).values())
    known = mask_aps(detected, values, (100,), counts, {"detections": 4.0})
    drawn = {name for name, of in known.items() if "draws" in of}
    assert drawn == {"class score", "oracle", "paper^1", "detections^1", "detections^4"}
