"""Batches: sizes by hand, pixels, boxes and masks kept together through resizing and mirroring, damaged images."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image

from msrcnn.config import DataConfig
from msrcnn.data.batching import (
    DIVISOR,
    at_scale,
    canvas_for,
    canvases,
    draw,
    make_batch,
    one_canvas_batches,
    own_canvas,
    resized_size,
)
from msrcnn.errors import InputError
from msrcnn.masks import sample_on_rois
from msrcnn.rows import ImageTruth

R18, R50 = DataConfig(), DataConfig(short_side=800, long_side=1333)
PLAIN = DataConfig(short_side=64, long_side=96)
EVEN, ODD = 1000, 1001  # draws of images that are not mirrored and that are


def encode(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def truth_of(image_id: int, masks: np.ndarray, crowd: tuple[int, ...] = ()) -> ImageTruth:
    """The row of masks [G, H, W] that are rectangles or more."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for i, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return ImageTruth(
        image_id, masks.shape[1], masks.shape[2], np.arange(len(masks)),
        np.arange(1, len(masks) + 1, dtype=np.int32), boxes, masks.sum((1, 2)).astype(np.float32),
        np.isin(np.arange(len(masks)), crowd),
        [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks],
    )  # fmt: skip


def rectangles(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


@pytest.mark.parametrize(
    ("config", "size", "want"),
    [
        (R18, (480, 640), (600, 800)),
        (R18, (427, 640), (600, 899)),
        (R18, (640, 427), (899, 600)),
        (R18, (600, 1000), (600, 1000)),
        (R18, (300, 640), (469, 1000)),  # the longer side decides
        (R18, (1200, 1200), (600, 600)),
        (R18, (1, 5000), (1, 1000)),
        (R50, (480, 640), (800, 1067)),
        (R50, (640, 480), (1067, 800)),
        (R50, (427, 640), (800, 1199)),
        (R50, (333, 640), (694, 1333)),
    ],
)
def test_resized_size_by_hand(config: DataConfig, size: tuple[int, int], want: tuple[int, int]) -> None:
    assert resized_size(*size, config) == want


@pytest.mark.parametrize("config", [R18, R50, PLAIN, DataConfig(160, 160), DataConfig(100, 1500)])
def test_canvas_holds_every_image_and_is_the_smallest_that_does(config: DataConfig) -> None:
    shapes = canvases(config)
    assert len(set(shapes)) == len(shapes) <= 8
    assert all(side % DIVISOR == 0 for shape in shapes for side in shape)
    rng = np.random.default_rng(0)
    used = set()
    for _ in range(400):
        count = int(rng.integers(1, 4))
        aspect = np.where(rng.random(count) < 0.5, rng.choice([1, 4 / 3, 3 / 4, 3 / 2, 2 / 3], count),
                          np.exp(rng.normal(0, 0.6, count)))  # fmt: skip
        sizes = [resized_size(max(1, int(500 * a)), 500, config) for a in aspect]
        height, width = canvas_for(sizes, config)
        used.add((height, width))
        assert all(h <= height and w <= width for h, w in sizes)
        assert all(h * w >= height * width for h, w in shapes if all(a <= h and b <= w for a, b in sizes)), (
            "a smaller one holds them too"
        )
    assert used == set(shapes)  # none is there for nothing


def test_common_shapes_waste_little() -> None:
    """COCO's images of 640 x 480 and 640 x 427."""
    assert canvas_for([(600, 800)], R18) == (608, 800)
    assert canvas_for([(600, 899)], R18) == (608, 928)
    assert canvas_for([(899, 600)], R18) == (928, 608)
    assert canvas_for([(600, 800), (800, 600)], R18) == (1024, 1024)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_batches_of_one_canvas(most: int) -> None:
    rng = np.random.default_rng(most)
    sides = rng.choice([300, 427, 480, 640], (50, 2)).tolist()
    truths = [ImageTruth.unknown(7, height, width) for height, width in sides]
    batches = one_canvas_batches(truths, R18, most)
    assert sorted(place for places in batches for place in places) == list(range(50))
    assert batches == sorted(batches)
    full = 0
    for places in batches:
        (canvas,) = {own_canvas(truths[place], R18) for place in places}
        assert canvas == canvas_for([resized_size(*sides[place], R18) for place in places], R18)
        assert places == sorted(places)
        full += len(places) == most
    kinds = {own_canvas(truth, R18) for truth in truths}
    assert len(kinds) > 4
    assert 1 <= len(batches) - full <= len(kinds) or most == 1


def test_a_standing_image_does_not_make_lying_ones_square() -> None:
    """Every fourth of COCO's images stands."""
    truths = [ImageTruth.unknown(i, *((640, 480) if i % 4 == 0 else (480, 640))) for i in range(32)]
    batches = one_canvas_batches(truths, R18, 8)
    assert [len(places) for places in batches] == [8] * 4
    canvases = [canvas_for([resized_size(truths[i].height, truths[i].width, R18) for i in b], R18) for b in batches]
    assert sorted(canvases) == [(608, 800)] * 3 + [(800, 608)]


def test_pixels_are_resized_padded_and_in_rgb_order() -> None:
    wide, small = picture(48, 96, 1), picture(64, 64, 2)
    truths = [truth_of(5, np.zeros((0, 48, 96), bool)), truth_of(6, np.zeros((0, 64, 64), bool))]
    batch = make_batch([encode(Image.fromarray(wide)), encode(Image.fromarray(small))], truths, PLAIN)
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[48, 96], [64, 64]]
    assert batch.image_ids.tolist() == [5, 6]
    assert batch.targets is None
    assert np.array_equal(batch.images[0, :, :48].permute(1, 2, 0).numpy(), wide)  # not resized, so the same bits
    assert np.array_equal(batch.images[1, :, :, :64].permute(1, 2, 0).numpy(), small)
    assert not batch.images[0, :, 48:].any()
    assert not batch.images[1, :, :, 64:].any()


