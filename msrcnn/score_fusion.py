"""What a detection is worth to AP, learnt from class score, MaskIoU and evidence: beyond the product of section 3.1.

The product counts twice what class score and MaskIoU both know, and knows nothing of duplicates. Here a small network
takes the place of the multiplication. What it learns is a detection's share in AP: at how many of COCO's thresholds it
is a true positive.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msrcnn.boxes import area, pairwise_iou

EVIDENCE = 5
"""Numbers of `evidence_of`."""
WIDTH = 32
FUSION_WEIGHT = 20.0
"""Of the fusion's loss. Its thousand weights see five numbers of standard scale and want a learning rate some 20 times
that of convolutions; under SGD the weight of the loss is just that."""
LOWEST, HIGHEST = 0.5, 0.95
"""COCO's thresholds."""


class ScoreFusion(nn.Module):
    """MaskIoU and evidence to a detection's worth: two hidden layers, the same for every class."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1 + EVIDENCE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        )

    def forward(self, maskious: Tensor, evidence: Tensor) -> Tensor:
        """Logits of the worth [N, K].

        Args:
            maskious: [N, K], logits of the predicted MaskIoU of each class; no gradient flows into them.
            evidence: [N, 5] of `evidence_of`.
        """
        evidence = evidence[:, None].expand(-1, maskious.shape[1], -1)  # [N, 5] -> [N, K, 5]
        seen = torch.cat([maskious.detach().float()[..., None], evidence], dim=-1)  # [N, K, 6]
        return self.layers(seen).squeeze(-1)  # [N, K, 1] -> [N, K]


def worth_of(maskious: Tensor, matched: Tensor) -> Tensor:
    """The worth of detections to AP, in [0, 1]: 0 without a match, else how far MaskIoU is up COCO's thresholds.

    The share of the thresholds 0.5, 0.55, ... 0.95 that MaskIoU reaches, as a line instead of ten steps.

    Args:
        maskious: float [N], true MaskIoU.
        matched: bool [N], whether the detection is its instance's one match (`is_match`).
    """
    step = (HIGHEST - LOWEST) / 9
    return ((maskious - LOWEST + step) / (HIGHEST - LOWEST + step)).clamp(0, 1).where(matched, 0)


def fusion_loss(predicted: Tensor, target: Tensor, trained: Tensor) -> Tensor:
    """Binary cross-entropy with the worth as a soft label, mean over what trains.

    Args:
        predicted: [N], logits.
        target: float [N] of `worth_of`.
        trained: bool [N].
    """
    error = F.binary_cross_entropy_with_logits(predicted.float(), target.detach(), reduction="none")
    return error.where(trained, 0).sum() / trained.sum().clamp(min=1)


def foreground_probability(logits: Tensor) -> Tensor:
    """Mean probability of the bins of masks [N, M, M] that are foreground, probability > 0.5; 0 without any. [N]."""
    logits = logits.float().flatten(1)  # [N, M * M]
    inside = logits > 0
    return logits.sigmoid().where(inside, 0).sum(1) / inside.sum(1).clamp(min=1)


@torch.no_grad()
def evidence_of(logits: Tensor, scores: Tensor, boxes: Tensor, sizes: Tensor, overlaps: Tensor) -> Tensor:
    """Five numbers about each RoI that tell of its quality beside what convolutions see, float [N, 5].

    Mean foreground probability; sharpness, the mean of |2p - 1|; logit of the class score; log of the box's share of
    the image; overlap with better detections. Each is brought to a scale of about 1, fixed, so that models agree on it.

    Args:
        logits: [N, M, M], mask logits of the target class.
        scores: [N], class scores.
        boxes: [N, 4] in network pixels.
        sizes: [N, 2], height and width of each RoI's image in network pixels.
        overlaps: [N] of `overlap_with_better`, 0 for RoIs that are no detections.
    """
    sharpness = (2 * logits.float().sigmoid() - 1).abs().flatten(1).mean(1)  # [N]
    share = (area(boxes) / sizes.prod(1)).clamp(min=1e-6)
    columns = [
        10 * (foreground_probability(logits) - 0.9),
        10 * (sharpness - 0.8),
        scores.float().clamp(1e-3, 1 - 1e-3).logit() / 2,
        share.log() / 2 + 3,
        2 * overlaps,
    ]
    return torch.stack(columns, dim=1)


@torch.no_grad()
def overlap_with_better(boxes: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """Each detection's highest box IoU with a detection of its class and image that has a better class score, [N].

    What SoftNMS leaves of duplicates is told by it.

    Args:
        boxes: [N, 4], best class score first in each image.
        labels: int64 [N], 1..K; 0 in a slot that holds no detection.
        images: int64 [N].
    """
    place = torch.arange(len(boxes), device=boxes.device)
    rivals = (labels[:, None] == labels) & (images[:, None] == images) & (place < place[:, None])  # [N, N]
    rivals &= (labels > 0)[:, None]
    if len(boxes) == 0:
        return boxes.new_zeros(0)
    return pairwise_iou(boxes, boxes).where(rivals, 0).amax(1)
