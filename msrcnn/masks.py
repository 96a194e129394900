"""Masks on both sides of the network: ragged ground truth sampled on RoIs, predictions pasted and encoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msrcnn.rle import encode_crops
from msrcnn.structures import Batch, RaggedMasks

POINTS_PER_BIN = 3
"""Along each axis: a bin's coverage is counted at 3 x 3 points, enough for a 28 x 28 grid on COCO's instances."""
HELD_PIXELS = 1 << 26
"""Pixels of pasted masks beyond which they are encoded before more are pasted. Encoding takes twice as many bytes more:
100 boxes that fill an image of 50 megapixels would need 15 GB."""


def pack_crops(images: Sequence[Sequence[tuple[np.ndarray, tuple[int, int, int, int]]]], slots: int) -> RaggedMasks:
    """Joins each image's crops (as `decode_crop` gives them) into one buffer with `slots` instance slots an image."""
    boxes = np.zeros((len(images), slots, 4), dtype=np.int64)
    offsets = np.zeros((len(images), slots), dtype=np.int64)
    parts: list[np.ndarray] = []
    end = 0
    for b, crops in enumerate(images):
        for g, (crop, box) in enumerate(crops):
            boxes[b, g], offsets[b, g] = box, end
            parts.append(crop.reshape(-1))  # [h * w]
            end += crop.size
    data = np.concatenate(parts) if end else np.zeros(1, dtype=np.uint8)  # never empty: slots without a mask read at 0
    return RaggedMasks(torch.from_numpy(data), torch.from_numpy(offsets), torch.from_numpy(boxes))


def _to_image(points: Tensor, batch: Batch, image: Tensor, axis: int) -> Tensor:
    """Network coordinates [N, K] along x (axis 1) or y (axis 0) of images `image` [N] as image coordinates [N, K]."""
    points = points / batch.scales[image, axis, None]
    if axis == 0:
        return points
    mirrored = batch.image_sizes[image, 1, None] - points
    return torch.where(batch.flipped[image, None], mirrored, points)


def sample_on_rois(
    masks: RaggedMasks, batch: Batch, image: Tensor, instance: Tensor, boxes: Tensor, size: int,
    points: int = POINTS_PER_BIN,
) -> Tensor:  # fmt: skip
    """How much of each bin of a `size` x `size` grid on each RoI its instance covers.

    The mask is taken as it is, one where the instance's pixels are and zero elsewhere, and read at points x points
    evenly spaced points a bin: no resizing of masks, no full-image mask.

    Args:
        masks, batch: ground truth and the geometry of the images it belongs to.
        image, instance: int64 [N], the batch index and instance slot of each RoI.
        boxes: float [N, 4], RoIs in network pixels.
        size: bins along each side.
        points: sample points a bin along each axis.

    Returns:
        Coverage in [0, 1], float [N, size, size].
    """
    left, top, width, height = masks.crops[image, instance].unbind(-1)  # [N] each
    step = (torch.arange(size * points, device=boxes.device) + 0.5) / (size * points)  # [K], K = size * points
    x = _to_image(boxes[:, 0, None] + step * (boxes[:, 2] - boxes[:, 0])[:, None], batch, image, 1)  # [N, K]
    y = _to_image(boxes[:, 1, None] + step * (boxes[:, 3] - boxes[:, 1])[:, None], batch, image, 0)  # [N, K]
    column = x.floor().long() - left[:, None]
    row = y.floor().long() - top[:, None]
    in_x = (column >= 0) & (column < width[:, None])
    in_y = (row >= 0) & (row < height[:, None])
    start = masks.offsets[image, instance][:, None] + row.where(in_y, 0) * width[:, None]  # [N, K]
    index = start[:, :, None] + column.where(in_x, 0)[:, None, :]  # [N, K, K]
    inside = in_y[:, :, None] & in_x[:, None, :]
    hit = masks.data[index.where(inside, 0)].bool() & inside  # [N, K, K]
    return F.avg_pool2d(hit.float()[:, None], points).squeeze(1)  # [N, size, size]


def whole_instance_iou(predicted: Tensor, coverage: Tensor, instance_area: Tensor, box_area: Tensor) -> Tensor:
    """IoU of predicted RoI masks with *whole* instances: the MaskIoU target (the paper, section 3.2).

    What of the instance lies outside the RoI counts against the prediction. With T the instance's part in the RoI on
    the grid, and r the share of the instance's area that lies in the RoI, the whole instance measures sum(T) / r bins.

    Args:
        predicted: bool [N, M, M], probability > 0.5.
        coverage: float [N, M, M] of `sample_on_rois`.
        instance_area: float [N], mask area in image pixels.
        box_area: float [N], RoI area in image pixels.

    Returns:
        IoU in [0, 1], float [N].
    """
    inside = (coverage >= 0.5).flatten(1)  # [N, M * M]: T
    predicted = predicted.flatten(1)  # [N, M * M]: P
    covered = coverage.flatten(1).mean(1) * box_area  # [N]: area of the instance in the RoI, in image pixels
    ratio = (covered / instance_area.clamp(min=1e-6)).clamp(max=1)
    inter = (predicted & inside).sum(1)
    whole = inside.sum(1) / ratio.clamp(min=1e-6)
    return inter / (predicted.sum(1) + whole - inter).clamp(min=1)


def _expanded_box(box: np.ndarray, size: int, padded: int) -> tuple[int, int, int, int]:
    """The box grown by (size + 2) / size about its centre as integers, float32 step by step as torchvision does it."""
    scale = np.float32(padded / size)
    half = np.float32(0.5)
    w, h = (box[2] - box[0]) * half * scale, (box[3] - box[1]) * half * scale
    x, y = (box[2] + box[0]) * half, (box[3] + box[1]) * half
    return int(x - w), int(y - h), int(x + w), int(y + h)


def paste_and_encode(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> list[bytes]:
    """Detections' masks at image resolution, run-length encoded without ever filling the image.

    The mask is resized bilinearly to its box (padded by one zero bin on each side, as torchvision's
    `paste_masks_in_image`), cut at probability 0.5, and its runs are read off inside the box only.

    Args:
        probabilities: float [D, M, M], foreground probability inside the box.
        boxes: float [D, 4] in image pixels.
        height, width: size of the image.

    Returns:
        COCO compressed counts of each [height, width] mask, the bits that pycocotools gives for the pasted masks.
    """
    size = probabilities.shape[-1]
    encoded: list[bytes] = []
    padded = F.pad(probabilities.float().cpu(), (1, 1, 1, 1))[:, None]  # [D, 1, M + 2, M + 2]
    crops: list[np.ndarray] = []
    corners: list[tuple[int, int]] = []
    held = 0
    for mask, box in zip(padded, boxes.float().cpu().numpy(), strict=True):
        x0, y0, x1, y1 = _expanded_box(box, size, size + 2)
        w, h = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
        resized = F.interpolate(mask[None], size=(h, w), mode="bilinear", align_corners=False)[0, 0]  # [h, w]
        left, top = max(x0, 0), max(y0, 0)
        bottom, right = max(min(y1 + 1, height), top), max(min(x1 + 1, width), left)  # empty where outside the image
        crops.append(resized[top - y0 : bottom - y0, left - x0 : right - x0].numpy() > 0.5)
        corners.append((left, top))
        held += crops[-1].size
        if held > HELD_PIXELS:
            encoded += encode_crops(crops, corners, height, width)
            crops, corners, held = [], [], 0
    return encoded + encode_crops(crops, corners, height, width)
