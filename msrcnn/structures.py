"""What flows between the rooms of the detector: batched tensors of fixed shapes, each with its shape beside it.

B images in a batch, padded to H x W; G instance slots an image; D detection slots an image. A slot that holds
nothing is marked by label 0 (`Targets`) or by `valid` (`Detections`). "Network pixels" are those of the resized and
perhaps mirrored image, "image pixels" those of the original. A pixel is the unit square that begins at its index.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def _to(value: T, device: torch.device | str, non_blocking: bool) -> T:
    """The dataclass with every tensor in it moved, recursively."""
    return _each(value, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def _each(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """The dataclass with every tensor in it changed, recursively."""
    changed: dict[str, Any] = {}
    for item in dataclasses.fields(value):  # type: ignore[arg-type]
        part = getattr(value, item.name)
        if isinstance(part, Tensor):
            changed[item.name] = change(part)
        elif dataclasses.is_dataclass(part):
            changed[item.name] = _each(part, change)
    return dataclasses.replace(value, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class RaggedMasks:
    """Binary instance masks, each kept as the crop of its own box at image resolution.

    All crops of a batch lie in one flat buffer, row by row: the pixel (y, x) of the image is
    `data[offset + (y - top) * width + (x - left)]`. A full-image mask exists nowhere.
    """

    data: Tensor  # uint8 [pixels of all crops]
    offsets: Tensor  # int64 [B, G], first byte of each crop
    crops: Tensor  # int64 [B, G, 4]: left, top, width, height in image pixels; width 0 in an empty slot


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, crowd regions left out."""

    boxes: Tensor  # float [B, G, 4]: x0, y0, x1, y1 in network pixels
    labels: Tensor  # int64 [B, G]: category 1..C, 0 in an empty slot
    areas: Tensor  # float [B, G]: mask area in image pixels
    masks: RaggedMasks

    @property
    def valid(self) -> Tensor:
        """Which slots hold an instance, bool [B, G]."""
        return self.labels > 0


@dataclass(frozen=True)
class Batch:
    """Images of one padded shape, how they were resized, and in training what is in them."""

    images: Tensor  # uint8 [B, 3, H, W], RGB, 0 in the padding
    sizes: Tensor  # float [B, 2]: height, width of the resized image inside the padding
    image_sizes: Tensor  # float [B, 2]: height, width of the original image
    flipped: Tensor  # bool [B]: mirrored left to right
    image_ids: Tensor  # int64 [B]
    draws: Tensor  # int64 [B]: what the image's random samples in training are drawn from
    targets: Targets | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on `device`."""
        return _to(self, device, non_blocking)

    def pinned(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies while the host goes on."""
        return _each(self, Tensor.pin_memory)

    @property
    def scales(self) -> Tensor:
        """Network pixels per image pixel, float [B, 2]: along y, along x."""
        return self.sizes / self.image_sizes


@dataclass(frozen=True)
class Detections:
    """The top D detections of each image, best class score first."""

    boxes: Tensor  # float [B, D, 4]: x0, y0, x1, y1 in network pixels
    labels: Tensor  # int64 [B, D]: category 1..C
    class_scores: Tensor  # float [B, D], after SoftNMS: what boxes are ranked by
    maskious: Tensor  # float [B, D]: predicted MaskIoU of the predicted class, not clamped; 1 without a MaskIoU head
    worths: Tensor  # float [B, D]: what mask scores multiply class scores by: MaskIoU^power, with goal=ap worth^power
    head_maskious: Tensor  # float [B, D, V]: the same of each further MaskIoU head, in the order of `ModelConfig.heads`
    masks: Tensor  # float [B, D, M, M]: foreground probability of the predicted class inside the box
    valid: Tensor  # bool [B, D]

    def to(self, device: torch.device | str) -> Detections:
        """The detections with every tensor on `device`."""
        return _to(self, device, False)

    @property
    def mask_scores(self) -> Tensor:
        """What masks are ranked by, float [B, D]: class score x predicted MaskIoU in the paper (section 3.1)."""
        return self.class_scores * self.worths
