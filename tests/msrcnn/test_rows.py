"""Rows that no metric could use are refused with the image and the field."""

from dataclasses import replace

import numpy as np
import pytest

from msrcnn.errors import InputError


@pytest.fixture
def scene(make_scene):
    return make_scene(31, np.random.default_rng(0), instances=2, detections=3, classes=2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["class_scores", "maskious"])
def test_a_score_without_rank(scene, field, value):
    scores = np.array([0.5, value, 0.5], np.float32)
    with pytest.raises(InputError, match=rf"detections of image 31: {field}\[1\] is not finite"):
        replace(scene.detections, **{field: scores})


def test_a_further_head_s_score_without_rank(scene):
    values = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, np.nan]], np.float32)
    with pytest.raises(InputError, match=r"detections of image 31: head_maskious\[2\] is not finite"):
        replace(scene.detections, head_maskious=values)
    with pytest.raises(InputError, match="head_maskious has 2 entries, expected 3"):
        replace(scene.detections, head_maskious=values[:2])


def test_the_detections_of_one_head(scene):
    values = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32)
    many = replace(scene.detections, head_maskious=values)
    assert (many.heads, scene.detections.heads) == (2, 0)
    found = many.of_head(1)
    assert found.heads == 0
    assert np.array_equal(found.maskious, values[:, 1])
    assert np.array_equal(found.mask_scores, scene.detections.class_scores * values[:, 1])


def test_columns_of_different_length(scene):
    with pytest.raises(InputError, match="detections of image 31: rles has 2 entries, expected 3"):
        replace(scene.detections, rles=scene.detections.rles[:2])
    with pytest.raises(InputError, match="truth of image 31: crowd has 1 entries, expected 2"):
        replace(scene.truth, crowd=scene.truth.crowd[:1])
    with pytest.raises(InputError, match=r"boxes have shape \(2, 3\), expected \(2, 4\)"):
        replace(scene.truth, boxes=scene.truth.boxes[:, :3])


def test_mask_score_is_the_stored_float32(scene):
    found = scene.detections
    assert found.mask_scores.dtype == np.float32
    for i, score in enumerate(found.mask_scores):
        assert score == np.float32(float(found.class_scores[i]) * float(found.maskious[i]))
