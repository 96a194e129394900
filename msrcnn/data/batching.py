"""Encoded images and their instances to a `Batch`: decode, resize, mirror, pad, pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from msrcnn.config import DataConfig
from msrcnn.data.decoding import decode_image
from msrcnn.masks import pack_crops
from msrcnn.rle import decode_crop
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch, Targets

DIVISOR = 32
"""Padded sides are multiples of this, the largest stride of a trunk."""
SLOT_STEP = 16
"""Instance slots are added by this many, so that few shapes occur."""
_MASK64 = (1 << 64) - 1


def draw(seed: int, epoch: int, image_id: int) -> int:
    """A 63-bit number that stands for this image in this epoch: what flips and samples are drawn from.

    It does not depend on worker, rank or place in the batch (SplitMix64 over the three numbers).
    """
    value = 0
    for part in (seed, epoch, image_id):
        value = (value ^ (part & _MASK64)) + 0x9E3779B97F4A7C15 & _MASK64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK64
        value ^= value >> 31
    return value >> 1


def at_scale(config: DataConfig, drawn: int | None) -> DataConfig:
    """The sizes for one image: in training those of one of `short_sides`, which its `draw` chooses, if there are any.

    None stands for testing. The draw's lowest bit says whether the image is mirrored; the next ones are free.
    """
    if not config.short_sides:
        return config
    side = config.short_side if drawn is None else config.short_sides[(drawn >> 1) % len(config.short_sides)]
    return replace(config, short_side=side, short_sides=())


def resized_size(height: int, width: int, config: DataConfig) -> tuple[int, int]:
    """Height and width after resizing: the shorter side to `short_side`, the longer at most `long_side`."""
    scale = min(config.short_side / min(height, width), config.long_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def canvases(config: DataConfig) -> list[tuple[int, int]]:
    """The padded shapes (height, width) that batches may have, smallest first.

    The short side with four lengths of the long one, landscape and portrait, and a square for batches that mix both:
    few shapes, so that a GPU's kernels and memory are chosen once. With `short_sides`, those of each.
    """
    if config.short_sides:
        each = (replace(config, short_side=side, short_sides=()) for side in config.short_sides)
        return sorted({shape for one in each for shape in canvases(one)}, key=_by_area)

    def up(side: float) -> int:
        return int(-(-side // DIVISOR)) * DIVISOR

    short, long = up(config.short_side), up(config.long_side)
    lengths = {up(min(config.short_side * ratio, config.long_side)) for ratio in (1, 4 / 3, 3 / 2)} | {long}
    shapes = {(short, length) for length in lengths} | {(length, short) for length in lengths} | {(long, long)}
    return sorted(shapes, key=_by_area)


def _by_area(shape: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    return shape[0] * shape[1], shape


def canvas_for(sizes: Sequence[tuple[int, int]], config: DataConfig) -> tuple[int, int]:
    """The smallest of `canvases` that holds every (height, width) in `sizes`."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    return next((h, w) for h, w in canvases(config) if h >= height and w >= width)


def own_canvas(truth: ImageTruth, config: DataConfig, drawn: int | None = None) -> tuple[int, int]:
    """The one of `canvases` that an image has alone; a portrait image's is higher than wide.

    `drawn` is as in `at_scale`.
    """
    config = config if drawn is not None else at_scale(config, None)
    return canvas_for([resized_size(truth.height, truth.width, at_scale(config, drawn))], config)


def one_canvas_batches(truths: Sequence[ImageTruth], config: DataConfig, most: int) -> list[list[int]]:
    """The places of images in batches of at most `most` that all have the same `own_canvas`, the first image's first.

    With others, most batches would have the square canvas, nearly twice the pixels, and an image's detections would
    depend on its neighbours: GroupNorm's statistics are over the padding too.
    """
    places: dict[tuple[int, int], list[int]] = {}
    for place, truth in enumerate(truths):
        places.setdefault(own_canvas(truth, config), []).append(place)
    return sorted(of[i : i + most] for of in places.values() for i in range(0, len(of), most))


def make_batch(
    images: Sequence[bytes | Image.Image],
    truths: Sequence[ImageTruth],
    config: DataConfig,
    draws: Sequence[int] | None = None,
) -> Batch:
    """Decodes and joins images into a batch.

    Args:
        images: encoded bytes, or decoded to RGB, one an image.
        truths: what is in them; in testing only ids and sizes are read.
        config: sizes, and whether half of the training images are mirrored.
        draws: for training, one `draw` an image, from which scale, mirroring and the detector's samples follow; without
            them the batch is for testing: at `short_side`, not mirrored, no targets.

    Raises:
        ImageError: an image cannot be decoded, or its size is not the one stated.
    """
    training = draws is not None
    scales = [at_scale(config, draws[b] if draws is not None else None) for b in range(len(truths))]
    sizes = [resized_size(t.height, t.width, scale) for t, scale in zip(truths, scales, strict=True)]
    height, width = canvas_for(sizes, config if training else at_scale(config, None))
    pixels = np.zeros((len(images), height, width, 3), dtype=np.uint8)
    draws = [0] * len(truths) if draws is None else draws
    flips = [training and config.flip and bool(d & 1) for d in draws]
    for b, (data, truth, (h, w)) in enumerate(zip(images, truths, sizes, strict=True)):
        image = data
        if isinstance(image, bytes):
            image = decode_image(image, truth.height, truth.width, f"image {truth.image_id}")
        if (h, w) != (truth.height, truth.width):
            image = image.resize((w, h), Image.Resampling.BILINEAR)
        array = np.asarray(image)  # [h, w, 3]
        pixels[b, :h, :w] = array[:, ::-1] if flips[b] else array
    return Batch(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),  # [B, H, W, 3] -> [B, 3, H, W]
        sizes=torch.tensor(sizes, dtype=torch.float32),
        image_sizes=torch.tensor([[t.height, t.width] for t in truths], dtype=torch.float32),
        flipped=torch.tensor(flips),
        image_ids=torch.tensor([t.image_id for t in truths]),
        draws=torch.tensor(draws, dtype=torch.int64),
        targets=make_targets(truths, sizes, flips) if training else None,
    )


def make_targets(truths: Sequence[ImageTruth], sizes: Sequence[tuple[int, int]], flips: Sequence[bool]) -> Targets:
    """Ground truth of a batch in network pixels; crowd regions are left out, as in the paper's code."""
    kept = [np.flatnonzero(~t.crowd) for t in truths]
    slots = -(-max((len(k) for k in kept), default=0) // SLOT_STEP) * SLOT_STEP
    boxes = np.zeros((len(truths), slots, 4), dtype=np.float32)
    labels = np.zeros((len(truths), slots), dtype=np.int64)
    areas = np.zeros((len(truths), slots), dtype=np.float32)
    crops = []
    for b, (truth, keep, (h, w), flip) in enumerate(zip(truths, kept, sizes, flips, strict=True)):
        scale = np.array([w / truth.width, h / truth.height] * 2, dtype=np.float32)
        box = truth.boxes[keep] * scale  # [n, 4]
        if flip:
            box[:, [0, 2]] = w - box[:, [2, 0]]
        boxes[b, : len(keep)], labels[b, : len(keep)] = box, truth.categories[keep]
        found = [decode_crop(truth.rles[i], truth.height) for i in keep]
        areas[b, : len(keep)] = [np.count_nonzero(crop) for crop, _ in found]  # the annotated is a polygon's
        crops.append(found)
    return Targets(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(areas), pack_crops(crops, slots))
