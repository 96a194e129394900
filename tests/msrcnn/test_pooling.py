"""Pooling from the canvas against torchvision's RoIAlign level by level."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from msrcnn import pooling
from msrcnn.pooling import LayOut, PyramidPooler, roi_level

HEIGHT, WIDTH = 128, 192
PYRAMIDS = {"C4, C5": [16, 32], "C2 to C5": [4, 8, 16, 32], "C4": [16]}


def pyramid(strides: list[int], seed: int, requires_grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, HEIGHT // s, WIDTH // s, generator=generator).requires_grad_(requires_grad)
            for s in strides]  # fmt: skip


def inner_boxes(count: int, seed: int) -> Tensor:
    """Boxes [count, 4] of 1 to 190 pixels inside the image, a third of them touching a border of it."""
    generator = torch.Generator().manual_seed(seed)
    side = 190 ** torch.rand(count, 2, generator=generator)
    side = torch.minimum(side, torch.tensor([float(WIDTH), float(HEIGHT)]))
    room = torch.tensor([float(WIDTH), float(HEIGHT)]) - side
    place = torch.rand(count, 2, generator=generator)
    third = count // 3
    place[:third] = place[:third].round()  # 0 or 1: against a border on both axes
    low = place * room
    return torch.cat([low, low + side], 1)  # [count, 2 + 2]


def beyond_the_map(boxes: Tensor, strides: list[int]) -> Tensor:
    """RoIs that RoIAlign, widening them to one cell, reads outside their level's map."""
    levels = roi_level(boxes, strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    stride = 2.0 ** levels[:, None]
    cells = boxes / stride
    end = torch.maximum(cells[:, 2:], cells[:, :2] + 1)  # [N, 2]: x, y
    return (end > torch.tensor([WIDTH, HEIGHT]) / stride + 1e-4).any(1)


def reference(features: list[Tensor], strides: list[int], image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """torchvision's pooling, back in the order of `boxes`."""
    pool = MultiScaleRoIAlign([str(s) for s in strides], size, sampling_ratio=2)
    per_image = [boxes[image == b] for b in range(2)]
    named = {str(s): f for s, f in zip(strides, features, strict=True)}
    got = pool(named, per_image, [(HEIGHT, WIDTH)] * 2)
    order = torch.cat([(image == b).nonzero().squeeze(1) for b in range(2)])
    return torch.empty_like(got).index_copy(0, order, got)


@pytest.mark.parametrize("strides", PYRAMIDS.values(), ids=PYRAMIDS.keys())
@pytest.mark.parametrize("size", [7, 14])
def test_equals_torchvision_forward_and_backward(strides: list[int], size: int) -> None:
    boxes = inner_boxes(300, seed=size)
    boxes = boxes[~beyond_the_map(boxes, strides)]
    assert len(boxes) > 150
    image = torch.arange(len(boxes)) % 2
    ours, theirs = pyramid(strides, 0, True), pyramid(strides, 0, True)
    got = PyramidPooler(ours, strides)(image, boxes, size)
    want = reference(theirs, strides, image, boxes, size)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("rois", [1, 7, 30, 31])
def test_many_rois_are_pooled_in_parts_as_at_once(rois: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also none, and fewer to a call than one has numbers; the gradient too."""
    strides, boxes = PYRAMIDS["C4, C5"], inner_boxes(30, seed=4)
    image = torch.arange(len(boxes)) % 2
    whole, parts = pyramid(strides, 0, True), pyramid(strides, 0, True)
    want = PyramidPooler(whole, strides)(image, boxes, 7)
    assert rois * want[0].numel() < pooling.MOST_NUMBERS < 2**31
    monkeypatch.setattr(pooling, "MOST_NUMBERS", rois * want[0].numel() - (rois == 1))
    calls: list[int] = []
    run = pooling.roi_align
    monkeypatch.setattr(pooling, "roi_align", lambda x, part, *a, **k: calls.append(len(part)) or run(x, part, *a, **k))
    pooler = PyramidPooler(parts, strides)
    got = pooler(image, boxes, 7)
    assert torch.equal(got, want)
    assert calls == [rois] * (30 // rois) + [30 % rois] * (30 % rois > 0)
    assert pooler(image[:0], boxes[:0], 7).shape == (0, 3, 7, 7)
    want.square().sum().backward()
    got.square().sum().backward()
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("strides", PYRAMIDS.values(), ids=PYRAMIDS.keys())
def test_a_roi_beyond_the_map_reads_its_own_edge(strides: list[int]) -> None:
    """Differs from torchvision by design.

    RoIAlign makes a RoI one cell wide that is less, from its corner on; at the right and lower border that leaves
    the map, where torchvision reads 0. Here the edge goes on, and no other level is read.
    """
    boxes = inner_boxes(300, seed=3)
    boxes = torch.cat([boxes, torch.tensor([[WIDTH, HEIGHT, WIDTH, HEIGHT], [0.0, 0, 0, 0]])])
    boxes = boxes[beyond_the_map(boxes, strides)]
    assert len(boxes) >= 5
    image = torch.arange(len(boxes)) % 2
    features = pyramid(strides, 0)
    got = PyramidPooler(features, strides)(image, boxes, 7)
    levels = roi_level(boxes, strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    for n, box in enumerate(boxes):
        i = int(levels[n]) - (strides[0].bit_length() - 1)
        wide = F.pad(features[i][image[n], None], (0, 3, 0, 3), mode="replicate")
        want = roi_align(wide, [box[None]], 7, 1 / strides[i], sampling_ratio=2, aligned=False)
        torch.testing.assert_close(got[n, None], want, rtol=1e-4, atol=1e-4)


def test_each_level_is_on_the_canvas_with_its_edge_going_on() -> None:
    """Levels overlap nowhere, also where those on the right are taller together than the finest one."""
    for sides in ([(8, 12), (4, 6), (2, 3), (1, 2)], [(20, 8), (10, 4)], [(5, 7)]):
        levels = [torch.randn(2, 3, *side) for side in sides]
        pooler = PyramidPooler(levels, [4 * 2**i for i in range(len(levels))])
        used = torch.zeros_like(pooler.canvas)
        for level, (top, left) in zip(levels, pooler.corners, strict=True):
            want = F.pad(level, (0, 2, 0, 2), mode="replicate")
            own = slice(top, top + want.shape[2]), slice(left, left + want.shape[3])
            assert torch.equal(pooler.canvas[:, :, *own], want)
            used[:, :, *own] += 1
        assert used.max() == 1
        assert not pooler.canvas[used == 0].any()


def test_the_canvas_hands_back_the_gradient_of_all_its_cells() -> None:
    levels = [torch.randn(1, 2, h, w, dtype=torch.float64, requires_grad=True) for h, w in ((4, 5), (2, 3), (1, 1))]
    assert torch.autograd.gradcheck(lambda *x: LayOut.apply([(0, 0), (0, 7), (4, 7)], *x), levels)


def test_levels_of_lins_equation() -> None:
    side = torch.tensor([0.0, 1, 55, 56, 111, 112, 223, 224, 447, 448, 2000])
    boxes = torch.stack([side * 0, side * 0, side, side], 1)
    assert roi_level(boxes, 2, 5).tolist() == [2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5]
    assert roi_level(boxes, 4, 5).tolist() == [4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5]
