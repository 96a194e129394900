"""What benchmarks feed a detector: COCO's images where MSRCNN_DATA is set, else drawn ones; random weights kept busy.

The drawn ones need numpy and pillow only. (The built-in shapes are square, take long to draw at COCO's size, and need
pycocotools.)
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msrcnn.config import DataConfig, ModelConfig
from msrcnn.data.batching import draw, make_batch
from msrcnn.rle import decode_crop, encode_crops
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch

if TYPE_CHECKING:
    from msrcnn.data.coco import ImageRecord  # reads with pycocotools, which drawn images do without

HEIGHT, WIDTH = 480, 640
"""Pixels of a drawn image that lies, COCO's most frequent size."""
PORTRAIT = 4
"""Every so-manieth drawn image is a portrait one where both kinds are wanted, about as in COCO (26%)."""
INSTANCES = (4, 11)
"""Instances of a drawn image, COCO's mean of 7.3 between the limits."""
SIDES = (16.0, 300.0)
"""Sides of drawn instances, pixels, drawn evenly in their logarithm."""
CATEGORIES = 80
BUSY_POSITIVE_IOU = 0.1
"""Overlap at which a random network's proposals give the heads as many positive RoIs as they take."""

Sample = tuple[bytes, ImageTruth]
"""Encoded image and what is in it."""


def data_folder() -> Path | None:
    """The folder of real data sets that MSRCNN_DATA names, if it does."""
    found = os.environ.get("MSRCNN_DATA")
    return Path(found) if found else None


def busy(config: ModelConfig, samples: int) -> ModelConfig:
    """The model with `samples` training RoIs an image, whose positive slots random weights fill too.

    A trained network's proposals overlap the instances; a random one's hardly do, and its mask and MaskIoU heads would
    have next to nothing to train on.
    """
    return replace(config, roi=replace(config.roi, samples=samples, positive_iou=BUSY_POSITIVE_IOU))


def read_truth(record: ImageRecord, numbers: dict[int, int]) -> ImageTruth:
    """An image's instances without its crowd regions, which nothing here uses."""
    from msrcnn.data.coco import read_instance

    instances = [
        read_instance(a, record.height, record.width, numbers) for a in record.annotations if not a.get("iscrowd", 0)
    ]
    return ImageTruth(
        record.image_id, record.height, record.width,
        np.array([i.annotation_id for i in instances]),
        np.array([i.category for i in instances], np.int32),
        np.array([i.bbox for i in instances], np.float32),
        np.array([i.area for i in instances], np.float32),
        np.zeros(len(instances), bool),
        [i.rle for i in instances],
    )  # fmt: skip


def read_samples(images: Path, annotations: Path, most: int, landscape: bool) -> list[Sample]:
    """The first `most` images of a COCO file with at least as many annotations as a drawn image may have.

    `landscape`: only images that are wider than high.
    """
    from msrcnn.data.coco import read_coco

    dataset = read_coco(annotations)
    numbers = {category.source_id: i for i, category in enumerate(dataset.categories, start=1)}
    wanted = (r for r in dataset.images if r.width > r.height or not landscape)
    chosen = [r for r in wanted if len(r.annotations) >= INSTANCES[0]][:most]
    return [((images / r.file_name).read_bytes(), read_truth(r, numbers)) for r in chosen]


def draw_sample(image_id: int, seed: int, portrait: bool = False) -> Sample:
    """A noisy image with ellipses, a function of its arguments alone."""
    rng = np.random.default_rng([seed, image_id])
    height, width = (WIDTH, HEIGHT) if portrait else (HEIGHT, WIDTH)
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    count = int(rng.integers(INSTANCES[0], INSTANCES[1] + 1))
    boxes = np.zeros((count, 4), np.float32)
    areas, ellipses = np.zeros(count, np.float32), []
    for g in range(count):
        w, h = np.exp(rng.uniform(np.log(SIDES[0]), np.log(SIDES[1]), 2)).astype(int)
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        y, x = (np.arange(h) + 0.5) * 2 / h - 1, (np.arange(w) + 0.5) * 2 / w - 1
        ellipse = y[:, None] ** 2 + x[None, :] ** 2 <= 1  # [h, w]
        pixels[top : top + h, left : left + w][ellipse] = rng.integers(0, 256, 3)
        boxes[g], areas[g] = (left, top, left + w, top + h), ellipse.sum()
        ellipses.append(ellipse)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG")
    categories = rng.integers(1, CATEGORIES + 1, count).astype(np.int32)
    corners = [(int(left), int(top)) for left, top in boxes[:, :2]]
    rles, crowd = encode_crops(ellipses, corners, height, width), np.zeros(count, bool)
    truth = ImageTruth(image_id, height, width, np.arange(count), categories, boxes, areas, crowd, rles)
    return encoded.getvalue(), truth


def samples(count: int, seed: int, landscape: bool = False) -> tuple[list[Sample], str]:
    """`count` images with instances, and where they are from.

    Args:
        count: of the images.
        seed: of drawn ones.
        landscape: whether all are, for what is measured on a single batch; else some are portrait, as in COCO.
    """
    folder = data_folder()
    if folder is None:
        drawn = [draw_sample(i, seed, not landscape and i % PORTRAIT == 0) for i in range(count)]
        return drawn, "drawn (MSRCNN_DATA is not set)"
    root = folder / "coco_sample"
    found = read_samples(root / "val2017", root / "annotations" / "instances_val2017.json", count, landscape)
    return found, "COCO val2017"


def training_batch(chosen: Sequence[Sample], data: DataConfig, seed: int) -> Batch:
    """The images as a batch to train on."""
    draws = [draw(seed, 0, truth.image_id) for _, truth in chosen]
    return make_batch([image for image, _ in chosen], [truth for _, truth in chosen], data, draws)


def full_image_masks(truth: ImageTruth) -> Tensor:
    """An image's masks as torchvision's detection pipelines load them: uint8 [G, height, width]."""
    masks = torch.zeros(len(truth.rles), truth.height, truth.width, dtype=torch.uint8)
    for mask, rle in zip(masks, truth.rles, strict=True):
        crop, (left, top, width, height) = decode_crop(rle, truth.height)
        mask[top : top + height, left : left + width] = torch.from_numpy(crop)
    return masks
