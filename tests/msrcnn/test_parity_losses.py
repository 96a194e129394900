"""The whole model's losses and gradients in training equal torchvision's, given its weights and the same samples."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import project_masks_on_boxes

import msrcnn.detector
import msrcnn.proposals
from msrcnn.config import DataConfig, RoIConfig
from msrcnn.data.batching import make_batch
from msrcnn.detector import MaskScoringRCNN
from msrcnn.masks import sample_on_rois
from msrcnn.presets import PRESETS
from msrcnn.pretrained import load_weights
from msrcnn.proposals import Proposals
from msrcnn.rows import ImageTruth
from msrcnn.sampling import Samples, subsample
from msrcnn.structures import Batch

CLASSES, PROPOSALS = 5, 200
MOST_ANCHORS = 3 * 2 * 96 * 128 // 4**2
NAMES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}
GRADIENTS = {
    "backbone.trunk.layer2.0.conv1.weight": "backbone.body.layer2.0.conv1.weight",
    "backbone.fpn.inner_blocks.1.0.weight": "backbone.fpn.inner_blocks.1.0.weight",
    "rpn.head.conv.weight": "rpn.head.conv.0.0.weight",
    "box.fc1.weight": "roi_heads.box_head.fc6.weight",
    "box.deltas.weight": "roi_heads.box_predictor.bbox_pred.weight",
    "mask.convs.0.weight": "roi_heads.mask_head.0.0.weight",
}
"""Parameters, ours and torchvision's, whose gradients are compared."""


