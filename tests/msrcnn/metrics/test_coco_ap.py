"""CocoAP against the official evaluator and its published numbers; the gain's bootstrap."""

import json
from dataclasses import replace
from math import isnan

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from msrcnn.errors import InputError
from msrcnn.metrics.coco_ap import METRICS, CocoAP
from msrcnn.metrics.maskiou import true_maskiou
from msrcnn.metrics.matches import RESAMPLED, Matches
from tests.reference import reference_scenes

CATEGORIES = ((1, "disc"), (2, "ring"), (3, "rare"))


def _score(categories, truths, detections, bootstrap=0, seed=0):
    ap = CocoAP(categories)
    ap.update(truths, detections)
    return ap.summarise(bootstrap, seed)


def _split_and_merge(categories, truths, detections, seed):
    """Three workers with a third of the images each, sent as bytes, joined in random order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(truths))
    parts = []
    for indices in np.array_split(order, 3):
        part, ids = CocoAP(categories), {truths[i].image_id for i in indices}
        part.update([truths[i] for i in indices], [d for d in detections if d.image_id in ids])
        parts.append(part.to_bytes())
    return CocoAP.merge([CocoAP.from_bytes(parts[i]) for i in rng.permutation(3)]).summarise(bootstrap=0)


# --- the official evaluator ---------------------------------------------------------------------------------


def _official(truths, results, iou_type, capsys):
    """pycocotools from beginning to end; `results` are its own result dictionaries."""
    annotations = [
        {
            "id": int(t.annotation_ids[g]),
            "image_id": t.image_id,
            "category_id": int(t.categories[g]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": float(t.areas[g]),
            "iscrowd": int(t.crowd[g]),
            "segmentation": {"size": [t.height, t.width], "counts": t.rles[g]},
        }
        for t in truths
        for g, (x0, y0, x1, y1) in enumerate(t.boxes.tolist())
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": t.image_id, "height": t.height, "width": t.width} for t in truths],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    return evaluation


def _pixel_oracle(scene, d):
    """Table 7's score of one detection, from pixels."""
    mask, best = scene.detection_masks[d], 0.0
    for g, instance in enumerate(scene.truth_masks):
        if scene.truth.categories[g] == scene.detections.categories[d] and not scene.truth.crowd[g]:
            best = max(best, (mask & instance).sum() / (mask | instance).sum())
    return float(scene.detections.class_scores[d]) * (best or float(scene.detections.maskious[d]))


def _results(scenes, ranking):
    rows = []
    for scene in scenes:
        found = scene.detections
        for d in range(len(found.rles)):
            row = {"image_id": found.image_id, "category_id": int(found.categories[d])}
            if ranking == "box":
                x0, y0, x1, y1 = found.boxes[d].tolist()
                row["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            else:
                size = [scene.truth.height, scene.truth.width]
                row["segmentation"] = {"size": size, "counts": found.rles[d]}
            row["score"] = {
                "box": float(found.class_scores[d]),
                "class": float(found.class_scores[d]),
                "mask": float(found.class_scores[d] * found.maskious[d]),
                "oracle": _pixel_oracle(scene, d),
            }[ranking]
            rows.append(row)
    return rows


def _scenes(make_scene, seed):
    """Crowds, images without instances, without detections, without both, and one with 260 detections."""
    rng = np.random.default_rng(seed)
    counts = [(6, 15), (0, 8), (5, 0), (0, 0), (9, 260), (3, 12), (7, 20), (1, 30), (4, 4)]
    ids = rng.permutation(100)[: len(counts)] + 1
    return [make_scene(int(i), rng, *count, classes=2) for i, count in zip(ids, counts, strict=True)]


def _same(found, expected):
    official = np.where(np.asarray(expected) == -1, np.nan, expected)
    np.testing.assert_allclose([found[name] for name in METRICS], official, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 50))])
