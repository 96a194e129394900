"""RoIAlign over a whole pyramid in one call of fixed shape.

Choosing the RoIs of each level needs shapes that depend on data, and pooling every RoI on every level does the work
several times. Instead the levels are laid side by side on one canvas, so that a RoI becomes a box on the canvas. To
its right and below it each level's edge goes on for two cells. In the first of them RoIAlign clamps to the edge; into
the second reach only RoIs under one cell wide, which it widens to one. torchvision reads 0 there, this the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from msrcnn.boxes import area

CANONICAL_LEVEL, CANONICAL_SIDE = 4, 224
"""A RoI of 224 x 224 pixels belongs on level 4 (Lin et al., CVPR 2017, equation 1)."""
POINTS = 2
"""RoIAlign's sample points a bin along each axis."""


def roi_level(boxes: Tensor, first: int, last: int) -> Tensor:
    """The pyramid level, `first` to `last`, on which each RoI [..., 4] is pooled; int64 [...]."""
    side = area(boxes).clamp(min=0).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(side / CANONICAL_SIDE + 1e-12) + 1e-6)
    return level.clamp(first, last).long()


class PyramidPooler:
    """A batch's pyramid, ready to pool RoIs from.

    Args:
        features: [B, C, H / stride, W / stride], one a level.
        strides: of the levels, ascending powers of two.
    """

    def __init__(self, features: Sequence[Tensor], strides: Sequence[int]) -> None:
        self.first = int(math.log2(strides[0]))
        self.last = int(math.log2(strides[-1]))
        tallest = features[0].shape[2] + 2
        self.lefts: list[int] = []  # column of the canvas at which each level's own cells begin
        tiles, left = [], 0
        for x in features:
            tile = F.pad(x, (0, 2, 0, 2), mode="replicate")
            tiles.append(F.pad(tile, (0, 0, 0, tallest - tile.shape[2])))  # [B, C, tallest, w + 2]
            self.lefts.append(left)
            left += tile.shape[3]
        self.canvas = tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=3)  # [B, C, tallest, sum of w + 2]

    def __call__(self, image: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Pools RoIs.

        Args:
            image: int64 [N], index of the image in the batch.
            boxes: float [N, 4] in network pixels, inside their image.
            size: bins along each side.

        Returns:
            [N, C, size, size].
        """
        level = roi_level(boxes, self.first, self.last)  # [N]
        scaled = boxes * torch.exp2(-level.to(boxes.dtype))[:, None]
        left = zero = torch.zeros_like(scaled[:, 0])  # [N]
        for i, column in enumerate(self.lefts):  # numbers of the host, so nothing is copied to the device
            left = torch.where(level == self.first + i, column, left)
        shifted = scaled + torch.stack([left, zero, left, zero], dim=1)  # [N, 4]
        # RoIAlign (not "aligned") takes a RoI under one cell wide as one cell wide, from its corner on: so here too,
        # since the canvas has the scale of the cells.
        rois = torch.cat([image[:, None].to(shifted.dtype), shifted], dim=1)  # [N, 5]
        return roi_align(self.canvas, rois, size, spatial_scale=1.0, sampling_ratio=POINTS, aligned=False)
