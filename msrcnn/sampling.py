"""Which anchors and RoIs train: matching to instances, and random subsets of fixed size drawn without a host.

Random numbers are a hash of (the image's draw, a salt, the index), so that an image's samples do not depend on which
worker it is on, on its place in the batch or on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msrcnn.boxes import pairwise_iou

_MASK32 = 0xFFFFFFFF

MATCH_BLOCK = 32
"""Instances that all boxes are compared with at a time: bounds the memory of a crowded image, not the result."""


def _mix(value: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 on 32-bit values held in int64."""
    value = value ^ (value >> 16)
    value = (value * 0x85EBCA6B) & _MASK32
    value = value ^ (value >> 13)
    value = (value * 0xC2B2AE35) & _MASK32
    return value ^ (value >> 16)


def noise(draws: Tensor, count: int, salt: int) -> Tensor:
    """Uniform numbers in [0, 1), float [B, count], a pure function of `draws` [B], the salt and the index."""
    index = torch.arange(count, device=draws.device)  # [count]
    high = _mix((draws >> 32) & _MASK32)
    seed = _mix((draws & _MASK32) ^ _mix(high ^ (salt * 0x9E3779B9 & _MASK32)))  # [B]
    return (_mix(_mix(index) ^ seed[:, None]) >> 8).float() / (1 << 24)  # [B, count]


@dataclass(frozen=True)
class Matches:
    """To which instance each of N boxes belongs."""

    instance: Tensor  # int64 [B, N]: slot of the instance with the highest IoU; meaningful where positive
    positive: Tensor  # bool [B, N]
    negative: Tensor  # bool [B, N]; neither: not used


def match(
    boxes: Tensor,
    instances: Tensor,
    valid: Tensor,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> Matches:
    """Matches boxes [B, N, 4] (or [1, N, 4]: the same for all) to instances [B, G, 4] of which `valid` [B, G] exist.

    Args:
        positive_iou: a box with at least this IoU with its best instance is positive.
        negative_iou: a box with less than this IoU with every instance is negative.
        low_quality: the boxes that overlap an instance most are positive too, whatever their IoU, and stay with
            their own best instance (Faster R-CNN, section 3.1.2; as torchvision does it).
    """
    if instances.shape[1] == 0:
        none = torch.zeros(valid.shape[0], boxes.shape[1], dtype=torch.bool, device=boxes.device)
        return Matches(none.long(), none, ~none)
    best, instance, top = _match_block(boxes, instances[:, :MATCH_BLOCK], valid[:, :MATCH_BLOCK], low_quality)
    for start in range(MATCH_BLOCK, instances.shape[1], MATCH_BLOCK):
        part = slice(start, start + MATCH_BLOCK)
        iou, slot, tops = _match_block(boxes, instances[:, part], valid[:, part], low_quality)
        instance = torch.where(iou > best, slot + start, instance)  # of equal ones the first, as max has it
        best = torch.maximum(best, iou)
        top = top | tops
    positive = (best >= positive_iou) | top
    return Matches(instance, positive, (best < negative_iou) & ~positive)


def _match_block(boxes: Tensor, instances: Tensor, valid: Tensor, low_quality: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The highest IoU of each box [B, N], with which of these instances, and whether it is one's best box."""
    iou = pairwise_iou(boxes, instances).masked_fill(~valid[:, None, :], -1.0)  # [B, N, G]
    best, slot = iou.max(dim=2)  # [B, N]
    if not low_quality:
        return best, slot, torch.zeros_like(best, dtype=torch.bool)
    highest = iou.amax(dim=1, keepdim=True)  # [B, 1, G]
    return best, slot, ((iou == highest) & (highest > 0)).any(dim=2)


@dataclass(frozen=True)
class Samples:
    """A random subset of S of N boxes, positive ones first."""

    index: Tensor  # int64 [B, S]
    positive: Tensor  # bool [B, S]; only the first `positives` slots can be
    valid: Tensor  # bool [B, S]: False where there were not enough boxes


def subsample(matches: Matches, draws: Tensor, samples: int, positives: int, salt: int) -> Samples:
    """Draws `samples` boxes an image, at most `positives` of them positive, the rest negative."""
    count = matches.positive.shape[1]
    samples, positives = min(samples, count), min(positives, count)
    order = noise(draws, count, salt)  # [B, N]
    chosen, index = order.masked_fill(~matches.positive, -1.0).topk(positives, dim=1)  # [B, positives]
    # Chosen positives outrank every negative, and leave them the slots that they do not fill.
    rank = order.masked_fill(~matches.negative, -1.0)  # [B, N]
    rank = rank.scatter(1, index, torch.where(chosen >= 0, 2.0 + chosen, rank.gather(1, index)))
    rank, index = rank.topk(samples, dim=1)  # [B, samples], descending
    return Samples(index, rank >= 2.0, rank >= 0)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, S] of `values` [B, N, ...] (or [1, N, ...]): [B, S, ...]."""
    shape = (*index.shape, *values.shape[2:])
    values = values.expand(index.shape[0], *values.shape[1:])
    return values.gather(1, index.view(*index.shape, *[1] * (values.dim() - 2)).expand(shape))  # [B, S, ...]
