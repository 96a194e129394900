"""The global, batched selection against methods that treat image by image, class by class, box by box."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from msrcnn.config import SelectionConfig, SelectionMethod
from msrcnn.soft_nms import soft_nms

METHODS = get_args(SelectionMethod)
CASES, MOST_BOXES, MOST_CLASSES = 200, 1000, 80


def candidates(images: int, classes: int, rois: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping boxes [B, K, R, 4] and scores [B, K, R], a fifth of them 0."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(images, classes, rois, 2, generator=generator) * 60
    boxes = torch.cat([low, low + 20 + 40 * torch.rand(images, classes, rois, 2, generator=generator)], -1)
    scores = torch.rand(images, classes, rois, generator=generator) ** 3
    return boxes, scores * (torch.rand(scores.shape, generator=generator) > 0.2)


def plain_weight(overlap: np.ndarray, config: SelectionConfig) -> np.ndarray:
    """Bodla et al., ICCV 2017, section 3."""
    if config.method == "gaussian":
        return np.exp(-(overlap**2) / config.sigma)
    beyond = overlap > config.iou_threshold
    return np.where(beyond, 1 - overlap, 1.0) if config.method == "linear" else np.where(beyond, 0.0, 1.0)


def plain_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union [N] of one box [4] with boxes [N, 4]."""
    width = (np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])).clip(min=0)
    height = (np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])).clip(min=0)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return width * height / (areas + (box[2] - box[0]) * (box[3] - box[1]) - width * height)


def plain_selection(boxes: Tensor, scores: Tensor, config: SelectionConfig) -> list[tuple[float, int, int]]:
    """One image, each class by itself, in double precision; then the best of all classes: (score, label, box's number).

    A class is left when as many boxes as there are slots in all are taken: its scores only fall.
    """
    found = []
    for label, (class_boxes, class_scores) in enumerate(zip(boxes, scores, strict=True), start=1):
        every = class_boxes.double().numpy()
        left = class_scores.double().numpy().copy()
        for _ in range(min(config.top_k, len(left))):
            best = int(left.argmax())
            if left[best] <= config.score_threshold:
                break
            found.append((float(left[best]), label, best))
            left *= plain_weight(plain_iou(every[best], every), config)
            left[best] = -1.0
    return sorted(found, key=lambda item: -item[0])[: config.top_k]


def check(boxes: Tensor, scores: Tensor, config: SelectionConfig) -> None:
    """Every image: the same boxes in the same order, scores to 1e-6."""
    got = soft_nms(boxes, scores, config)
    assert got.boxes.shape == (len(boxes), config.top_k, 4)
    for b in range(len(boxes)):
        want = plain_selection(boxes[b], scores[b], config)
        count = len(want)
        assert got.valid[b].tolist() == [True] * count + [False] * (config.top_k - count)
        assert got.labels[b, :count].tolist() == [label for _, label, _ in want]
        chosen = [boxes[b, label - 1, number].tolist() for _, label, number in want]
        assert got.boxes[b, :count].tolist() == chosen
        np.testing.assert_allclose(got.scores[b, :count].numpy(), [s for s, *_ in want], rtol=0, atol=1e-6)
        assert ((got.labels[b] >= 1) & (got.labels[b] <= boxes.shape[1])).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("classes", "rois", "options"),
    [
        (5, 60, {}),
        (1, 150, {}),
        (3, 20, {"top_k": 100}),  # fewer candidates than slots
        (3, 40, {"sigma": 0.1, "iou_threshold": 0.3, "score_threshold": 0.2, "top_k": 30}),
        (4, 1, {"top_k": 7}),
        (2, 50, {"iou_threshold": 1.0}),
    ],
)
def test_equals_the_plain_one(method: SelectionMethod, classes: int, rois: int, options: dict[str, float]) -> None:
    boxes, scores = candidates(3, classes, rois, seed=classes)
    before = scores.clone()
    check(boxes, scores, SelectionConfig(method=method, **options))  # type: ignore[arg-type]
    assert torch.equal(scores, before)


