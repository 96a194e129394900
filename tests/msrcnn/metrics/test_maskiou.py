"""True MaskIoU against pixels; the oracle's score."""

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from msrcnn.errors import InputError
from msrcnn.metrics.maskiou import oracle_scores, overlaps, true_maskiou


@pytest.mark.parametrize("seed", range(4))
def test_true_maskiou_is_the_best_iou_of_the_pixels(make_scene, seed):
    scene = make_scene(7, np.random.default_rng(seed), instances=8, detections=25, classes=3)
    expected = np.zeros(25)
    for d, mask in enumerate(scene.detection_masks):
        for g, instance in enumerate(scene.truth_masks):
            same = scene.truth.categories[g] == scene.detections.categories[d]
            if same and not scene.truth.crowd[g]:
                iou = (mask & instance).sum() / (mask | instance).sum()
                expected[d] = max(expected[d], iou)
    found = true_maskiou(scene.truth, scene.detections)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float64
    assert (expected > 0.5).sum() >= 5


def test_overlaps_name_the_instance_and_say_how_well_each_is_covered(make_scene):
    scene = make_scene(1, np.random.default_rng(11), instances=9, detections=20, classes=3)
    truth, found, overlap = scene.truth, scene.detections, overlaps(scene.truth, scene.detections)
    ious = np.zeros((20, 9))
    for d, g in np.ndindex(20, 9):
        if truth.categories[g] == found.categories[d] and not truth.crowd[g]:
            a, b = scene.detection_masks[d], scene.truth_masks[g]
            ious[d, g] = (a & b).sum() / (a | b).sum()
    np.testing.assert_allclose(overlap.true, ious.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(overlap.covered, np.where(truth.crowd, np.nan, ious.max(axis=0)), rtol=1e-12)
    hit = overlap.true > 0
    assert (overlap.instance[hit] == ious.argmax(axis=1)[hit]).all()
    assert truth.crowd.any()
    assert not truth.crowd[overlap.instance[overlap.instance >= 0]].any()


def test_only_instances_of_the_class_that_are_no_crowd_count(make_scene):
    scene = make_scene(1, np.random.default_rng(0), instances=1, detections=2, classes=1)
    perfect = replace(scene.detections, rles=scene.truth.rles * 2, categories=np.array([1, 2], np.int32))
    single = replace(scene.truth, crowd=np.array([False]))
    np.testing.assert_array_equal(true_maskiou(single, perfect), [1, 0])
    np.testing.assert_array_equal(true_maskiou(replace(single, crowd=np.array([True])), perfect), [0, 0])


def test_several_detections_share_an_instance(make_scene):
    scene = make_scene(1, np.random.default_rng(0), instances=1, detections=3, classes=1)
    truth = replace(scene.truth, crowd=np.array([False]))
    copies = replace(scene.detections, rles=truth.rles * 3, categories=np.ones(3, np.int32))
    np.testing.assert_array_equal(true_maskiou(truth, copies), [1, 1, 1])


@pytest.mark.parametrize(("instances", "detections"), [(0, 5), (5, 0), (0, 0)])
def test_no_instance_or_no_detection(make_scene, instances, detections):
    scene = make_scene(1, np.random.default_rng(0), instances, detections, classes=2)
    np.testing.assert_array_equal(true_maskiou(scene.truth, scene.detections), np.zeros(detections))


def test_a_mask_larger_than_the_image_is_refused(make_scene):
    scene = make_scene(12, np.random.default_rng(0), instances=1, detections=1, classes=1)
    larger = coco_mask.encode(np.ones((400, 400), np.uint8, order="F"))["counts"]
    with pytest.raises(InputError, match="image 12: a mask does not fit 150x180 pixels"):
        true_maskiou(scene.truth, replace(scene.detections, rles=[larger]))


def test_cut_off_counts_end_instead_of_hanging(make_scene):
    """pycocotools' IoU loops for ever on these; the missing rest is background."""
    scene = make_scene(1, np.random.default_rng(0), instances=1, detections=1, classes=1)
    truth = replace(scene.truth, crowd=np.array([False]))
    cut = replace(scene.detections, rles=[b"11"])  # one pixel of background, one of mask
    pixel = np.zeros_like(scene.truth_masks[0])
    pixel[1, 0] = True
    expected = (pixel & scene.truth_masks[0]).sum() / (pixel | scene.truth_masks[0]).sum()
    assert true_maskiou(truth, cut) == [expected]


def test_images_are_not_mixed_up(make_scene):
    one, two = (make_scene(i, np.random.default_rng(0), 1, 1, 1) for i in (1, 2))
    with pytest.raises(InputError, match="truth of image 1 came with detections of image 2"):
        true_maskiou(one.truth, two.detections)


def test_the_oracle_is_no_upper_bound():
    """The counter-example: a false positive keeps its prediction and passes a true positive."""
    class_scores, predicted = np.array([0.8, 0.9], np.float32), np.array([0.9, 0.95], np.float32)
    true = np.array([0.0, 0.6])
    scores = oracle_scores(class_scores, predicted, true)
    np.testing.assert_allclose(scores, [0.72, 0.54], rtol=1e-6)
    by_mask_score = class_scores * predicted
    assert by_mask_score[1] > by_mask_score[0]  # ranked rightly by prediction, wrongly by the oracle
    assert scores[0] > scores[1]