def test_random_images_equal_pycocotools(make_scene, capsys, seed):
    scenes = _scenes(make_scene, seed)
    truths = [s.truth for s in scenes]
    assert any(t.crowd.any() for t in truths)
    assert max(np.bincount(s.detections.categories, minlength=1).max() for s in scenes) > 100
    ap = CocoAP(CATEGORIES)
    ap.update(truths, [s.detections for s in scenes])
    report = ap.summarise(bootstrap=0)
    curves = {(c.ranking, c.iou): c.precision for c in ap.curves()}
    for ranking, found in (
        ("box", report.box),
        ("class", report.mask_by_class),
        ("mask", report.mask_by_mask),
        ("oracle", report.mask_by_oracle),
    ):
        official = _official(truths, _results(scenes, ranking), "bbox" if ranking == "box" else "segm", capsys)
        _same(found, official.stats)
        for iou, row in ((0.5, 0), (0.75, 5)):
            expected = official.eval["precision"][row, :, :2, 0, 2].mean(axis=1)  # "rare" has no instance
            np.testing.assert_allclose(curves[ranking, iou], expected, rtol=0, atol=1e-12)
        if ranking != "box":
            # precision: [thresholds, recalls, categories, area ranges, detection limits]
            precision = official.eval["precision"][:, :, :, 0, 2].mean(axis=(0, 1))
            ours = [getattr(c, f"by_{ranking}") for c in report.per_category]
            np.testing.assert_allclose(ours[:2], precision[:2], rtol=0, atol=1e-12)
    assert isnan(report.per_category[2].by_class)  # no instance of "rare"
    assert report.mask_by_class["AP"] != report.mask_by_mask["AP"] != report.mask_by_oracle["AP"]
    assert report.gain == report.mask_by_mask["AP"] - report.mask_by_class["AP"]
    assert report.oracle_gap == report.mask_by_oracle["AP"] - report.mask_by_class["AP"]
    closed = report.gain / report.oracle_gap if report.oracle_gap > 0 else np.nan
    assert report.oracle_gap_closed == pytest.approx(closed, nan_ok=True)


@pytest.mark.parametrize("seed", range(2))
def test_the_split_does_not_matter(make_scene, seed):
    scenes = _scenes(make_scene, seed)
    truths, detections = [s.truth for s in scenes], [s.detections for s in scenes]
    whole = _score(CATEGORIES, truths, detections)
    split = _split_and_merge(CATEGORIES, truths, detections, seed)
    for name in ("box", "mask_by_class", "mask_by_mask", "mask_by_oracle"):
        assert getattr(split, name) == pytest.approx(getattr(whole, name), abs=0, nan_ok=True)


def test_known_true_maskiou_is_taken(make_scene):
    scenes = _scenes(make_scene, 0)
    truths, detections = [s.truth for s in scenes], [s.detections for s in scenes]
    true = {t.image_id: true_maskiou(t, d) for t, d in zip(truths, detections, strict=True)}
    given, other = CocoAP(CATEGORIES), CocoAP(CATEGORIES)
    given.update(truths, detections, true)
    other.update(truths, detections, {image_id: np.zeros_like(ious) for image_id, ious in true.items()})
    whole, report = _score(CATEGORIES, truths, detections), other.summarise(bootstrap=0)
    assert given.summarise(bootstrap=0).mask_by_oracle == pytest.approx(whole.mask_by_oracle, abs=0, nan_ok=True)
    # without a true one the oracle takes the prediction, as the mask score does but for float32's ties
    assert report.mask_by_oracle["AP"] == pytest.approx(report.mask_by_mask["AP"], abs=0.002)
    assert report.mask_by_oracle["AP"] < whole.mask_by_oracle["AP"] - 0.01
    with pytest.raises(InputError, match=f"image {truths[0].image_id}: 2 true MaskIoUs for 15 detections"):
        CocoAP(CATEGORIES).update(truths[:1], detections[:1], {truths[0].image_id: np.zeros(2)})


def test_reports_and_curves_come_in_any_order(make_scene):
    scene = make_scene(1, np.random.default_rng(0), 4, 9, 2)
    one, two = CocoAP(CATEGORIES), CocoAP(CATEGORIES)
    for ap in (one, two):
        ap.update([scene.truth], [scene.detections])
    curves, report = one.curves(ious=(0.95,)), one.summarise(bootstrap=0)
    assert two.summarise(bootstrap=0).mask_by_mask == pytest.approx(report.mask_by_mask, abs=0, nan_ok=True)
    assert two.curves(ious=(0.95,)) == curves
    with pytest.raises(InputError, match=r"IoU threshold 0\.52"):
        two.curves(ious=(0.5, 0.52))
    with pytest.raises(InputError, match="no image was scored"):
        CocoAP(CATEGORIES).curves()


def test_without_instances_a_curve_is_nan(make_scene):
    scene = make_scene(1, np.random.default_rng(0), 0, 9, 2)
    ap = CocoAP(CATEGORIES)
    ap.update([scene.truth], [scene.detections])
    assert all(len(c.precision) == 101 and isnan(c.precision[0]) for c in ap.curves())


