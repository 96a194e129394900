"""From scored boxes of every class to the top k detections: SoftNMS (Bodla et al., ICCV 2017), batched over images.

SoftNMS treats each class apart: take the best box, decay the others by their overlap with it, repeat; hard NMS is the
one that decays to 0. Scores only fall, so taking the best box over *all* classes k times gives the top k of the
per-class lists, in order, without working any class to its end. Every step has the same shapes whatever the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msrcnn.boxes import pairwise_iou
from msrcnn.config import SelectionConfig


@dataclass(frozen=True)
class Selected:
    """The top D boxes of each image, best first."""

    boxes: Tensor  # [B, D, 4]
    scores: Tensor  # [B, D], decayed
    labels: Tensor  # int64 [B, D], 1..K
    valid: Tensor  # bool [B, D]


def decay(overlap: Tensor, config: SelectionConfig) -> Tensor:
    """What the scores of boxes with IoU `overlap` [...] with a better box of their class are multiplied by, [...].

    Linear and hard decay begin *above* the threshold, as in torchvision's `nms`.
    """
    if config.method == "gaussian":
        return torch.exp(-overlap.square() / config.sigma)
    reduced = 1 - overlap if config.method == "linear" else torch.zeros_like(overlap)
    return torch.where(overlap > config.iou_threshold, reduced, 1.0)


def soft_nms(boxes: Tensor, scores: Tensor, config: SelectionConfig) -> Selected:
    """Selects detections.

    Args:
        boxes: [B, K, R, 4], the box of each RoI as each class refines it.
        scores: [B, K, R], probability of each class; 0 where there is no RoI.
        config: decay, threshold and number.

    Returns:
        `config.top_k` slots an image.
    """
    images, _, count = scores.shape
    scores = scores.clone()
    each = torch.arange(images, device=scores.device)
    picked = []
    for _ in range(config.top_k):
        score, index = scores.view(images, -1).max(dim=1)  # [B], [B] into K * R
        label, slot = index // count, index % count
        box = boxes[each, label, slot]  # [B, 4]
        rivals = boxes[each, label]  # [B, R, 4], the boxes of its class
        overlap = pairwise_iou(box[:, None], rivals).squeeze(1)  # [B, R]
        scores[each, label] = scores[each, label] * decay(overlap, config)
        scores.view(images, -1).scatter_(1, index[:, None], -1.0)  # taken; to index by tensors would copy the -1
        picked.append((box, score, label + 1))
    chosen, kept, labels = (torch.stack(column, dim=1) for column in zip(*picked, strict=True))  # [B, D, ...] each
    # A score that is not a number stays valid: rows name its image, where no detections would look like none found.
    return Selected(chosen, kept, labels, ~(kept <= config.score_threshold))
