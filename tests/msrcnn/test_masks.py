"""Masks sampled on RoIs, the MaskIoU target, and pasting: each against a dense reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

import msrcnn.masks as masks_module
from msrcnn.masks import POINTS_PER_BIN, pack_crops, paste_and_encode, sample_on_rois, whole_instance_iou
from msrcnn.rle import decode_crop, encode_crops
from msrcnn.structures import Batch, RaggedMasks

HEIGHT, WIDTH = 150, 210


def blobs(count: int, rng: np.random.Generator, smallest: float = 6) -> np.ndarray:
    """Unions of ellipses, some cut by the border, bool [count, HEIGHT, WIDTH]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found = np.zeros((count, HEIGHT, WIDTH), bool)
    for mask in found:
        at, size = rng.uniform([0, 0], [HEIGHT, WIDTH]), rng.uniform(smallest, 50)
        for _ in range(3):
            cy, cx = at + rng.normal(0, size / 2, 2)
            ry, rx = rng.uniform(0.4, 1.0, 2) * size
            mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        mask[int(at[0]), int(at[1])] = True  # never empty
    return found


def ragged(images: list[np.ndarray]) -> RaggedMasks:
    crops = []
    for masks in images:
        rles = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks]
        crops.append([decode_crop(rle, HEIGHT) for rle in rles])
    return pack_crops(crops, max(len(m) for m in images) + 1)  # one slot stays empty


def batch_of(sizes: list[tuple[float, float]], flipped: list[bool]) -> Batch:
    """The geometry of images of HEIGHT x WIDTH pixels that were resized to `sizes`."""
    count = len(sizes)
    return Batch(
        images=torch.zeros(count, 3, 1, 1, dtype=torch.uint8),
        sizes=torch.tensor(sizes),
        image_sizes=torch.tensor([[float(HEIGHT), float(WIDTH)]] * count),
        flipped=torch.tensor(flipped),
        image_ids=torch.arange(count),
        draws=torch.zeros(count, dtype=torch.int64),
    )


def covered(mask: np.ndarray, box: Tensor, size: tuple[float, float], flip: bool, bins: int, points: int) -> np.ndarray:
    """How much of each bin of a RoI a mask covers, one point at a time on the mirrored dense mask, [bins, bins]."""
    mask = mask[:, ::-1] if flip else mask
    x0, y0, x1, y1 = box.double().tolist()
    hits = np.zeros((bins, bins))
    for i in range(bins * points):
        for j in range(bins * points):
            y = (y0 + (y1 - y0) * (i + 0.5) / (bins * points)) * HEIGHT / size[0]
            x = (x0 + (x1 - x0) * (j + 0.5) / (bins * points)) * WIDTH / size[1]
            if 0 <= y < HEIGHT and 0 <= x < WIDTH:
                hits[i // points, j // points] += mask[int(y), int(x)]
    return hits / points**2


def rois_near(masks: np.ndarray, size: tuple[float, float], flip: bool, rng: np.random.Generator) -> Tensor:
    """A jittered box [n, 4] about each mask in network pixels, sometimes beyond the image."""
    boxes = []
    for mask in masks[:, :, ::-1] if flip else masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
        side = np.tile(box[2:] - box[:2], 2)
        box += rng.uniform(-0.25, 0.25, 4) * side
        boxes.append(box * np.tile([size[1] / WIDTH, size[0] / HEIGHT], 2))
    return torch.tensor(np.array(boxes), dtype=torch.float32)


def test_sampling_equals_a_slow_reading_of_the_dense_mask() -> None:
    rng = np.random.default_rng(0)
    images = [blobs(3, rng), blobs(2, rng)]
    sizes, flipped = [(331.0, 463.0), (97.0, 136.0)], [True, False]
    rois = [rois_near(m, s, f, rng) for m, s, f in zip(images, sizes, flipped, strict=True)]
    tiny = rois[0][:1].mean(1, keepdim=True).expand(1, 4) + torch.tensor([[0.0, 0, 0.3, 0.2]])  # less than a pixel
    far = torch.tensor([[-60.0, -50, 30, 20]])  # mostly outside the image
    boxes = torch.cat([rois[0], tiny, far, rois[1]])
    image, instance = torch.tensor([0] * 5 + [1] * 2), torch.tensor([0, 1, 2, 0, 1, 0, 1])
    got = sample_on_rois(ragged(images), batch_of(sizes, flipped), image, instance, boxes, 10)
    for n, (b, g) in enumerate(zip(image.tolist(), instance.tolist(), strict=True)):
        want = covered(images[b][g], boxes[n], sizes[b], flipped[b], 10, POINTS_PER_BIN)
        assert np.abs(got[n].numpy() - want).max() <= 1 / POINTS_PER_BIN**2 + 1e-6  # one point, by rounding
        assert (np.abs(got[n].numpy() - want) > 1e-6).mean() < 0.02
        fine = covered(images[b][g], boxes[n], sizes[b], flipped[b], 10, 12)
        assert np.abs(got[n].numpy() - fine).mean() < 0.03


def test_a_mirrored_image_gives_the_mirrored_sample() -> None:
    rng = np.random.default_rng(1)
    masks = blobs(4, rng)
    size = (300.0, 420.0)
    boxes = rois_near(masks, size, False, rng)
    mirrored = torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], 1)
    image, instance = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    plain = sample_on_rois(ragged([masks]), batch_of([size], [False]), image, instance, boxes, 28)
    other = sample_on_rois(ragged([masks]), batch_of([size], [True]), image, instance, mirrored, 28)
    assert plain.mean() > 0.2
    assert (plain - other.flip(2)).abs().mean() < 2e-3  # points on a pixel's edge fall on either side