# --- the official reference data ----------------------------------------------------------------------------


def test_official_numbers(data_dir):
    expected = json.loads((data_dir / "ap_reference" / "expected.json").read_text())
    assert expected["order"] == list(METRICS)
    for iou_type in ("segm", "bbox"):
        truths, found, listed = reference_scenes(data_dir, iou_type)
        categories = [(i, name) for i, (_, name) in enumerate(listed, start=1)]
        detections = list(found.values())
        whole = _score(categories, truths, detections)
        split = _split_and_merge(categories, truths, detections, seed=0)
        for report in (whole, split):
            _same(report.box if iou_type == "bbox" else report.mask_by_class, expected[iou_type])
            assert report.mask_by_mask == report.mask_by_class  # the reference has one score: MaskIoU 1
            assert report.gain == 0


# --- the gain -----------------------------------------------------------------------------------------------


def _informative(make_scene, images=25):
    """Images whose predicted MaskIoU is the true one, so that the mask score ranks better."""
    rng = np.random.default_rng(5)
    scenes = [make_scene(i, rng, 5, 15, 2) for i in range(1, images + 1)]
    detections = []
    for scene in scenes:
        ious = [_pixel_oracle(scene, d) / scene.detections.class_scores[d] for d in range(15)]
        detections.append(replace(scene.detections, maskious=np.array(ious, np.float32)))
    return [s.truth for s in scenes], detections


def test_the_interval_holds_the_gain_and_follows_the_seed(make_scene):
    truths, detections = _informative(make_scene)
    report, again, other = (_score(CATEGORIES, truths, detections, 300, seed) for seed in (3, 3, 4))
    low, high = report.gain_interval
    assert 0 < low < report.gain < high
    assert report.oracle_gap_closed == pytest.approx(1, abs=0.01)
    assert again.gain_interval == report.gain_interval != other.gain_interval
    assert report.gain_interval == report.intervals["gain"]["AP"]
    for name in ("box", "mask_by_class", "mask_by_mask"):
        assert all(low < getattr(report, name)[m] < high for m, (low, high) in report.intervals[name].items()
                   if m in ("AP", "AP50", "AP75"))  # fmt: skip
    assert other.gain == report.gain


def test_the_interval_holds_the_mean_gain_as_often_as_it_says(make_scene):
    """Of data sets of 25 images that are drawn from 400."""
    truths, detections = _informative(make_scene, images=400)
    everything = Matches(CATEGORIES)
    everything.update(truths, detections)
    counts = np.random.default_rng(1).multinomial(25, np.full(400, 1 / 400), 1000)
    gains = np.subtract(*(everything.ranked(by).aps(counts)[:, 0] for by in ("mask", "class")))
    intervals = []
    for seed, of_set in enumerate(counts[:40]):
        chosen = list(enumerate(np.repeat(np.arange(400), of_set)))
        found = [[replace(rows[j], image_id=i) for i, j in chosen] for rows in (truths, detections)]
        intervals.append(_score(CATEGORIES, *found, bootstrap=200, seed=seed).gain_interval)
    assert sum(low <= gains.mean() <= high for low, high in intervals) >= 34
    assert np.ptp(intervals, axis=1).mean() == pytest.approx(2 * 1.96 * np.std(gains), rel=0.25)


def test_equal_scores_gain_nothing(make_scene):
    scenes = _scenes(make_scene, 0)
    found = [replace(s.detections, maskious=np.ones(len(s.detections.rles), np.float32)) for s in scenes]
    report = _score(CATEGORIES, [s.truth for s in scenes], found, bootstrap=100)
    assert report.gain == 0
    assert report.gain_interval == (0, 0)


def test_without_bootstrap_or_instances_there_is_no_interval(make_scene):
    scene = make_scene(1, np.random.default_rng(0), 3, 9, 2)
    assert all(isnan(x) for x in _score(CATEGORIES, [scene.truth], [scene.detections]).gain_interval)
    alone = _score(CATEGORIES, [scene.truth], [scene.detections], bootstrap=10)
    assert all(isnan(alone.intervals["box"][metric][0]) for metric in RESAMPLED)  # one image does not scatter
    empty = make_scene(1, np.random.default_rng(0), 0, 9, 2)
    report = _score(CATEGORIES, [empty.truth], [empty.detections], bootstrap=10)
    assert all(isnan(value) for value in report.mask_by_class.values())
    assert all(isnan(x) for x in (report.gain, report.oracle_gap_closed, *report.gain_interval))


