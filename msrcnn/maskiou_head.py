"""The MaskIoU head: how good is this mask? (the paper, sections 3.2 and 3.3)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msrcnn.mask_head import SIZE

STRIDES = (1, 1, 1, 2)
"""Of the four convolutions: 14x14 becomes 7x7."""


class MaskIoUHead(nn.Module):
    """Mask and RoI feature to one MaskIoU a class: four 3x3 convolutions, two fully connected layers, a linear output.

    Input (a) of Table 4: the 14x14 RoI feature of the mask head and the 2x2 max-pooled probability map of the target
    class as one more channel. No activation at the output.
    """

    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        widths = [channels + 1, *[channels] * len(STRIDES)]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, stride=s) for i, o, s in zip(widths, widths[1:], STRIDES, strict=False)
        )
        self.fc1 = nn.Linear(channels * (SIZE // 2) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.iou = nn.Linear(hidden, num_classes)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.get_parameter("weight"), mode="fan_out", nonlinearity="relu")
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.iou.weight, std=0.01)
        for layer in (*self.convs, self.fc1, self.fc2, self.iou):
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """RoI features [N, C, 14, 14] and probability maps [N, 28, 28] to predicted MaskIoU of each class [N, K]."""
        pooled = F.max_pool2d(masks[:, None], 2)  # [N, 1, 14, 14]
        x = torch.cat([features, pooled.to(features.dtype)], dim=1)  # [N, C + 1, 14, 14]
        for conv in self.convs:
            x = F.relu(conv(x))
        x = F.relu(self.fc1(x.flatten(1)))  # [N, C, 7, 7] -> [N, C * 49] -> [N, hidden]
        return self.iou(F.relu(self.fc2(x)))


def maskiou_loss(predicted: Tensor, target: Tensor, tau: float, valid: Tensor) -> Tensor:
    """Half the mean squared error over the RoIs whose MaskIoU is strictly above tau (target #1 of Table 5).

    Args:
        predicted: [N], the output of each RoI's ground-truth class.
        target: float [N], true MaskIoU; no gradient flows into it.
        tau: threshold of Table 6.
        valid: bool [N], slots that hold a positive RoI.
    """
    retained = valid & (target > tau)
    error = (predicted.float() - target.detach()).square()
    return 0.5 * error.where(retained, 0).sum() / retained.sum().clamp(min=1)