def test_an_empty_slot_and_an_empty_batch_cover_nothing() -> None:
    rng = np.random.default_rng(2)
    boxes, zero = torch.tensor([[0.0, 0, WIDTH, HEIGHT]]), torch.zeros(1, dtype=torch.int64)
    batch = batch_of([(float(HEIGHT), float(WIDTH))], [False])
    filled = ragged([blobs(1, rng)])
    assert sample_on_rois(filled, batch, zero, zero, boxes, 7).any()
    assert not sample_on_rois(filled, batch, zero, zero + 1, boxes, 7).any()
    empty = np.zeros((0, 0), np.uint8), (0, 0, 0, 0)
    for crops in ([], [empty]):
        assert not sample_on_rois(pack_crops([crops], 1), batch, zero, zero, boxes, 7).any()


def grid(rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(28, 28)
    mask[rows, columns] = 1
    return mask


ALL, LEFT, RIGHT, NONE = slice(None), slice(0, 14), slice(14, 28), slice(0, 0)


@pytest.mark.parametrize(
    ("predicted", "inside", "share_in_box", "want"),
    [
        ((ALL, LEFT), (ALL, LEFT), 1.0, 1.0),  # the box covers the instance, the mask is right
        ((LEFT, LEFT), (ALL, LEFT), 1.0, 0.5),  # half of it
        ((ALL, ALL), (ALL, LEFT), 1.0, 0.5),  # twice it
        ((ALL, ALL), (ALL, ALL), 0.5, 0.5),  # right in the box, which holds half of the instance
        ((ALL, LEFT), (ALL, ALL), 0.5, 0.25),
        ((ALL, ALL), (ALL, LEFT), 0.25, 392 / (784 + 1568 - 392)),
        ((ALL, LEFT), (ALL, RIGHT), 1.0, 0.0),  # disjoint
        ((ALL, NONE), (ALL, ALL), 1.0, 0.0),  # nothing predicted
        ((ALL, ALL), (ALL, NONE), 1.0, 0.0),  # nothing there
        ((ALL, ALL), (ALL, ALL), 1.6, 1.0),  # more in the box than the whole: the share is clamped to 1
    ],
)
def test_target_by_hand(
    predicted: tuple[slice, slice], inside: tuple[slice, slice], share_in_box: float, want: float
) -> None:
    coverage = grid(*inside)[None]
    box_area = torch.tensor([500.0])
    instance_area = (coverage.mean() * box_area / share_in_box).clamp(min=1.0)
    got = whole_instance_iou(grid(*predicted)[None].bool(), coverage, instance_area, box_area)
    assert got.item() == pytest.approx(want, abs=1e-6)


def test_the_target_counts_bins_that_are_at_least_half_covered() -> None:
    """T is binary; the share of the instance in the box is not: 28 columns, half of them 0.5, half 0.4 covered."""
    coverage = torch.where(grid(ALL, LEFT) > 0, 0.5, 0.4)[None]
    area = torch.tensor([100.0])
    got = whole_instance_iou(torch.ones(1, 28, 28, dtype=torch.bool), coverage, area * 0.9, area)
    inside = 28 * 14
    whole = inside / (0.45 / 0.9)  # half of the instance lies in the box
    assert got.item() == pytest.approx(inside / (784 + whole - inside), abs=1e-5)


def test_target_is_finite_and_in_range_on_degenerate_boxes() -> None:
    coverage = torch.stack([torch.zeros(28, 28), torch.ones(28, 28), torch.ones(28, 28)])
    got = whole_instance_iou(
        torch.ones(3, 28, 28, dtype=torch.bool), coverage, torch.tensor([0.0, 1e5, 0.0]), torch.tensor([0.0, 0.0, 9.0])
    )
    assert got.isfinite().all()
    assert ((got >= 0) & (got <= 1)).all()


def test_target_near_the_iou_at_full_resolution() -> None:
    """The prediction's IoU with the whole instance, measured at 8 x 8 points a bin in the dense mask."""
    rng = np.random.default_rng(3)
    size, flip = (321.0, 449.0), True
    masks = blobs(60, rng, smallest=25)
    boxes = rois_near(masks, size, flip, rng)
    side = boxes[:, 2:] - boxes[:, :2]
    scale = torch.tensor([size[1] / WIDTH, size[0] / HEIGHT])
    wide = ((side / scale).amin(1) > 32).nonzero().squeeze(1)
    assert len(wide) > 30
    boxes, image = boxes[wide], torch.zeros(len(wide), dtype=torch.int64)
    truth, geometry = ragged([masks]), batch_of([size], [flip])
    coverage = sample_on_rois(truth, geometry, image, wide, boxes, 28)
    shift = torch.from_numpy(rng.integers(-6, 7, (len(wide), 2)))
    predicted = torch.stack(
        [c.roll(tuple(s), (0, 1)) >= 0.5 for c, s in zip(coverage, shift.tolist(), strict=True)]
    )  # wrong by a few bins
    box_area = (side[wide] / scale).prod(1)  # in image pixels
    instance_area = torch.from_numpy(masks[wide.numpy()].sum((1, 2))).float()
    got = whole_instance_iou(predicted, coverage, instance_area, box_area)

    fine = sample_on_rois(truth, geometry, image, wide, boxes, 28 * 8, points=1)  # proved against `covered` above
    bin_area = box_area / 28**2
    part = fine.unflatten(2, (28, 8)).unflatten(1, (28, 8)).mean((2, 4))  # [N, 28, 8, 28, 8] -> [N, 28, 28]
    inter = (part * predicted).sum((1, 2)) * bin_area
    want = inter / (predicted.sum((1, 2)) * bin_area + instance_area - inter)
    assert want.min() < 0.5 < want.max()
    assert (got - want).abs().mean() <= 0.02


def dense(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> list[bytes]:
    pasted = paste_masks_in_image(probabilities[:, None], boxes, (height, width))[:, 0] > 0.5  # [D, height, width]
    return [coco_mask.encode(np.asfortranarray(m.numpy().astype(np.uint8)))["counts"] for m in pasted]


@pytest.mark.parametrize("seed", range(3))
def test_pasting_gives_the_bits_of_torchvision_and_pycocotools(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(60, 2, generator=generator) * torch.tensor([200.0, 140])
    boxes = torch.cat([low, low + torch.rand(60, 2, generator=generator) * 70], 1)  # some across the border
    special = torch.tensor(
        [
            [0.0, 0, WIDTH, HEIGHT],  # fills the image
            [-5, -7, WIDTH + 9, HEIGHT + 3],
            [0, 20, WIDTH, 21.5],  # a sliver
            [50, 0, 51, HEIGHT],
            [10.2, 10.3, 10.6, 10.5],  # less than a pixel
            [WIDTH - 0.4, HEIGHT - 0.3, WIDTH, HEIGHT],  # in the last one
            [0, 0, 0.02, 0.02],
            [-20, 30, 12, 60],
            [30, 30, 58, 58],  # a bin a pixel
        ]
    )
    boxes = torch.cat([boxes, special])
    noise = torch.rand(len(boxes), 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(noise[:, None], size=(28, 28), mode="bicubic").squeeze(1).clamp(0, 1)
    rough = torch.rand(len(boxes), 28, 28, generator=generator)
    for probabilities in (smooth, rough, torch.zeros_like(rough), torch.ones_like(rough)):
        assert paste_and_encode(probabilities, boxes, HEIGHT, WIDTH) == dense(probabilities, boxes, HEIGHT, WIDTH)


def test_few_pasted_pixels_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as they are more than the limit they are encoded: at most the limit and one mask; the same bits."""
    generator = torch.Generator().manual_seed(5)
    low = torch.rand(40, 2, generator=generator) * torch.tensor([200.0, 140])
    boxes = torch.cat([low, low + torch.rand(40, 2, generator=generator) * 70], 1)
    probabilities = torch.rand(40, 28, 28, generator=generator)
    expected = paste_and_encode(probabilities, boxes, HEIGHT, WIDTH)
    held: list[int] = []

    def counted(crops: list[np.ndarray], *of: Any) -> list[bytes]:
        sizes = [crop.size for crop in crops]
        held.append(sum(sizes))
        assert sum(sizes[:-1]) <= limit
        return encode_crops(crops, *of)

    monkeypatch.setattr(masks_module, "encode_crops", counted)
    for limit in (0, 1000, 8000):
        held.clear()
        monkeypatch.setattr(masks_module, "HELD_PIXELS", limit)
        assert paste_and_encode(probabilities, boxes, HEIGHT, WIDTH) == expected
        assert len(held) > 2
        assert all(pixels > limit for pixels in held[:-1])


def test_a_box_beyond_the_image_gives_an_empty_mask() -> None:
    boxes = torch.tensor(
        [[300.0, 10, 340, 40], [10, 200, 40, 260], [-90, 10, -30, 40], [10, -80, 40, -20], [300, 200, 301, 201]]
    )
    empty = coco_mask.encode(np.zeros((HEIGHT, WIDTH), np.uint8, order="F"))["counts"]
    assert paste_and_encode(torch.ones(5, 28, 28), boxes, HEIGHT, WIDTH) == [empty] * 5


def test_no_detections_no_masks() -> None:
    assert paste_and_encode(torch.zeros(0, 28, 28), torch.zeros(0, 4), HEIGHT, WIDTH) == []