def test_the_oracle_gap_can_be_negative(make_scene):
    """By oracle score a false positive (0.8, predicted 0.9) passes a true one (0.9, true IoU 0.6)."""
    scene = make_scene(1, np.random.default_rng(0), 1, 2, 1)
    instance, half, elsewhere = (np.zeros((150, 180), np.uint8, order="F") for _ in range(3))
    instance[:10, :10], half[:10, :6], elsewhere[100:110, 100:110] = 1, 1, 1
    encoded = [coco_mask.encode(m)["counts"] for m in (instance, half, elsewhere)]
    truth = replace(scene.truth, rles=encoded[:1], crowd=np.array([False]), areas=np.array([100], np.float32))
    detections = replace(
        scene.detections,
        categories=np.ones(2, np.int32),
        class_scores=np.array([0.9, 0.8], np.float32),
        maskious=np.array([0.95, 0.9], np.float32),
        rles=encoded[1:],
    )
    report = _score(CATEGORIES, [truth], [detections])
    # IoU 0.6 passes the thresholds 0.5, 0.55 and 0.6; behind a false positive precision is 1/2
    assert report.mask_by_mask["AP"] == pytest.approx(0.3)
    assert report.mask_by_oracle["AP"] == pytest.approx(0.15)
    assert report.oracle_gap == pytest.approx(-0.15)
    assert isnan(report.oracle_gap_closed)


# --- bad input ----------------------------------------------------------------------------------------------


def test_bad_batches_are_refused_whole(make_scene):
    rng = np.random.default_rng(0)
    good, next_one = make_scene(1, rng, 4, 9, 2), make_scene(2, rng, 4, 9, 2)
    ap = CocoAP(CATEGORIES)
    ap.update([good.truth], [good.detections])
    larger = coco_mask.encode(np.ones((400, 400), np.uint8, order="F"))["counts"]
    foreign = replace(next_one.detections, categories=np.full(9, 8, np.int32))
    too_large = replace(next_one.detections, rles=[*next_one.detections.rles[:8], larger])
    for truths, detections, message in (
        ([good.truth], [], "image 1 was scored twice"),
        ([next_one.truth, next_one.truth], [], "image 2 was scored twice"),
        ([next_one.truth], [next_one.detections] * 2, "image 2 was scored twice"),
        ([], [next_one.detections], "detections of image 2 have no ground truth"),
        ([next_one.truth], [foreign], "image 2: category 8 is not one of the data set's 3"),
        ([next_one.truth], [too_large], "image 2: a mask does not fit 150x180"),
    ):
        with pytest.raises(InputError, match=message):
            ap.update(truths, detections)
    report, alone = ap.summarise(bootstrap=0), _score(CATEGORIES, [good.truth], [good.detections])
    assert report.box == pytest.approx(alone.box, abs=0, nan_ok=True)
    assert report.mask_by_oracle == pytest.approx(alone.mask_by_oracle, abs=0, nan_ok=True)


def test_parts_that_do_not_fit_are_refused(make_scene):
    scene = make_scene(1, np.random.default_rng(0), 4, 9, 2)
    part, other = CocoAP(CATEGORIES), CocoAP(CATEGORIES[:2])
    part.update([scene.truth], [scene.detections])
    with pytest.raises(InputError, match="image 1 was scored twice"):
        CocoAP.merge([part, CocoAP.from_bytes(part.to_bytes())])
    with pytest.raises(InputError, match="different categories"):
        CocoAP.merge([part, other])
    with pytest.raises(InputError, match="no part"):
        CocoAP.merge([])
    with pytest.raises(InputError, match="no image was scored"):
        CocoAP(CATEGORIES).summarise()


def test_large_image_ids_stay_apart(make_scene):
    """Ids made by hashing need all 63 bits; as floats these two would be one image."""
    scenes = [make_scene(2**62 + i, np.random.default_rng(i), 4, 9, 2) for i in range(2)]
    small = [make_scene(i, np.random.default_rng(i), 4, 9, 2) for i in range(2)]
    large_report, small_report = (
        _score(CATEGORIES, [s.truth for s in group], [s.detections for s in group]) for group in (scenes, small)
    )
    assert large_report.box == pytest.approx(small_report.box, abs=0, nan_ok=True)
    assert large_report.mask_by_mask == pytest.approx(small_report.mask_by_mask, abs=0, nan_ok=True)
