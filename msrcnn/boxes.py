"""Box arithmetic on batched tensors: overlap, coding, clipping, NMS, and `compact`.

Boxes are x0, y0, x1, y1 in pixels, the area being (x1 - x0) * (y1 - y0).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms

MAX_LOG_SCALE = math.log(1000.0 / 16)
"""Largest log width or height ratio that a delta may ask for: keeps exp() finite."""

FIXPOINT_PASSES = 32
"""Passes of the fixed-shape NMS. It is exact once a pass changes nothing: 3 to 11 on what networks give. Even, so that
where a longer chain is left unsettled a box too many is kept and none too few. Whether one is would have to be asked of
the device, which waits for it; scores that slope smoothly over a whole level want up to 61."""
FIXPOINT_BLOCK = 2048
"""Boxes of the fixed-shape NMS that are settled at once: bounds its memory, not its result."""


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [..., N, M] of boxes a [..., N, 4] with boxes b [..., M, 4]; 0 where both are empty."""

    def overlap(axis: int) -> Tensor:
        # One axis at a time: a CPU goes through [..., N, M] twice as fast as through [..., N, M, 2].
        low = torch.maximum(a[..., :, None, axis], b[..., None, :, axis])  # [..., N, M]
        high = torch.minimum(a[..., :, None, axis + 2], b[..., None, :, axis + 2])  # [..., N, M]
        return (high - low).clamp(min=0)

    inter = overlap(0) * overlap(1)  # [..., N, M]
    union = area(a)[..., :, None] + area(b)[..., None, :] - inter
    return inter / union.clamp(min=1e-9)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float]) -> Tensor:
    """Regression targets (dx, dy, dw, dh) [..., 4] that turn `anchors` [..., 4] into `boxes` [..., 4].

    `weights` scale the centre's and the size's part.
    """
    size = (anchors[..., 2:] - anchors[..., :2]).clamp(min=1e-6)
    centre = anchors[..., :2] + 0.5 * size
    want = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    want_centre = boxes[..., :2] + 0.5 * want
    centre_part, size_part = weights
    return torch.cat(
        [centre_part * (want_centre - centre) / size, size_part * torch.log(want / size)], dim=-1
    )  # [..., 2 + 2]


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float]) -> Tensor:
    """Boxes [..., 4] from deltas [..., 4] and anchors [..., 4] of a shape that broadcasts: the inverse of `encode`."""
    centre_part, size_part = weights
    size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * size + deltas[..., :2] / centre_part * size
    half = 0.5 * torch.exp((deltas[..., 2:] / size_part).clamp(max=MAX_LOG_SCALE)) * size
    return torch.cat([centre - half, centre + half], dim=-1)  # [..., 2 + 2]


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, ..., 4] cut to their images, whose heights and widths are `sizes` [B, 2]."""
    limit = sizes.flip(-1).repeat(1, 2)  # [B, 4]: width, height, width, height
    limit = limit.view(-1, *[1] * (boxes.dim() - 2), 4)  # [B, 1..., 4]
    return torch.minimum(boxes.clamp(min=0), limit)


def compact(valid: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Drops unused slots where that is cheap: `valid` [N] and each tensor [N, ...] without the rows not valid.

    On a CPU a synchronisation costs nothing and a slot costs a full head. On any other device this is the identity:
    shapes stay fixed, nothing waits for the host, and callers weigh slots by the `valid` they get back. At least one
    slot is kept, so that heads always run and every parameter gets a gradient. Together with NMS this is the only
    place where devices differ.
    """
    if valid.device.type != "cpu":
        return (valid, *tensors)
    kept = valid.nonzero().squeeze(1)  # [n]
    kept = kept if len(kept) else torch.zeros(1, dtype=torch.int64)
    return (valid[kept], *(t[kept] for t in tensors))


def nms_keep(boxes: Tensor, scores: Tensor, iou: float, passes: int = FIXPOINT_PASSES) -> Tensor:
    """Greedy NMS of each image's boxes as a mask of fixed shape.

    Args:
        boxes: [B, N, 4], **best score first** in each image.
        scores: [B, N], -inf in slots that take no part.
        iou: a box overlapping a kept better one by more than this is dropped.
        passes: repetitions of the fixpoint, where that is what runs.

    Returns:
        Kept slots, bool [B, N].
    """
    taking_part = scores > -torch.inf
    if boxes.device.type == "cpu":
        keep = torch.zeros_like(taking_part)
        image, slot = taking_part.nonzero(as_tuple=True)
        kept = batched_nms(boxes[image, slot], scores[image, slot], image, iou)
        keep[image[kept], slot[kept]] = True
        return keep
    return nms_fixpoint(boxes, taking_part, iou, passes)


def nms_fixpoint(
    boxes: Tensor, taking_part: Tensor, iou: float, passes: int = FIXPOINT_PASSES, block: int = FIXPOINT_BLOCK
) -> Tensor:
    """`nms_keep` without a synchronisation or a data-dependent shape: keep = no *kept* better box overlaps.

    Repeated from "all kept", each pass settles at least one more link of every suppression chain, so it is exact
    once the number of passes reaches the longest chain. Before that passes err in turn: after an even one the kept
    boxes of a block include all that belong there, after an odd one they are among these. Blocks are settled best
    first: what a kept box of an earlier block overlaps is out, the rest is the fixpoint's.
    """
    kept = taking_part[:, :0]
    for start in range(0, boxes.shape[1], block):
        part = slice(start, start + block)
        rivals = pairwise_iou(boxes[:, part], boxes[:, :start]) > iou  # [B, n, start]
        beaten = (rivals & kept[:, None]).any(-1)  # [B, n]
        settled = _settle(boxes[:, part], taking_part[:, part] & ~beaten, iou, passes)
        kept = torch.cat([kept, settled], dim=1)  # [B, start + n]
    return kept


def _settle(boxes: Tensor, taking_part: Tensor, iou: float, passes: int) -> Tensor:
    """The fixpoint over all boxes at once, bool [B, N]."""
    better = torch.ones(boxes.shape[1], boxes.shape[1], dtype=torch.bool, device=boxes.device).tril(-1)  # [N, N]
    rivals = (pairwise_iou(boxes, boxes) > iou) & better & taking_part[:, None, :]  # [B, N, N]: j suppresses i
    rivals = rivals.to(torch.float16 if boxes.is_cuda else torch.float32)
    keep = taking_part
    for _ in range(passes):
        beaten = torch.bmm(rivals, keep.to(rivals.dtype)[..., None]).squeeze(-1) > 0  # [B, N]
        keep = taking_part & ~beaten
    return keep
