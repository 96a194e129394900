"""The R-CNN head: class scores and class-specific box refinement of each RoI."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msrcnn.boxes import encode

SIZE = 7
"""Bins along each side of the RoI feature."""
RES5_SIZE = 14
"""The same where res5, which halves it, comes first."""
WEIGHTS = (10.0, 5.0)
"""Scale of the regression targets: centre, size."""
SMOOTH_L1_BETA = 1 / 9


class BoxHead(nn.Module):
    """RoIAlign 7x7 -> two fully connected layers -> class logits and box deltas (FPN's head, the paper section 3.1)."""

    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.size = SIZE
        self.fc1 = nn.Linear(channels * SIZE * SIZE, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, (num_classes + 1) * 4)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.score, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features [N, C, 7, 7] to class logits [N, K + 1] (0: background) and deltas [N, K + 1, 4]."""
        x = F.relu(self.fc1(features.flatten(1)))  # [N, C * 49] -> [N, hidden]
        x = F.relu(self.fc2(x))
        return self.score(x), self.deltas(x).unflatten(1, (-1, 4))  # [N, (K + 1) * 4] -> [N, K + 1, 4]


class Res5BoxHead(nn.Module):
    """RoIAlign 14x14 -> res5 -> mean over the RoI -> class logits and box deltas (He et al., CVPR 2016)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.size = RES5_SIZE
        self.score = nn.Linear(channels, num_classes + 1)
        self.deltas = nn.Linear(channels, (num_classes + 1) * 4)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.score, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What res5 makes of RoIs, [N, C, 7, 7], to class logits [N, K + 1] and deltas [N, K + 1, 4]."""
        x = features.mean((2, 3))  # [N, C]
        return self.score(x), self.deltas(x).unflatten(1, (-1, 4))  # [N, (K + 1) * 4] -> [N, K + 1, 4]


def box_losses(
    logits: Tensor, deltas: Tensor, rois: Tensor, labels: Tensor, boxes: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Classification over all RoIs and box regression over the positive ones (Fast R-CNN, section 2.3).

    Args:
        logits: [N, K + 1]. deltas: [N, K + 1, 4].
        rois: [N, 4]. labels: int64 [N], 0 for background. boxes: [N, 4], each RoI's instance; used where labels > 0.
        valid: bool [N], slots that hold a RoI.

    Returns:
        Scalars `class` (cross-entropy) and `box` (smooth L1), both divided by the number of RoIs.
    """
    count = valid.sum().clamp(min=1)
    cross_entropy = F.cross_entropy(logits.float(), labels, reduction="none").where(valid, 0).sum() / count
    chosen = deltas.float().gather(1, labels[:, None, None].expand(-1, 1, 4)).squeeze(1)  # [N, 4]
    target = encode(boxes, rois, WEIGHTS)
    positive = (valid & (labels > 0))[:, None]
    smooth = F.smooth_l1_loss(chosen, target.where(positive, 0), reduction="none", beta=SMOOTH_L1_BETA)
    return {"class": cross_entropy, "box": smooth.where(positive, 0).sum() / count}


def class_scores(logits: Tensor) -> Tensor:
    """Probabilities of the object classes, float [N, K]: softmax with the background left out."""
    return torch.softmax(logits.float(), dim=1)[:, 1:]