def test_boxes_and_areas_follow_the_image() -> None:
    """128 x 160 pixels become 64 x 80; the second image has fewer instances, and one of them is a crowd.

    Areas are those of the masks, of which the MaskIoU target takes shares; an annotated one is a polygon's.
    """
    first = truth_of(1, rectangles(128, 160, (20, 40, 60, 100), (0, 0, 160, 128), (159, 127, 160, 128)))
    second = truth_of(2, rectangles(64, 64, (0, 0, 9, 9), (10, 20, 30, 40)), crowd=(0,))
    first, second = (replace(truth, areas=truth.areas * 1.2) for truth in (first, second))
    images = [encode(Image.fromarray(picture(128, 160))), encode(Image.fromarray(picture(64, 64)))]
    batch = make_batch(images, [first, second], PLAIN, draws=[EVEN, ODD])
    assert batch.flipped.tolist() == [False, True]
    assert batch.draws.tolist() == [EVEN, ODD]
    targets = batch.targets
    assert targets is not None
    assert targets.valid.sum(1).tolist() == [3, 1]
    assert targets.boxes[0, :3].tolist() == [[10, 20, 30, 50], [0, 0, 80, 64], [79.5, 63.5, 80, 64]]
    assert targets.labels[0, :3].tolist() == [1, 2, 3]
    assert targets.areas[0, :3].tolist() == [2400, 128 * 160, 1]
    assert targets.boxes[1, 0].tolist() == [64 - 30, 20, 64 - 10, 40]
    assert targets.labels[1, 0] == 2
    assert targets.areas[1, 0] == 400
    assert not targets.boxes[~targets.valid].any()
    assert not targets.masks.crops[~targets.valid].any()