def ellipses(height: int, width: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """Masks of objects, bool [number, height, width]."""
    y, x = np.mgrid[:height, :width]
    masks = []
    for _ in range(number):
        radius = rng.uniform(10, 28, 2)
        centre = rng.uniform(radius * 0.5, np.array([height, width]) - radius * 0.5)
        masks.append(((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 <= 1)
    return np.stack(masks)


def training_images() -> tuple[Batch, list[np.ndarray]]:
    """Two images at their own size, the second mirrored, and their masks as torchvision would have them."""
    rng = np.random.default_rng(0)
    images, truths, dense = [], [], []
    for number, (height, width) in enumerate([(96, 128), (96, 107)]):
        masks = ellipses(height, width, 4 + number, rng)
        colours = masks[..., None] * rng.integers(40, 90, (len(masks), 1, 1, 3))  # [number, height, width, 3]
        pixels = rng.integers(0, 80, (height, width, 3)) + colours.max(0)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        images.append(file.getvalue())
        rles = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        xywh = np.stack([coco_mask.toBbox(rle) for rle in rles]).astype(np.float32)
        truths.append(ImageTruth(
            number, height, width, np.arange(len(masks)), rng.integers(1, CLASSES + 1, len(masks)).astype(np.int32),
            np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1), masks.sum((1, 2)).astype(np.float32),
            np.zeros(len(masks), bool), [rle["counts"] for rle in rles],
        ))  # fmt: skip
        dense.append(masks[:, :, ::-1].copy() if number else masks)
    return make_batch(images, truths, DataConfig(short_side=96, long_side=128), draws=[10, 11]), dense


class SameSample:
    """In place of torchvision's random sampler: what ours has drawn, its boxes numbered as torchvision's."""

    def __init__(self, drawn: Samples, numbers: Tensor) -> None:
        """`numbers`, int64 [B, N] or more columns: torchvision's number of each of our boxes."""
        self.drawn, self.numbers = drawn, numbers

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Bool [N] of positive and of negative boxes an image, out of labels [N] (0: negative, -1: neither)."""
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for b, label in enumerate(labels):
            index, positive = self.numbers[b][self.drawn.index[b]], self.drawn.positive[b]
            for part, kind in zip(chosen, (positive, self.drawn.valid[b] & ~positive), strict=True):
                mask = torch.zeros(len(label), dtype=torch.bool)
                mask[index[kind]] = True
                assert mask.sum() == kind.sum()
                part.append(mask)
            assert (label[chosen[0][b]] > 0).all()  # both match boxes to instances alike
            assert (label[chosen[1][b]] == 0).all()
        return chosen


def with_frozen_norm(model: nn.Module) -> nn.Module:
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return model


@dataclass(frozen=True)
class Drawn:
    """What our model has trained on."""

    anchors: Samples
    proposals: Proposals
    rois: Samples


def our_losses(ours: MaskScoringRCNN, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], Drawn]:
    drawn: list[Any] = []

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: drawn.append(function(*arguments)) or drawn[-1]

    monkeypatch.setattr(msrcnn.proposals, "subsample", recorded(subsample))
    monkeypatch.setattr(msrcnn.detector, "subsample", recorded(subsample))
    monkeypatch.setattr(ours.rpn, "propose", recorded(ours.rpn.propose))
    losses = ours.train()(batch)
    proposed, rois, anchors = drawn
    return losses, Drawn(anchors, proposed, rois)


def their_losses(
    reference: Any, batch: Batch, dense: list[np.ndarray], drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """torchvision's own code for all but the random samples and the mask targets."""
    model, targets = with_frozen_norm(reference.model), batch.targets
    assert targets is not None
    truth = [
        {"boxes": targets.boxes[b, v], "labels": targets.labels[b, v], "masks": torch.from_numpy(dense[b])}
        for b, v in enumerate(targets.valid)
    ]
    images = reference.padded(batch)
    features = model.backbone(images.tensors)
    model.rpn.fg_bg_sampler = SameSample(drawn.anchors, torch.arange(MOST_ANCHORS).expand(2, -1))
    _, losses = model.rpn(images, features, truth)

    proposed = [boxes[valid] for boxes, valid in zip(drawn.proposals.boxes, drawn.proposals.valid, strict=True)]
    in_use = torch.cat([drawn.proposals.valid, targets.valid], 1)  # [B, P + G]: torchvision has no empty slots
    model.roi_heads.fg_bg_sampler = SameSample(drawn.rois, in_use.cumsum(1) - 1)
    differing, images_seen = [], count()

    def binary(masks: Tensor, boxes: Tensor, matched: Tensor, size: int) -> Tensor:
        """Our mask targets. torchvision's are soft, and by its RoIAlign half a pixel off."""
        image = torch.full_like(matched, next(images_seen))
        inside = sample_on_rois(targets.masks, batch, image, matched, boxes, size) >= 0.5
        differing.append((project_masks_on_boxes(masks, boxes, matched, size) >= 0.5) != inside)
        return inside.float()

    monkeypatch.setattr("torchvision.models.detection.roi_heads.project_masks_on_boxes", binary)
    _, of_heads = model.roi_heads(features, proposed, images.image_sizes, truth)
    assert len(torch.cat(differing)) == int(drawn.rois.positive.sum()) > 20
    assert torch.cat(differing).float().mean() < 0.03  # the same masks
    return losses | of_heads


def test_losses_and_gradients_equal_torchvision(
    make_reference: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, dense = training_images()
    reference = make_reference(batch, CLASSES, proposals=PROPOSALS, detections=10)
    torch.save(reference.model.state_dict(), tmp_path / "mask_rcnn.pth")
    preset = PRESETS["r50-fpn"].model
    ours = MaskScoringRCNN(replace(
        preset, num_classes=CLASSES, frozen_stages=0, rpn=replace(preset.rpn, train_proposals=PROPOSALS),
        roi=RoIConfig(samples=64),
    ))  # fmt: skip
    load_weights(ours, str(tmp_path / "mask_rcnn.pth"), [str(k) for k in range(1, CLASSES + 1)])
    losses, drawn = our_losses(ours, batch, monkeypatch)
    want = their_losses(reference, batch, dense, drawn, monkeypatch)
    assert want.keys() == set(NAMES.values())
    for name, other in NAMES.items():
        assert want[other] > 0.01
        torch.testing.assert_close(losses[name], want[other], rtol=0, atol=1e-4)

    torch.stack([losses[name] for name in NAMES]).sum().backward()
    torch.stack(list(want.values())).sum().backward()
    for name, other in GRADIENTS.items():
        gradient, expected = ours.get_parameter(name).grad, reference.model.get_parameter(other).grad
        assert gradient is not None
        assert expected is not None
        assert (gradient - expected).norm() <= 0.005 * expected.norm(), name
