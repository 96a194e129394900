"""TIDE's errors, each made on purpose; and the wiring to the same AP50 as everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from msrcnn.errors import InputError
from msrcnn.metrics.tide import ERRORS, tide_errors
from msrcnn.rows import ImageDetections, ImageTruth

CATEGORIES = ((1, "disc"), (2, "ring"))
SIZE = 100


def _rle(top, left, height=20, width=20):
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    return coco_mask.encode(mask)["counts"]


def _corners(count):
    return np.tile(np.array([[0, 0, 20, 20]], np.float32), (count, 1))


def _image(found, maskious=None):
    """Two discs and a ring; `found` are (category, class score, run lengths)."""
    truth = ImageTruth(
        1, SIZE, SIZE, np.arange(1, 4), np.array([1, 1, 2], np.int32), _corners(3), np.full(3, 400, np.float32),
        np.zeros(3, bool), [_rle(0, 0), _rle(0, 50), _rle(50, 0)],
    )  # fmt: skip
    scores = np.array([s for _, s, _ in found], np.float32)
    detections = ImageDetections(
        1, np.array([c for c, _, _ in found], np.int32), _corners(len(found)), scores,
        np.ones(len(found), np.float32) if maskious is None else np.array(maskious, np.float32),
        [rle for _, _, rle in found],
    )  # fmt: skip
    return truth, detections


PERFECT = [(1, 0.9, _rle(0, 0)), (1, 0.8, _rle(0, 50)), (2, 0.9, _rle(50, 0))]


def test_perfect_detections_lose_nothing():
    truth, detections = _image(PERFECT)
    lost = tide_errors(CATEGORIES, [truth], [detections], "class")
    assert list(lost) == list(ERRORS)
    assert all(value == 0 for value in lost.values())


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("Cls", (1, 0.95, _rle(50, 0))),  # the ring's mask as a disc
        ("Loc", (1, 0.95, _rle(0, 0, height=8))),  # a disc's upper two fifths
        ("Both", (1, 0.95, _rle(50, 0, height=8))),  # the ring's upper two fifths as a disc
        ("Dupe", (1, 0.85, _rle(0, 0, height=18))),  # a disc a second time
        ("Bkg", (1, 0.95, _rle(80, 80))),
    ],
)
def test_each_kind_of_false_positive_is_named(kind, wrong):
    truth, detections = _image([wrong, *PERFECT])
    lost = tide_errors(CATEGORIES, [truth], [detections], "class")
    assert lost[kind] == max(lost[k] for k in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")) > 0.02
    assert lost["FP"] >= lost[kind] - 1e-12
    assert lost["FN"] == 0


def test_a_missing_instance_is_named():
    truth, detections = _image(PERFECT[:1] + PERFECT[2:])
    lost = tide_errors(CATEGORIES, [truth], [detections], "mask")
    # one of the two discs: AP50 of the discs is the 51 of 101 recalls up to a half, then 0
    assert lost["Miss"] == pytest.approx(50 / 101 / 2, abs=1e-6)
    assert lost["FN"] == lost["Miss"]
    assert lost["FP"] == 0


def test_rankings_differ_by_what_they_put_first():
    """Ranked by mask score the poor mask comes last and costs nothing."""
    truth, detections = _image([(1, 0.95, _rle(80, 80)), *PERFECT], maskious=[0.1, 1, 1, 1])
    by_class, by_mask = (tide_errors(CATEGORIES, [truth], [detections], r) for r in ("class", "mask"))
    assert by_class["Bkg"] > 0.1
    assert by_mask["Bkg"] == 0


def test_images_without_a_detection_count_as_missed():
    truth, detections = _image(PERFECT)
    other = replace(truth, image_id=2, annotation_ids=truth.annotation_ids + 10)
    lost = tide_errors(CATEGORIES, [truth, other], [detections], "class")
    assert lost["Miss"] == pytest.approx(0.5, abs=0.01)


def test_bad_input_is_refused():
    truth, detections = _image(PERFECT)
    with pytest.raises(InputError, match="ranking 'score'"):
        tide_errors(CATEGORIES, [truth], [detections], "score")
    with pytest.raises(InputError, match="the sample has no image"):
        tide_errors(CATEGORIES, [], [], "class")
    with pytest.raises(InputError, match="image 1 was scored twice"):
        tide_errors(CATEGORIES, [truth, truth], [detections], "class")