def test_mirroring_mirrors_pixels_boxes_and_masks_alike() -> None:
    """What a mirrored batch holds is what the same batch of the mirrored image and masks holds unmirrored."""
    y, x = np.mgrid[:90, :110]
    masks = np.stack([(y - 40) ** 2 + (x - 30) ** 2 < 400, (y > x) & (y < x + 30)])
    image = picture(90, 110, 3)
    mirrored = make_batch([encode(Image.fromarray(image))], [truth_of(1, masks)], PLAIN, [ODD])
    by_hand = make_batch(
        [encode(Image.fromarray(np.ascontiguousarray(image[:, ::-1])))], [truth_of(1, masks[:, :, ::-1])], PLAIN,
        [EVEN],
    )  # fmt: skip
    assert mirrored.flipped.tolist() == [True]
    assert by_hand.flipped.tolist() == [False]
    difference = (mirrored.images.int() - by_hand.images.int()).abs()
    assert difference.max() <= 1  # rounding of the resizing
    ours, theirs = mirrored.targets, by_hand.targets
    assert ours is not None
    assert theirs is not None
    torch.testing.assert_close(ours.boxes, theirs.boxes)
    index, slot = torch.zeros(2, dtype=torch.int64), torch.arange(2)
    got = sample_on_rois(ours.masks, mirrored, index, slot, ours.boxes[0, :2], 28)
    want = sample_on_rois(theirs.masks, by_hand, index, slot, theirs.boxes[0, :2], 28)
    assert want.mean() > 0.3
    assert (got - want).abs().mean() < 5e-3
    half = masks[0, :, :30].sum() / masks[0].sum()  # and the masks sit where the boxes are
    assert want[0, :, 14:].sum() / want[0].sum() == pytest.approx(half, abs=0.03)


def test_mirroring_only_in_training_and_only_if_wanted() -> None:
    images, truths = [encode(Image.fromarray(picture(64, 80)))], [truth_of(1, rectangles(64, 80, (0, 0, 9, 9)))]
    testing = make_batch(images, truths, PLAIN)
    assert not testing.flipped.any()
    still = make_batch(images, truths, DataConfig(64, 96, flip=False), [ODD])
    assert not still.flipped.any()
    assert torch.equal(testing.images, still.images)


SCALES = replace(PLAIN, short_sides=(32, 48, 64))


def test_scales_are_drawn_evenly_and_apart_from_mirroring() -> None:
    drawn = [draw(7, epoch, image) for epoch in range(3) for image in range(200)]
    sides = np.array([at_scale(SCALES, d).short_side for d in drawn])
    odd = np.array(drawn) % 2 == 1
    for side in SCALES.short_sides:
        assert (sides == side).mean() == pytest.approx(1 / 3, abs=0.06)
        assert odd[sides == side].mean() == pytest.approx(0.5, abs=0.1)
    assert len(set(sides[::200])) > 1 or len(set(sides[1::200])) > 1  # an image's differ from epoch to epoch
    assert at_scale(PLAIN, 5) == PLAIN


def test_boxes_and_masks_follow_the_scale() -> None:
    """One image at three scales in a batch: the same instance, on the canvas of the largest."""
    y, x = np.mgrid[:80, :120]
    masks = np.stack([(y - 40) ** 2 + (x - 50) ** 2 < 900])
    data, truth = encode(Image.fromarray(picture(80, 120))), truth_of(1, masks)
    draws = [0, 2, 4]  # not mirrored; 32, 48 and 64 pixels
    batch = make_batch([data] * 3, [truth] * 3, SCALES, draws)
    assert batch.sizes.tolist() == [[32, 48], [48, 72], [64, 96]]
    assert batch.images.shape[2:] == (64, 96)
    for b, side in enumerate(SCALES.short_sides):
        alone = make_batch([data], [truth], replace(PLAIN, short_side=side), [0])
        height, width = batch.sizes[b].int().tolist()
        assert torch.equal(batch.images[b, :, :height, :width], alone.images[0, :, :height, :width])
        assert not batch.images[b, :, height:].any()
        assert not batch.images[b, :, :, width:].any()
    assert batch.targets is not None
    boxes = batch.targets.boxes[:, 0] / batch.scales.flip(1).repeat(1, 2)  # in image pixels again
    torch.testing.assert_close(boxes, torch.from_numpy(truth.boxes).expand(3, -1))
    slot = torch.zeros(3, dtype=torch.int64)
    covered = sample_on_rois(batch.targets.masks, batch, torch.arange(3), slot, batch.targets.boxes[:, 0], 28)
    for one in covered[1:]:
        torch.testing.assert_close(one, covered[0], atol=1e-4, rtol=0)


