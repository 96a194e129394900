"""The MaskIoU head: how good is this mask? (the paper, sections 3.2 and 3.3)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msrcnn.config import MaskIoUInput
from msrcnn.mask_head import SIZE
from msrcnn.maskiou_config import MaskIoULoss
from msrcnn.score_fusion import EVIDENCE, ScoreFusion, foreground_probability

STRIDES = (1, 1, 1, 2)
"""Of the four convolutions: 14x14 becomes 7x7."""
HIGH_RESOLUTION_STRIDES = (2, 1, 1, 2)
"""The same for input (d): 28x28 becomes 7x7."""
BALANCED_BINS = 10
"""Of the true MaskIoU, which weigh the same in balanced training."""


class MaskIoUHead(nn.Module):
    """Mask and RoI feature to one MaskIoU a class: four 3x3 convolutions, two fully connected layers, a linear output.

    The letters are those of Table 4 and Fig. 4. Masks are probability maps; (a), (b), (c) and (e) max-pool them from
    28x28 to 14x14. The strides of (d) are not in the paper. Here its first convolution halves 28x28, in the place of
    the pooling of (a): what is learnt from then on, parameters and multiply-accumulates are those of (a), so that the
    two rows of Table 4 differ in the resolution of the input and nothing else. No activation at the output.

    How the head meets a trunk without a pyramid is not in the paper either. Here it is the same head: its RoI feature
    is what RoIAlign reads from C4, 14x14x1024 before res5, as with a pyramid it is the feature before the mask head;
    the masks are 14x14 there, so none is pooled. After res5 the feature would be 7x7, too coarse to lay a mask on.

    Args:
        features: channels of the RoI feature.
        channels: of the head's convolutions.
        mask_size: side of the masks, 28 or 14.
        evidence: whether the first fully connected layer sees `evidence_of` the RoIs besides (not in the paper).
        fusion: whether a `ScoreFusion` follows (not in the paper).

    Attributes:
        size: bins along each side of the RoI feature that the head takes: 28 for (d), else 14.
    """

    def __init__(
        self, features: int, channels: int, hidden: int, num_classes: int, design: MaskIoUInput = "a",
        mask_size: int = 2 * SIZE, evidence: bool = False, fusion: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.design, self.evidence = design, evidence
        self.size = mask_size if design == "d" else SIZE
        mask_channels = {"b": 0, "c": num_classes, "f": 0}.get(design, 1)  # (b) multiplies it into the feature
        first = mask_channels + (0 if design == "e" else features)
        widths = [first, *[channels] * len(STRIDES)]
        strides = HIGH_RESOLUTION_STRIDES if design == "d" else STRIDES
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, stride=s) for i, o, s in zip(widths, widths[1:], strides, strict=False)
        )
        self.fc1 = nn.Linear(channels * (SIZE // 2) ** 2 + (EVIDENCE if evidence else 0), hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.iou = nn.Linear(hidden, num_classes)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.get_parameter("weight"), mode="fan_out", nonlinearity="relu")
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.iou.weight, std=0.01)
        for layer in (*self.convs, self.fc1, self.fc2, self.iou):
            nn.init.zeros_(layer.bias)
        self.fusion = ScoreFusion() if fusion else None

    def fuse(self, features: Tensor, target: Tensor, masks: Tensor) -> Tensor:
        """The first convolution's input (Fig. 4).

        Args:
            features: [N, C, size, size], RoI features.
            target: [N, M, M], mask logits of the target class.
            masks: [N, K, M, M], mask logits of all classes; (c) alone reads them.

        Returns:
            [N, C + 1, 14, 14] in (a), [N, C, 14, 14] in (b) and (f), [N, C + K, 14, 14] in (c), [N, C + 1, 28, 28] in
            (d), [N, 1, 14, 14] in (e).
        """
        if self.design == "f":
            return features
        masks = masks if self.design == "c" else target[:, None]  # [N, K or 1, M, M]
        if masks.shape[-1] > self.size:
            masks = F.max_pool2d(masks, 2)  # [N, K or 1, 14, 14]; before the sigmoid, which keeps the order
        masks = masks.sigmoid().to(features.dtype)
        if self.design == "e":
            return masks
        return features * masks if self.design == "b" else torch.cat([features, masks], dim=1)

    def forward(self, features: Tensor, target: Tensor, masks: Tensor, evidence: Tensor | None = None) -> Tensor:
        """Predicted MaskIoU of each class [N, K], or its logit if the loss is bce.

        Args:
            features, target, masks: what `fuse` takes.
            evidence: [N, 5] of `evidence_of`, read where the head is made for it.
        """
        x = self.fuse(features, target, masks)
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)  # [N, C, 7, 7] -> [N, C * 49]
        if self.evidence:
            assert evidence is not None, "a head with evidence needs it"
            x = torch.cat([x, evidence.to(x.dtype)], dim=1)  # [N, C * 49 + 5]
        x = F.relu(self.fc1(x))  # [N, hidden]
        return self.iou(F.relu(self.fc2(x)))


class NoHead(nn.Module):
    """In the place of a MaskIoU head: the mean foreground probability as MaskIoU. It has no weights.

    Attributes:
        size: as that of a MaskIoU head; the RoI feature is not read.
    """

    design, evidence, fusion = "none", False, None

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.size = SIZE

    def forward(
        self,
        features: Tensor,  # noqa: ARG002  # called as a MaskIoU head
        target: Tensor,
        masks: Tensor,  # noqa: ARG002
        evidence: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The value of the target class's mask in the place of each class [N, K]; arguments as a MaskIoU head's."""
        return foreground_probability(target)[:, None].expand(-1, self.num_classes)  # [N] -> [N, K]


def maskiou_loss(
    predicted: Tensor, target: Tensor, trained: Tensor, kind: MaskIoULoss = "l2", weights: Tensor | None = None
) -> Tensor:
    """Loss of the classes that train, summed over a RoI's classes, mean over the RoIs that train.

    With one class a RoI (target #1) and l2, half the squared error, this is the paper's loss. For several classes the
    paper is silent; the sum gives the ground-truth class the same weight in #1, #2 and #3, whatever the others add.

    Args:
        predicted: [N, K], for bce logits.
        target: float [N, K], true MaskIoU; no gradient flows into it.
        trained: bool [N, K], False wherever nothing is learnt.
        kind: l2, l1 (the absolute error) or bce (binary cross-entropy).
        weights: float [N], of the RoIs, as `balancing_weights`; 1 without.
    """
    predicted, target = predicted.float(), target.detach()
    if kind == "bce":
        error = F.binary_cross_entropy_with_logits(predicted, target, reduction="none")
    else:
        error = predicted - target
        error = error.abs() if kind == "l1" else 0.5 * error.square()
    if weights is not None:
        error = error * weights[:, None]
    return error.where(trained, 0).sum() / trained.any(1).sum().clamp(min=1)


@torch.no_grad()
def balancing_weights(maskious: Tensor, trained: Tensor) -> Tensor:
    """Weights of RoIs under which each bin of the true MaskIoU that is not empty weighs the same.

    Args:
        maskious: float [N], in [0, 1].
        trained: bool [N].

    Returns:
        float [N], mean 1 over the RoIs that train; 0 for others.
    """
    bins = (maskious * BALANCED_BINS).long().clamp(0, BALANCED_BINS - 1)
    counts = torch.zeros(BALANCED_BINS, device=maskious.device).index_add(0, bins, trained.float())
    filled = (counts > 0).sum().clamp(min=1)
    return (trained.sum() / (filled * counts.clamp(min=1)[bins])).where(trained, 0)
