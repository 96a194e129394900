"""A detector of the smallest size with all parts, and images for it; shared by the tests of the detector."""

from __future__ import annotations

import copy
import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch
from PIL import Image
from torch import Tensor

from msrcnn.config import DataConfig, ModelConfig, RoIConfig, RPNConfig, SelectionConfig
from msrcnn.data.batching import draw, make_batch
from msrcnn.data.shapes import draw_image
from msrcnn.data.shapes_config import ShapesConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch, Detections

SIDE = 96
CONFIG = ModelConfig(
    levels=(3, 4, 5), norm="group_norm", frozen_stages=0, anchor_sizes=((16,), (32,), (64,)), channels=32, hidden=64,
    num_classes=3, rpn=RPNConfig(samples=64, train_proposals=80, test_proposals=60), roi=RoIConfig(samples=32),
    selection=SelectionConfig(top_k=30),
)  # fmt: skip
C4: dict[str, Any] = {
    "neck": "none", "levels": (4,), "anchor_sizes": ((16, 32, 64),), "roi": RoIConfig(samples=8),
    "rpn": RPNConfig(samples=64, train_proposals=40, test_proposals=40),
}  # fmt: skip
"""Changes of CONFIG to a detector without a pyramid; of few RoIs, as res5 runs on each."""
DATA = DataConfig(short_side=SIDE, long_side=SIDE)
LOSSES = {"rpn_objectness", "rpn_box", "class", "box", "mask", "maskiou"}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entropy(logit: float, label: float) -> float:
    """Binary cross-entropy by its definition."""
    p = 1 / (1 + math.exp(-logit))
    return -label * math.log(p) - (1 - label) * math.log(1 - p)


def shape_image(index: int, keep: str = "all") -> tuple[bytes, ImageTruth]:
    """An image of the built-in data set; `keep` says which instances: all, none, or all as crowds."""
    image, annotations = draw_image(ShapesConfig(size=SIDE), "train", index)
    annotations = [] if keep == "none" else annotations
    rles = []
    for a in annotations:
        s = a["segmentation"]
        if isinstance(s, list):
            rles.append(coco_mask.merge(coco_mask.frPyObjects(s, SIDE, SIDE))["counts"])
        else:
            rles.append(s["counts"].encode() if isinstance(s["counts"], str)
                        else coco_mask.frPyObjects(s, SIDE, SIDE)["counts"])  # fmt: skip
    xywh = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    truth = ImageTruth(
        index, SIDE, SIDE, np.array([a["id"] for a in annotations], np.int64),
        np.array([(a["category_id"] + 1) // 4 for a in annotations], np.int32),
        np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
        np.array([a["area"] for a in annotations], np.float32),
        np.array([keep == "crowds" or bool(a["iscrowd"]) for a in annotations], bool), rles,
    )  # fmt: skip
    return file.getvalue(), truth


def batch_of(*keep: str, training: bool = True) -> Batch:
    images, truths = zip(*(shape_image(i, k) for i, k in enumerate(keep)), strict=True)
    return make_batch(images, truths, DATA, [draw(0, 0, t.image_id) for t in truths] if training else None)


@lru_cache(maxsize=4)
def _initial(config: ModelConfig) -> tuple[MaskScoringRCNN, Tensor]:
    """A model that nobody changes, and the generator's state after its making."""
    torch.manual_seed(0)
    return MaskScoringRCNN(config), torch.get_rng_state()


def make_model(config: ModelConfig = CONFIG, sure: bool = False) -> MaskScoringRCNN:
    """Initial weights; `sure`: heads that tell RoIs apart, as trained ones do."""
    initial, state = _initial(config)
    model = copy.deepcopy(initial)  # a quarter of the time of drawing weights
    torch.set_rng_state(state)
    if sure:
        for layer, std in ((model.box.score, 0.4), (model.box.deltas, 0.05), (model.maskiou.iou, 0.2),
                           (model.rpn.head.objectness, 0.2), (model.rpn.head.deltas, 0.05)):  # fmt: skip
            torch.nn.init.normal_(layer.weight, std=std)
    return model


def with_good_masks(config: ModelConfig) -> MaskScoringRCNN:
    """Masks that mostly fill their boxes: MaskIoUs are of all sizes, and some detections are matches."""
    model = make_model(config, sure=True)
    model.mask.logits.bias.data.fill_(1.0)
    return model


def losses_of(model: MaskScoringRCNN, batch: Batch) -> dict[str, Tensor]:
    losses = model.train()(batch)
    assert isinstance(losses, dict)
    return losses


def detections_of(model: MaskScoringRCNN, batch: Batch) -> Detections:
    found = model.eval()(batch)
    assert isinstance(found, Detections)
    return found