def random_case(seed: int, most_boxes: int, most_classes: int, full: bool = False) -> tuple[Tensor, Tensor]:
    """In double precision: among 80,000 single-precision scores some are equal, and their order is anyone's."""
    rng = np.random.default_rng(seed)
    classes, rois = int(rng.integers(1, most_classes + 1)), int(rng.integers(1, most_boxes + 1))
    classes, rois = (most_classes, most_boxes) if full else (classes, rois)
    low = rng.uniform(0, rng.uniform(20, 400), (1, classes, rois, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 120, low.shape)], -1)
    scores = rng.random((1, classes, rois)) ** rng.uniform(0.5, 8)
    return torch.from_numpy(boxes), torch.from_numpy(scores * (rng.random(scores.shape) > 0.2))


@pytest.mark.parametrize("method", METHODS)
def test_random_cases(method: SelectionMethod) -> None:
    for seed in range(10):
        check(*random_case(seed, 100, 10), SelectionConfig(method=method))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_random_cases_of_full_size(method: SelectionMethod) -> None:
    """200 of up to 1000 boxes x 80 classes, every tenth at these limits; scores also in a run's single precision."""
    config = SelectionConfig(method=method)
    for seed in range(CASES):
        boxes, scores = random_case(seed, MOST_BOXES, MOST_CLASSES, full=seed % 10 == 0)
        check(boxes, scores, config)
        double, single = soft_nms(boxes, scores, config), soft_nms(boxes.float(), scores.float(), config)
        torch.testing.assert_close(single.scores.double(), double.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75])
def test_hard_nms_equals_torchvision(threshold: float) -> None:
    """Whole pixels and thresholds that single precision holds: no IoU near one falls on either side by rounding."""
    config = SelectionConfig(method="hard", iou_threshold=threshold, score_threshold=0.05)
    for seed in range(10):
        boxes, scores = candidates(2, 8, 120, seed)
        boxes = boxes.round()
        got = soft_nms(boxes, scores, config)
        for b in range(2):
            label, number = (scores[b] > config.score_threshold).nonzero(as_tuple=True)
            flat_boxes, flat_scores = boxes[b, label, number], scores[b, label, number]
            kept = batched_nms(flat_boxes, flat_scores, label, threshold)[: config.top_k]
            count = int(got.valid[b].sum())
            assert count == len(kept) > 10
            assert torch.equal(got.boxes[b, :count], flat_boxes[kept])
            assert torch.equal(got.scores[b, :count], flat_scores[kept])  # hard NMS leaves scores as they are
            assert torch.equal(got.labels[b, :count], label[kept] + 1)


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({}, math.exp(-1 / 9 / 0.6)),
        ({"method": "linear", "iou_threshold": 0.3}, 2 / 3),
        ({"method": "linear"}, 1.0),
        ({"method": "hard"}, 1.0),
        ({"method": "hard", "iou_threshold": 0.3}, 0.0),
    ],
)
def test_decay_by_hand(options: dict[str, float], weight: float) -> None:
    """IoU 1/3 with the better box of its class; the other class is not touched."""
    boxes = torch.tensor([[[[0.0, 0, 10, 10], [5, 0, 15, 10]], [[0, 0, 10, 10], [50, 50, 60, 60]]]])
    scores = torch.tensor([[[0.9, 0.8], [0.85, 0.0]]])
    got = soft_nms(boxes, scores, SelectionConfig(top_k=4, **options))  # type: ignore[arg-type]
    found = list(zip(got.labels[0].tolist(), got.scores[0].tolist(), strict=True))
    want = [(1, 0.9), (2, 0.85), *([(1, 0.8 * weight)] if weight else [])]
    assert got.valid[0].tolist() == [k < len(want) for k in range(4)]
    assert [label for label, _ in found[: len(want)]] == [label for label, _ in want]
    assert [score for _, score in found[: len(want)]] == pytest.approx([score for _, score in want], abs=1e-6)


def test_without_candidates_nothing_is_valid() -> None:
    boxes, scores = candidates(2, 3, 4, seed=0)
    for method in METHODS:
        assert not soft_nms(boxes, torch.zeros_like(scores), SelectionConfig(method=method)).valid.any()
