"""RoIAlign over a whole pyramid in one call of fixed shape.

Choosing the RoIs of each level needs shapes that depend on data, and pooling every RoI on every level does the work
several times. Instead the levels are laid out on one canvas, the finest to the left and the others one below the other
to its right, so that a RoI becomes a box on the canvas. To its right and below it each level's edge goes on for two
cells. In the first of them RoIAlign clamps to the edge; into the second reach only RoIs under one cell wide, which it
widens to one. torchvision reads 0 there, this the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align

from msrcnn.boxes import area

CANONICAL_LEVEL, CANONICAL_SIDE = 4, 224
"""A RoI of 224 x 224 pixels belongs on level 4 (Lin et al., CVPR 2017, equation 1)."""
POINTS = 2
"""RoIAlign's sample points a bin along each axis."""
EDGE = 2
"""Cells by which a level's edge goes on."""
MOST_NUMBERS = 2**31 - 2**22
"""That a call of RoIAlign may give: torchvision's kernels count them in 32 bits, CUDA's with a stride added, and past
2^31 the latter do nothing and leave zeros. Without a neck 10,700 RoIs (1024 x 14 x 14 numbers each) come to that."""


def roi_level(boxes: Tensor, first: int, last: int) -> Tensor:
    """The pyramid level, `first` to `last`, on which each RoI [..., 4] is pooled; int64 [...]."""
    side = area(boxes).clamp(min=0).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(side / CANONICAL_SIDE + 1e-12) + 1e-6)
    return level.clamp(first, last).long()


class LayOut(torch.autograd.Function):
    """A pyramid's levels on one canvas, each cell copied once; padding and concatenating copy most of them thrice."""

    @staticmethod
    def forward(ctx: Any, corners: Sequence[tuple[int, int]], *levels: Tensor) -> Tensor:
        """Levels [B, C, h, w] at `corners` (top, left) of a canvas [B, C, height, width] that is 0 elsewhere."""
        ends = [(y + x.shape[2] + EDGE, left + x.shape[3] + EDGE) for (y, left), x in zip(corners, levels, strict=True)]
        height, width = (max(end) for end in zip(*ends, strict=True))
        canvas = levels[0].new_zeros(*levels[0].shape[:2], height, width)
        ctx.places = []
        for (top, left), x in zip(corners, levels, strict=True):
            bottom, right = top + x.shape[2], left + x.shape[3]
            canvas[:, :, top:bottom, left:right] = x
            canvas[:, :, top:bottom, right : right + EDGE] = x[:, :, :, -1:]
            own = slice(left, right + EDGE)
            canvas[:, :, bottom : bottom + EDGE, own] = canvas[:, :, bottom - 1 : bottom, own]
            ctx.places.append((top, bottom, left, right))
        return canvas

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Each level's gradient, that of the cells beyond its edge added to the edge."""
        found: list[Tensor | None] = [None]  # of `corners`
        for top, bottom, left, right in ctx.places:
            own = gradient[:, :, top:bottom, left:right].clone(memory_format=torch.contiguous_format)  # [B, C, h, w]
            below = gradient[:, :, bottom : bottom + EDGE, left : right + EDGE].sum(2)  # [B, C, w + EDGE]
            own[:, :, -1] += below[:, :, :-EDGE]
            own[:, :, :, -1] += gradient[:, :, top:bottom, right : right + EDGE].sum(3)  # [B, C, h]
            own[:, :, -1, -1] += below[:, :, -EDGE:].sum(2)  # [B, C]
            found.append(own)
        return tuple(found)


class PyramidPooler:
    """A batch's pyramid, ready to pool RoIs from.

    Args:
        features: [B, C, H / stride, W / stride], one a level.
        strides: of the levels, ascending powers of two.
    """

    def __init__(self, features: Sequence[Tensor], strides: Sequence[int]) -> None:
        self.first = int(math.log2(strides[0]))
        self.last = int(math.log2(strides[-1]))
        self.corners = [(0, 0)]  # row and column of the canvas at which each level's own cells begin
        top, left = 0, features[0].shape[3] + EDGE
        for x in features[1:]:
            self.corners.append((top, left))
            top += x.shape[2] + EDGE
        self.canvas: Tensor = LayOut.apply(self.corners, *features)  # [B, C, height, width]

    def __call__(self, image: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Pools RoIs.

        Args:
            image: int64 [N], index of the image in the batch.
            boxes: float [N, 4] in network pixels, inside their image.
            size: bins along each side.

        Returns:
            [N, C, size, size].
        """
        boxes = torch.nan_to_num(boxes)  # RoIAlign would read wherever a box that is no number leads
        level = roi_level(boxes, self.first, self.last)  # [N]
        scaled = boxes * torch.exp2(-level.to(boxes.dtype))[:, None]
        x = y = torch.zeros_like(scaled[:, 0])  # [N]
        for i, (top, left) in enumerate(self.corners):  # numbers of the host, so nothing is copied to the device
            here = level == self.first + i
            x, y = torch.where(here, left, x), torch.where(here, top, y)
        shifted = scaled + torch.stack([x, y, x, y], dim=1)  # [N, 4]
        # RoIAlign (not "aligned") takes a RoI under one cell wide as one cell wide, from its corner on: so here too,
        # since the canvas has the scale of the cells.
        rois = torch.cat([image[:, None].to(shifted.dtype), shifted], dim=1)  # [N, 5]
        most = max(1, MOST_NUMBERS // (self.canvas.shape[1] * size**2))  # RoIs
        pooled = [
            roi_align(self.canvas, part, size, spatial_scale=1.0, sampling_ratio=POINTS, aligned=False)
            for part in rois.split(most)
        ]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled)
