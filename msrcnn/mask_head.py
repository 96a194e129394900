"""The mask heads of Mask R-CNN (He et al., ICCV 2017, Fig. 4): one mask a class for each RoI."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 14
"""Bins along each side of the RoI feature."""
CONVS = 4


class MaskHead(nn.Module):
    """RoIAlign 14x14 -> four 3x3 convolutions -> 2x2 deconvolution -> K masks of 28x28.

    Attributes:
        size: bins along each side of the RoI feature that it is pooled to.
        mask_size: side of the masks.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.size, self.mask_size = SIZE, 2 * SIZE
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(CONVS))
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (*self.convs, self.deconv, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """RoI features [N, C, 14, 14] to mask logits [N, K, 28, 28]; channel k - 1 is category k."""
        x = features
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.logits(F.relu(self.deconv(x)))  # [N, C, 14, 14] -> [N, C, 28, 28] -> [N, K, 28, 28]


class Res5MaskHead(nn.Module):
    """RoIAlign 14x14 -> res5 -> 2x2 deconvolution -> K masks of 14x14; attributes as those of `MaskHead`."""

    def __init__(self, features: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.size = self.mask_size = SIZE
        self.deconv = nn.ConvTranspose2d(features, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.deconv, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, features: Tensor) -> Tensor:
        """What res5 makes of RoIs, [N, C, 7, 7], to mask logits [N, K, 14, 14]; channel k - 1 is category k."""
        return self.logits(F.relu(self.deconv(features)))  # [N, C, 7, 7] -> [N, channels, 14, 14] -> [N, K, 14, 14]


def of_class(masks: Tensor, labels: Tensor) -> Tensor:
    """Channel of category `labels` (int64 [N], 1..K; 0 reads the first) out of `masks` [N, K, M, M]: [N, M, M]."""
    index = (labels - 1).clamp(min=0)[:, None, None, None].expand(-1, 1, *masks.shape[2:])  # [N, 1, M, M]
    return masks.gather(1, index).squeeze(1)


def mask_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean binary cross-entropy over the pixels of the masks of positive RoIs.

    Args:
        logits: [N, M, M], the channel of each RoI's class.
        target: float [N, M, M].
        valid: bool [N], slots that hold a positive RoI.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean((1, 2))  # [N]
    return loss.where(valid, 0).sum() / valid.sum().clamp(min=1)
