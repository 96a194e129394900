"""Box arithmetic against torchvision's operators and box coder."""

from __future__ import annotations

import bisect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, clip_boxes_to_image, nms

from msrcnn.boxes import (
    FIXPOINT_PASSES,
    area,
    clip,
    compact,
    decode,
    encode,
    nms_fixpoint,
    nms_keep,
    pairwise_iou,
)
from msrcnn.proposals import base_anchors, grid_anchors


def random_boxes(count: int, generator: torch.Generator, size: float = 100.0) -> Tensor:
    """Boxes [count, 4] with corners anywhere in a square image."""
    corners = torch.rand(count, 2, 2, generator=generator) * size
    return torch.cat([corners.amin(1), corners.amax(1) + 0.1], 1)  # [count, 2 + 2]


def clustered_boxes(count: int, clusters: int, generator: torch.Generator) -> Tensor:
    """Boxes [count, 4] jittered about a few centres: most overlap several others, so suppression goes in chains."""
    home = random_boxes(clusters, generator, 400.0)[torch.randint(clusters, (count,), generator=generator)]
    side = (home[:, 2:] - home[:, :2]).repeat(1, 2)
    return home + (torch.rand(count, 4, generator=generator) - 0.5) * 0.4 * side


def reference_keep(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """torchvision's NMS of one image as a mask [N]."""
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    part = (scores > -torch.inf).nonzero().squeeze(1)
    keep[part[nms(boxes[part], scores[part], iou)]] = True
    return keep


def sliding_chain(count: int) -> Tensor:
    """Boxes [1, count, 4], each overlapping only the one before and the one after by more than 0.5."""
    left = torch.arange(count) * 2.0
    return torch.stack([left, torch.zeros(count), left + 8, torch.ones(count)], 1)[None]


@pytest.mark.parametrize("seed", range(4))
def test_pairwise_iou_equals_torchvision(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = random_boxes(40, generator).view(2, 20, 4), random_boxes(60, generator).view(2, 30, 4)
    want = torch.stack([box_iou(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(pairwise_iou(a, b), want, rtol=1e-6, atol=1e-7)


def test_pairwise_iou_of_empty_boxes_is_zero() -> None:
    empty = torch.tensor([[[5.0, 5, 5, 5], [0, 0, 0, 0]]])
    assert torch.equal(pairwise_iou(empty, empty), torch.zeros(1, 2, 2))
    assert area(torch.tensor([1.0, 2, 4, 6])) == 12


@pytest.mark.parametrize("weights", [(10.0, 5.0), (1.0, 1.0)])
def test_coding_equals_torchvision_and_inverts(weights: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(1)
    boxes, anchors = random_boxes(200, generator), random_boxes(200, generator)
    for slim in (boxes, anchors):
        slim[:, 2:] += 5  # within the largest change of size that can be decoded
    coder = BoxCoder((weights[0], weights[0], weights[1], weights[1]))
    deltas = encode(boxes, anchors, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode(deltas, anchors, weights), boxes, rtol=1e-4, atol=1e-3)
    wild = torch.randn(200, 4, generator=generator) * 30  # beyond the largest log scale
    want = coder.decode_single(wild, anchors)  # [200, 4]
    torch.testing.assert_close(decode(wild, anchors, weights), want, rtol=1e-5, atol=1e-2)
    assert decode(torch.full((1, 4), 1e4), anchors[:1], weights).isfinite().all()


def test_encode_of_empty_boxes_is_finite() -> None:
    nothing = torch.zeros(1, 4)
    some = torch.tensor([[1.0, 2, 9, 8]])
    assert encode(nothing, some, (1.0, 1.0)).isfinite().all()
    assert encode(some, nothing, (1.0, 1.0)).isfinite().all()


def test_clip_equals_torchvision() -> None:
    generator = torch.Generator().manual_seed(2)
    boxes = torch.randn(2, 5, 3, 4, generator=generator) * 100
    sizes = torch.tensor([[50.0, 90], [80, 20]])
    want = torch.stack([clip_boxes_to_image(b, (int(h), int(w))) for b, (h, w) in zip(boxes, sizes, strict=True)])
    assert torch.equal(clip(boxes, sizes), want)


@pytest.mark.parametrize(
    ("count", "clusters", "iou"), [(500, 5, 0.7), (1000, 20, 0.7), (2000, 40, 0.7), (1500, 3, 0.5)]
)
def test_nms_equals_torchvision(count: int, clusters: int, iou: float) -> None:
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        boxes = torch.stack([clustered_boxes(count, clusters, generator) for _ in range(2)])
        scores = torch.rand(2, count, generator=generator).sort(descending=True).values
        scores[1, torch.randperm(count, generator=generator)[: count // 3]] = -torch.inf  # slots that take no part
        want = torch.stack([reference_keep(b, s, iou) for b, s in zip(boxes, scores, strict=True)])
        assert 0 < int(want.sum()) < count
        assert torch.equal(nms_keep(boxes, scores, iou), want)
        assert torch.equal(nms_fixpoint(boxes, scores > -torch.inf, iou), want)
        assert torch.equal(nms_fixpoint(boxes, scores > -torch.inf, iou, block=300), want)


def test_fixpoint_is_exact_once_passes_reach_the_chain() -> None:
    count = FIXPOINT_PASSES
    boxes = sliding_chain(count)
    part = torch.ones(1, count, dtype=torch.bool)
    want = torch.arange(count)[None] % 2 == 0  # every second box goes, link by link
    assert torch.equal(nms_fixpoint(boxes, part, 0.5), want)
    assert torch.equal(nms_keep(boxes, torch.arange(count, 0.0, -1)[None], 0.5), want)
    assert not torch.equal(nms_fixpoint(boxes, part, 0.5, passes=count // 2), want)


def test_a_chain_beyond_the_passes_keeps_boxes_too_many_and_loses_none() -> None:
    count = 4 * FIXPOINT_PASSES
    boxes, part = sliding_chain(count), torch.ones(1, count, dtype=torch.bool)
    want = torch.arange(count)[None] % 2 == 0
    kept = nms_fixpoint(boxes, part, 0.5)
    assert torch.equal(kept[:, :FIXPOINT_PASSES], want[:, :FIXPOINT_PASSES])
    assert kept[want].all()
    assert int(kept.sum()) > int(want.sum())
    assert not nms_fixpoint(boxes, part, 0.5, passes=FIXPOINT_PASSES + 1)[~want].any()


def rpn_output(stride: int, side: int, cells: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The best 2000 boxes [1, N, 4] of one level of an 800 x 1333 image, and their scores [1, N].

    Scores and deltas vary smoothly over about so many `cells`, as those of a network do, with a little noise; a
    network at its start answers so (5 to 8 passes measured), a trained one too, its boxes drawn together on objects.
    """
    height, width = 800 // stride, -(-1344 // stride)
    anchors = grid_anchors(base_anchors([side]), height, width, stride)
    coarse = torch.randn(1, 15, int(height / cells) + 2, int(width / cells) + 2, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")[0].flatten(1)  # [3 + 12, h * w]
    scores = smooth[:3].T.reshape(-1)  # [3, h * w] -> [h * w * 3]
    scores = scores + 0.1 * torch.randn(len(scores), generator=generator)
    deltas = smooth[3:].T.reshape(-1, 4) * 0.1  # [12, h * w] -> [h * w * 3, 4]
    boxes = clip(decode(deltas, anchors, (1.0, 1.0))[None], torch.tensor([[800.0, 1333]]))
    scores, index = scores.topk(min(2000, len(scores)))
    return boxes[:, index], scores[None]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fixpoint_settles_in_half_its_passes_on_what_an_rpn_gives(seed: int) -> None:
    """The longest chain of suppressions ends well before the last pass: 10 or 11 passes measured.

    A chain is a slope of scores, counted in anchors that overlap only their neighbours; slopes over 8 cells would
    want up to 30 passes, over 16 cells up to 36.
    """
    generator, most = torch.Generator().manual_seed(seed), 0
    for stride, side in ((4, 32), (8, 64), (16, 128), (32, 256), (64, 512)):
        boxes, scores = rpn_output(stride, side, 4.0, generator)
        part = scores > -torch.inf
        want = reference_keep(boxes[0], scores[0], 0.7)[None]
        assert 0 < int(want.sum()) < part.sum()

        def settled(passes: int, boxes: Tensor = boxes, part: Tensor = part, want: Tensor = want) -> bool:
            return torch.equal(nms_fixpoint(boxes, part, 0.7, passes), want)

        # Once right, a pass changes nothing, so that the first right one can be found by halving.
        most = max(most, 1 + bisect.bisect_left(range(1, FIXPOINT_PASSES), True, key=settled))
    assert 3 <= most <= FIXPOINT_PASSES // 2


def test_fixpoint_lets_no_absent_slot_suppress() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 9]]])
    part = torch.tensor([[False, True, True]])
    assert nms_fixpoint(boxes, part, 0.7).tolist() == [[False, True, False]]


def test_nms_with_no_box_at_all() -> None:
    boxes, scores = torch.zeros(2, 4, 4), torch.full((2, 4), -torch.inf)
    assert not nms_keep(boxes, scores, 0.7).any()
    assert not nms_fixpoint(boxes, scores > -torch.inf, 0.7).any()


def test_compact_drops_rows_and_keeps_one() -> None:
    valid = torch.tensor([False, True, False, True])
    rows = torch.arange(8).view(4, 2)
    kept, some, other = compact(valid, rows, rows[:, 0])
    assert kept.tolist() == [True, True]
    assert some.tolist() == [[2, 3], [6, 7]]
    assert other.tolist() == [2, 6]
    kept, some = compact(torch.zeros(4, dtype=torch.bool), rows)
    assert kept.tolist() == [False]
    assert some.tolist() == [[0, 1]]


def test_compact_is_the_identity_off_the_cpu() -> None:
    valid = torch.zeros(3, dtype=torch.bool, device="meta")
    rows = torch.zeros(3, 2, device="meta")
    kept, some = compact(valid, rows)
    assert kept is valid
    assert some is rows
