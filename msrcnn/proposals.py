"""Region proposal network (Ren et al., 2015) over pyramid levels: anchors, head, losses, proposals; batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msrcnn.boxes import clip, decode, encode, nms_keep
from msrcnn.config import ModelConfig
from msrcnn.sampling import match, subsample, take
from msrcnn.structures import Batch, Targets

RATIOS = (0.5, 1.0, 2.0)
"""Height to width of the anchors."""
UNIT_WEIGHTS = (1.0, 1.0)
SMOOTH_L1_BETA = 1 / 9
SALT = 1
"""Tells this room's random samples from the RoI heads'."""


class RPNHead(nn.Module):
    """A 3x3 convolution and two 1x1 ones, shared by all levels."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, anchors * 4, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.get_parameter("bias"), 0)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Feature maps [B, C, h, w], one a level, to objectness logits [B, h*w*A] and deltas [B, h*w*A, 4] of each."""
        logits, deltas = [], []
        for x in features:
            x = F.relu(self.conv(x))
            logits.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))  # [B, A, h, w] -> [B, h * w * A]
            d = self.deltas(x).unflatten(1, (-1, 4))  # [B, A, 4, h, w]
            deltas.append(d.permute(0, 3, 4, 1, 2).flatten(1, 3))  # [B, h * w * A, 4]
        return logits, deltas


def base_anchors(sizes: Sequence[int]) -> Tensor:
    """Anchors [A, 4] about the origin, rounded to whole pixels as torchvision does: ratios outer, sizes inner."""
    root = torch.tensor(RATIOS).sqrt()
    side = torch.tensor(sizes, dtype=torch.float32)
    heights = (root[:, None] * side).view(-1)  # [ratios, sizes] -> [A]
    widths = (side / root[:, None]).view(-1)  # [ratios, sizes] -> [A]
    return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()


def grid_anchors(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Anchors [height * width * A, 4] of one level: `base` [A, 4] shifted to each cell, row by row."""
    y = torch.arange(height, device=base.device) * stride
    x = torch.arange(width, device=base.device) * stride
    shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
    shift = torch.stack([shift_x, shift_y, shift_x, shift_y], dim=-1)  # [height, width, 4]
    return (shift[:, :, None, :] + base).reshape(-1, 4)  # [height, width, A, 4] -> [height * width * A, 4]


@dataclass(frozen=True)
class Proposals:
    """Candidate boxes, best first."""

    boxes: Tensor  # float [B, P, 4], network pixels, inside the image
    valid: Tensor  # bool [B, P]


class RegionProposals(nn.Module):
    """The RPN: `losses` in training, `propose` always."""

    def __init__(self, config: ModelConfig, channels: int, strides: Sequence[int]) -> None:
        """`channels` and `strides` are those of the feature maps."""
        super().__init__()
        self.config = config.rpn
        self.strides = list(strides)
        self.head = RPNHead(channels, len(RATIOS) * len(config.anchor_sizes[0]))
        for i, sizes in enumerate(config.anchor_sizes):
            self.register_buffer(f"base_{i}", base_anchors(sizes), persistent=False)

    def anchors(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors [h*w*A, 4] of each level in network pixels."""
        return [
            grid_anchors(self.get_buffer(f"base_{i}"), x.shape[2], x.shape[3], stride)
            for i, (x, stride) in enumerate(zip(features, self.strides, strict=True))
        ]

    def losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], targets: Targets,
        sizes: Tensor, draws: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Objectness and box regression losses over a random subset of the anchors of each image.

        Anchors that lie wholly in the padding are left out: there is nothing to tell from.

        Args:
            logits, deltas, anchors: as `RPNHead` and `anchors` give them, one a level.
            targets: ground truth of the batch.
            sizes: float [B, 2], height and width of each image inside the padding.
            draws: int64 [B], what the random subsets follow from.

        Returns:
            Scalars `rpn_objectness` (binary cross-entropy) and `rpn_box` (smooth L1), each over the sampled anchors.
        """
        logit, delta = torch.cat(list(logits), 1), torch.cat(list(deltas), 1)  # [B, A], [B, A, 4]
        anchor = torch.cat(list(anchors))[None]  # [1, A, 4]
        config = self.config
        with torch.no_grad():
            matches = match(anchor, targets.boxes, targets.valid, config.positive_iou, config.negative_iou, True)
            matches.negative.logical_and_((anchor[..., :2] < sizes[:, None].flip(-1)).all(-1))  # [B, A]: x0, y0
            samples = subsample(matches, draws, config.samples, config.samples // 2, SALT)
        positives = max(1, config.samples // 2)
        count = samples.valid.sum().clamp(min=1)
        objectness = F.binary_cross_entropy_with_logits(
            take(logit, samples.index), samples.positive.float(), reduction="none"
        )  # [B, S]
        index, positive = samples.index[:, :positives], samples.positive[:, :positives]  # [B, positives]
        instance = take(matches.instance, index)
        if targets.boxes.shape[1] == 0:
            box = delta.sum() * 0
        else:
            want = encode(take(targets.boxes, instance), take(anchor, index), UNIT_WEIGHTS)  # [B, positives, 4]
            box = F.smooth_l1_loss(take(delta, index), want, reduction="none", beta=SMOOTH_L1_BETA).sum(-1)
            box = box.where(positive, 0).sum()
        return {"rpn_objectness": objectness.where(samples.valid, 0).sum() / count, "rpn_box": box / count}

    @torch.no_grad()
    def propose(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], batch: Batch, limit: int
    ) -> Proposals:
        """The best anchors of each level, decoded, clipped, NMS within their level, then the best over all levels.

        `limit` is of the proposals an image, and of the anchors that enter a level's NMS: these times `candidates`.
        """
        boxes, scores = [], []
        for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
            entering = min(limit * self.config.candidates, logit.shape[1])  # k
            score, index = logit.float().topk(entering, dim=1)  # [B, k], descending
            box = clip(decode(take(delta.float(), index), anchor[index], UNIT_WEIGHTS), batch.sizes)  # [B, k, 4]
            side = box[..., 2:] - box[..., :2]
            score = score.masked_fill((side < 1e-3).any(-1), -torch.inf)
            keep = nms_keep(box, score, self.config.nms_iou)
            boxes.append(box)
            scores.append(score.masked_fill(~keep, -torch.inf))
        box, score = torch.cat(boxes, 1), torch.cat(scores, 1)  # [B, sum of k, 4], [B, sum of k]
        score, index = score.topk(min(limit, score.shape[1]), dim=1)  # [B, P]
        return Proposals(take(box, index), score > -torch.inf)
