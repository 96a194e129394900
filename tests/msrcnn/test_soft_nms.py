"""The global, batched SoftNMS against one that treats image by image and class by class."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from msrcnn.config import SelectionConfig
from msrcnn.soft_nms import soft_nms


def candidates(images: int, classes: int, rois: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping boxes [B, K, R, 4] and scores [B, K, R], a fifth of them 0."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(images, classes, rois, 2, generator=generator) * 60
    boxes = torch.cat([low, low + 20 + 40 * torch.rand(images, classes, rois, 2, generator=generator)], -1)
    scores = torch.rand(images, classes, rois, generator=generator) ** 3
    return boxes, scores * (torch.rand(scores.shape, generator=generator) > 0.2)


def plain_soft_nms(boxes: Tensor, scores: Tensor, config: SelectionConfig) -> list[tuple[float, int, list[float]]]:
    """One image: each class worked to its end, then the best of all classes: (score, label, box)."""
    found = []
    for label, (class_boxes, class_scores) in enumerate(zip(boxes, scores, strict=True), start=1):
        overlaps = box_iou(class_boxes, class_boxes)
        left = {i: float(s) for i, s in enumerate(class_scores) if s > config.score_threshold}
        while left:
            best = max(left, key=lambda i: left[i])
            found.append((left.pop(best), label, class_boxes[best].tolist()))
            left = {i: s * math.exp(-(float(overlaps[best, i]) ** 2) / config.sigma) for i, s in left.items()}
            left = {i: s for i, s in left.items() if s > config.score_threshold}
    return sorted(found, key=lambda item: -item[0])[: config.top_k]


@pytest.mark.parametrize(
    ("classes", "rois", "config"),
    [
        (5, 60, SelectionConfig()),
        (1, 150, SelectionConfig()),
        (3, 20, SelectionConfig(top_k=100)),  # fewer candidates than slots
        (3, 40, SelectionConfig(sigma=0.1, score_threshold=0.2, top_k=30)),
        (4, 1, SelectionConfig(top_k=7)),
    ],
)
def test_equals_the_plain_one(classes: int, rois: int, config: SelectionConfig) -> None:
    boxes, scores = candidates(3, classes, rois, seed=classes)
    before = scores.clone()
    got = soft_nms(boxes, scores, config)
    assert torch.equal(scores, before)
    assert got.boxes.shape == (3, config.top_k, 4)
    for b in range(3):
        want = plain_soft_nms(boxes[b], scores[b], config)
        count = len(want)
        assert count > 0
        assert got.valid[b].tolist() == [True] * count + [False] * (config.top_k - count)
        assert got.labels[b, :count].tolist() == [label for _, label, _ in want]
        torch.testing.assert_close(got.boxes[b, :count], torch.tensor([box for *_, box in want]), rtol=0, atol=0)
        torch.testing.assert_close(got.scores[b, :count], torch.tensor([s for s, *_ in want]), rtol=0, atol=1e-6)
        assert ((got.labels[b] >= 1) & (got.labels[b] <= classes)).all()


def test_decay_by_hand() -> None:
    """IoU 1/3 with the better box of its class; the other class is not touched."""
    boxes = torch.tensor([[[[0.0, 0, 10, 10], [5, 0, 15, 10]], [[0, 0, 10, 10], [50, 50, 60, 60]]]])
    scores = torch.tensor([[[0.9, 0.8], [0.85, 0.0]]])
    got = soft_nms(boxes, scores, SelectionConfig(top_k=4))
    assert got.labels[0, :3].tolist() == [1, 2, 1]
    assert got.scores[0, :3].tolist() == pytest.approx([0.9, 0.85, 0.8 * math.exp(-1 / 9 / 0.6)], abs=1e-6)
    assert got.valid.tolist() == [[True, True, True, False]]


def test_without_candidates_nothing_is_valid() -> None:
    boxes, scores = candidates(2, 3, 4, seed=0)
    assert not soft_nms(boxes, torch.zeros_like(scores), SelectionConfig()).valid.any()