def test_several_scales_have_the_canvases_of_each_and_are_for_training_alone() -> None:
    each = [replace(R50, short_side=side) for side in (640, 800)]
    several = replace(R50, short_sides=(640, 800))
    assert set(canvases(several)) == {shape for config in each for shape in canvases(config)}
    assert len(canvases(several)) <= 2 * 8
    truths = [ImageTruth.unknown(i, *size) for i, size in enumerate([(480, 640), (640, 480), (333, 640), (500, 500)])]
    for truth in truths:
        for drawn, config in zip((0, 2), each, strict=True):
            shape, alone = own_canvas(truth, several, drawn), own_canvas(truth, config)
            size = resized_size(truth.height, truth.width, config)
            assert all(side <= room for side, room in zip(size, shape, strict=True))
            assert shape[0] * shape[1] <= alone[0] * alone[1]
            assert own_canvas(truth, several) == own_canvas(truth, R50)
    assert one_canvas_batches(truths, several, 2) == one_canvas_batches(truths, R50, 2)
    images = [encode(Image.fromarray(picture(64, 80)))]
    testing = [make_batch(images, [ImageTruth.unknown(0, 64, 80)], config) for config in (PLAIN, SCALES)]
    assert torch.equal(testing[0].images, testing[1].images)


def test_an_image_does_not_depend_on_its_place_in_the_batch() -> None:
    images = [encode(Image.fromarray(picture(64, 80, seed))) for seed in range(3)]
    truths = [truth_of(i, rectangles(64, 80, (i, 2, 30 + i, 40))) for i in range(3)]
    draws = [draw(0, 4, i) for i in range(3)]
    order = [2, 0, 1]
    one = make_batch(images, truths, PLAIN, draws)
    other = make_batch([images[i] for i in order], [truths[i] for i in order], PLAIN, [draws[i] for i in order])
    assert torch.equal(one.images[order], other.images)
    assert torch.equal(one.flipped[order], other.flipped)
    assert torch.equal(one.draws[order], other.draws)
    assert one.targets is not None
    assert other.targets is not None
    assert torch.equal(one.targets.boxes[order], other.targets.boxes)


def test_without_instances_there_are_no_slots() -> None:
    batch = make_batch(
        [encode(Image.fromarray(picture(64, 64)))], [truth_of(1, rectangles(64, 64, (0, 0, 5, 5)), (0,))], PLAIN, [0]
    )
    assert batch.targets is not None
    assert batch.targets.boxes.shape == (1, 0, 4)
    assert batch.targets.labels.shape == (1, 0)


def test_draws_are_fair_and_unlike() -> None:
    draws = np.array([draw(s, e, i) for s in range(4) for e in range(10) for i in range(100)], dtype=np.uint64)
    assert len(set(draws.tolist())) == len(draws)
    assert draws.max() < 2**63
    bits = (draws[:, None] >> np.arange(63, dtype=np.uint64)) & np.uint64(1)  # [4000, 63]
    assert np.abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(len(draws))
    flips = bits[:, 0].reshape(4, 10, 100).astype(float)
    for axis in range(3):  # from seed to seed, epoch to epoch, image to image
        a, b = np.delete(flips, -1, axis), np.delete(flips, 0, axis)
        assert abs((a == b).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(a.size)


def test_an_image_of_another_size_than_stated_is_refused() -> None:
    with pytest.raises(InputError, match="image 77: 80 x 64 pixels where 64 x 80 are stated; make the shards again"):
        make_batch([encode(Image.fromarray(picture(64, 80)))], [truth_of(77, np.zeros((0, 80, 64), bool))], PLAIN)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_undecodable_images_are_refused_in_one_line() -> None:
    """Cut short, overwritten or not an image at all: in every form that a data set may hold."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(picture(64, 80))
    files = {form: encode(rgb, form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}
    broken = [b"", b"not an image", bytes(500)]
    broken += [data[: len(data) // 2] for data in files.values()]
    truth = truth_of(42, np.zeros((0, 64, 80), bool))
    for data in broken:
        with pytest.raises(InputError, match="image 42: ") as caught:
            make_batch([data], [truth], PLAIN)
        assert "\n" not in str(caught.value)
    for data in files.values():
        for _ in range(60):  # damage may leave an image that decodes; no other exception may come out
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(0, min(len(data), 200), 4)] = rng.integers(0, 256, 4)
            with contextlib.suppress(InputError):
                make_batch([damaged.tobytes()], [truth], PLAIN)
