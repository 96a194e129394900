"""Detections drawn on an image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from msrcnn import Prediction
from msrcnn.rle import encode_crops
from pipelines.colours import colour_of
from pipelines.overlay import FILL, Overlay, _fitting, _font, _overlap

IDS = (5, 7, 9)
NAMES = {5: "disk", 7: "ring", 9: "star"}


def prediction(masks: np.ndarray, categories: list[int], scores: list[float]) -> Prediction:
    """Of bool [N, H, W] masks, best score first."""
    count, height, width = masks.shape
    rles = encode_crops(list(masks), [(0, 0)] * count, height, width)
    numbers = np.array(scores, np.float32)
    return Prediction("image", height, width, np.zeros((count, 4), np.float32), np.array(categories), tuple(
        NAMES[c] for c in categories), numbers, np.full(count, 0.3, np.float32), np.ones(count, np.float32), numbers,
        tuple(rles))  # fmt: skip


def rectangles(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def drawn(size: tuple[int, int], found: Prediction, grey: int = 100) -> np.ndarray:
    return np.asarray(Overlay(IDS).draw(Image.new("RGB", size[::-1], (grey,) * 3), found)).astype(int)


def test_masks_are_filled_and_outlined_and_nothing_else_changes_but_labels():
    size = (300, 400)
    masks = rectangles(size, (50, 100, 150, 200), (250, 150, 350, 250))
    pixels = drawn(size, prediction(masks, [5, 9], [0.9, 0.8]))
    for mask, number in zip(masks, (1, 3), strict=True):
        colour = colour_of(number).astype(np.uint8).astype(int)
        y, x = (int(v.mean()) for v in np.nonzero(mask))
        assert np.abs(pixels[y, x] - (100 * (256 - FILL) + colour * FILL) / 256).max() <= 1
        assert (pixels[y, np.flatnonzero(mask[y])[0]] == colour).all()
    changed = (pixels != 100).any(2)
    assert changed[masks.any(0)].all()
    outside = changed & ~masks.any(0)
    ys, xs = np.nonzero(outside)
    assert 0 < outside.sum() < 2 * 20 * 150  # two labels
    for left, right, top in ((50, 250, 100), (250, 400, 150)):  # above their masks
        label = (xs >= left) & (xs < right)
        assert ys[label].max() < top
        assert ys[label].min() >= top - 20


def test_nothing_found_changes_nothing():
    found = prediction(np.zeros((0, 30, 40), bool), [], [])
    assert (drawn((30, 40), found) == 100).all()
    empty = prediction(np.zeros((1, 30, 40), bool), [5], [0.9])  # a mask without a pixel
    assert (drawn((30, 40), empty) == 100).all()


def test_the_better_detection_lies_on_top():
    size = (200, 200)
    masks = rectangles(size, (50, 50, 150, 150), (50, 50, 150, 150))
    one = drawn(size, prediction(masks, [5, 9], [0.9, 0.8]))
    assert (one[100, 50] == colour_of(1).astype(np.uint8)).all()


@pytest.mark.parametrize("size", [(40, 30), (160, 160), (600, 800), (3000, 4000), (50, 3000)])
def test_any_size_of_image_keeps_its_size_and_gets_text_that_can_be_read(size):
    height, width = size
    found = prediction(rectangles(size, (width // 4, height // 4, width * 3 // 4, height * 3 // 4)), [7], [0.5])
    pixels = drawn(size, found)
    assert pixels.shape == (height, width, 3)
    changed = (pixels != 100).any(2)
    changed[found.masks()[0]] = False
    rows = np.flatnonzero(changed.any(1))
    if width >= 100:
        assert len(rows) >= max(10, (height * width) ** 0.5 / 60)


def test_labels_never_cover_one_another_and_are_left_out_where_no_room_is():
    font, taken, covered = _font(12), [], np.zeros((120, 200), bool)
    texts = [("disk 0.90 = 0.95 x 0.95", True), ("disk 0.90", False), ("0.90", False)]
    chosen = []
    for _ in range(40):
        label = _fitting(iter(texts), (80, 50, 120, 70), taken, covered, font)
        if label is None:
            break
        chosen.append(label[0])
        taken.append(label[1])
    assert label is None
    assert chosen[0] == "disk 0.90"  # the longest is wider than the mask
    assert not any(_overlap(a, b) for i, a in enumerate(taken) for b in taken[:i])
    assert all(0 <= r[0] < r[2] <= 200 and 0 <= r[1] < r[3] <= 120 for r in taken)


def test_a_label_is_shortened_where_only_a_short_one_has_room():
    texts, beside = [("disk 0.90", False), ("0.90", False)], [(40, 0, 100, 40)]
    text, _ = _fitting(iter(texts), (0, 10, 40, 30), beside, np.zeros((40, 100), bool), _font(12))
    assert text == "0.90"


def test_a_label_goes_where_it_hides_least():
    covered = np.zeros((120, 200), bool)
    covered[:50] = True  # another mask lies above
    _, rect = _fitting(iter([("disk 0.90", False)]), (80, 50, 120, 70), [], covered, _font(12))
    assert rect[1] >= 50


def label_pixels(overlay: Overlay, count: int) -> float:
    """Of a label, on average, where so many small masks are in an image."""
    size = (400, 400)
    corners = [(10 + 50 * (i % 8), 20 + 30 * (i // 8)) for i in range(count)]
    found = prediction(rectangles(size, *((x, y, x + 8, y + 8) for x, y in corners)), [5] * count, [0.9] * count)
    pixels = np.asarray(overlay.draw(Image.new("RGB", size, (100,) * 3), found))
    return ((pixels != 100).any(2) & ~found.masks().any(0)).sum() / count


def test_a_single_category_is_not_named_and_in_a_crowd_none_is():
    few, crowd = label_pixels(Overlay(IDS), 4), label_pixels(Overlay(IDS), 96)
    assert label_pixels(Overlay((5,)), 4) < 0.7 * few
    assert crowd < 0.7 * few


def test_instances_of_a_single_category_differ_in_colour():
    size = (100, 300)
    masks = rectangles(size, (10, 40, 60, 90), (110, 40, 160, 90))
    image = Image.new("RGB", size[::-1], (100,) * 3)
    pixels = np.asarray(Overlay((5,)).draw(image, prediction(masks, [5, 5], [0.9, 0.8])))
    assert (pixels[65, 10] != pixels[65, 110]).any()
