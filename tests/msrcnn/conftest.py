"""Fixture: a torchvision Mask R-CNN that answers as a trained one, without a download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.poolers import initLevelMapper

from msrcnn.structures import Batch

RPN_SPREADS = {"rpn.head.conv.0.0": 1.0, "rpn.head.cls_logits": 2.0, "rpn.head.bbox_pred": 0.1}
BOX_SPREADS = {
    "roi_heads.box_head.fc6": 1.0,
    "roi_heads.box_head.fc7": 1.0,
    "roi_heads.box_predictor.cls_score": 2.0,
    "roi_heads.box_predictor.bbox_pred": 0.5,
}
MASK_SPREADS = {"roi_heads.mask_predictor.mask_fcn_logits": 2.0}
"""Standard deviations of layers' outputs, in the order in which they run."""
SMALLEST = 1e-2
"""Pixels. torchvision's box head drops boxes with a side below this."""


@dataclass(frozen=True)
class Found:
    """torchvision's proposals, its box head's answers for them, and its detections; one entry an image."""

    proposals: list[Tensor]  # [P, 4]
    scores: list[Tensor]  # [P, K], 0 where the refined box is too small to be a detection
    refined: list[Tensor]  # [P, K, 4]
    detections: list[dict[str, Tensor]]


class Reference:
    """torchvision's `maskrcnn_resnet50_fpn` with random weights.

    A random network scores everything nearly alike. So the trunk's BatchNorm takes the statistics of the images in
    `batch`, and the layers of the RPN and box heads and each last layer are scaled and shifted, channel by channel,
    until their outputs on these images have mean 0 and a standard deviation as in a trained network. Box deltas
    are small enough that no RoI is a sliver at the border, which torchvision pools otherwise by design
    (`test_pooling`).

    Attributes:
        model: the network, in testing mode.
    """

    def __init__(self, batch: Batch, classes: int, proposals: int, detections: int) -> None:
        torch.manual_seed(0)
        counts = {f"rpn_{when}_nms_top_n_{mode}": proposals for when in ("pre", "post") for mode in ("train", "test")}
        self.model = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=classes + 1, box_detections_per_img=detections, **counts
        ).eval()
        heads = self.model.roi_heads
        for pool in (heads.box_roi_pool, heads.mask_roi_pool):
            # Else the strides are inferred from the largest image, wrongly where the canvas is 1.41 times as high.
            pool.scales, pool.map_levels = [1 / 4, 1 / 8, 1 / 16, 1 / 32], initLevelMapper(2, 5)
        self._fit(batch)

    @torch.no_grad()
    def _fit(self, batch: Batch) -> None:
        trunk = self.model.backbone.body
        for name, norm in trunk.named_modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
                norm.weight.uniform_(0.5, 1.0).mul_(0.2 if name.endswith("bn3") else 1.0)
                norm.bias.normal_(0, 0.1)
        images = self.padded(batch)
        trunk.train()(images.tensors)
        trunk.eval()
        features, heads = self.model.backbone(images.tensors), self.model.roi_heads
        self._spread(RPN_SPREADS, lambda: self.model.rpn(images, features))
        proposals, _ = self.model.rpn(images, features)
        pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
        self._spread(BOX_SPREADS, lambda: heads.box_predictor(heads.box_head(pooled)))
        self._spread(MASK_SPREADS, lambda: heads(features, proposals, images.image_sizes))

    def _spread(self, spreads: dict[str, float], run: Callable[[], object]) -> None:
        """Scales and shifts layers by what they give when the network, or the part that holds them, runs."""
        for name, std in spreads.items():
            layer, outputs = self.model.get_submodule(name), []
            hook = layer.register_forward_hook(lambda _m, _i, output, outputs=outputs: outputs.append(output))
            run()
            hook.remove()
            values = torch.cat([o.transpose(0, 1).flatten(1) for o in outputs], 1)  # [channels, outputs]
            scale = std / values.std(1)
            layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.bias.sub_(values.mean(1)).mul_(scale)

    def padded(self, batch: Batch) -> ImageList:
        """The batch's images as torchvision normalises and pads them, but on the batch's canvas."""
        canvas = torch.zeros(batch.images.shape)
        sizes = [(int(h), int(w)) for h, w in batch.sizes]
        for image, raw, (h, w) in zip(canvas, batch.images, sizes, strict=True):
            image[:, :h, :w] = self.model.transform.normalize(raw[:, :h, :w].float() / 255)
        return ImageList(canvas, sizes)

    @torch.no_grad()
    def find(self, batch: Batch) -> Found:
        """torchvision's own forward pass behind its resizing."""
        images = self.padded(batch)
        features = self.model.backbone(images.tensors)
        heads = self.model.roi_heads
        proposals, _ = self.model.rpn(images, features)
        pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        counts = [len(p) for p in proposals]
        refined = heads.box_coder.decode(deltas, proposals).split(counts)
        for boxes, (h, w) in zip(refined, images.image_sizes, strict=True):
            boxes.clamp_(min=0)
            boxes[..., 0::2].clamp_(max=w)
            boxes[..., 1::2].clamp_(max=h)
        scores = []
        for probability, boxes in zip(logits.softmax(-1).split(counts), refined, strict=True):
            side = (boxes[..., 2:] - boxes[..., :2]).amin(-1)  # [P, K + 1]
            scores.append(probability.masked_fill(side < SMALLEST, 0)[:, 1:])
        detections, _ = heads(features, proposals, images.image_sizes)
        return Found(proposals, scores, [r[:, 1:] for r in refined], detections)


@pytest.fixture(scope="session")
def make_reference() -> Callable[..., Reference]:
    return Reference
