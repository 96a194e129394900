"""The two detectors whose training steps `train_step` compares, on the same images, and their steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.images import Sample, full_image_masks
from msrcnn.backbones import IMAGE_MEAN, IMAGE_STD
from msrcnn.compiling import compile_parts
from msrcnn.config import ModelConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.solver import clip_gradients, guarded_step, make_optimizer, set_learning_rate
from msrcnn.structures import Batch

TRAINED_STAGES = 3
"""C3 to C5 of torchvision's trunk, as ours with `frozen_stages` 2."""
MASK_HEADS = {"ours": "mask", "torchvision": "roi_heads.mask_head"}
"""Where each detector has the module that reads the mask RoIs' features."""

Mark = Callable[[str], None]
"""Told the name of the part of a step that has just ended."""
Losses = Callable[[], dict[str, Tensor]]
"""Computes a detector's losses on its images."""
OUTSIDE = "outside"
"""The name of what is neither forward, backward nor optimiser."""


def unmarked(_part: str) -> None:
    """For steps whose parts do not matter."""


class OnCanvas(GeneralizedRCNNTransform):
    """torchvision's normalisation without its resizing, padded to a given canvas."""

    def __init__(self, canvas: tuple[int, int]) -> None:
        super().__init__(1, 1, list(IMAGE_MEAN), list(IMAGE_STD))
        self.canvas = canvas

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Images [3, h, w] in [0, 1] and their targets, which are left as they are."""
        padded = images[0].new_zeros(len(images), 3, *self.canvas)
        for canvas, image in zip(padded, images, strict=True):
            canvas[:, : image.shape[1], : image.shape[2]] = self.normalize(image)
        return ImageList(padded, [(i.shape[1], i.shape[2]) for i in images]), targets


def dense_batch(chosen: list[Sample], batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The batch as torchvision takes it: images [3, h, w] in [0, 1], and boxes, labels, masks uint8 [G, h, w]."""
    assert batch.targets is not None
    images, targets = [], []
    for b, (_, truth) in enumerate(chosen):
        h, w = (int(side) for side in batch.sizes[b])
        images.append(batch.images[b, :, :h, :w].float() / 255)
        masks = nn.functional.interpolate(full_image_masks(truth)[:, None].float(), size=(h, w))[:, 0].byte()
        valid = batch.targets.valid[b]
        targets.append({"boxes": batch.targets.boxes[b, valid], "labels": batch.targets.labels[b, valid],
                        "masks": masks})  # fmt: skip
    return images, targets


def make_ours(config: ModelConfig, batch: Batch, head: bool, compiled: bool) -> tuple[MaskScoringRCNN, Losses]:
    """Our detector on the batch's device, with or without its MaskIoU head, and what gives its losses."""
    config = replace(config, maskiou=replace(config.maskiou, enabled=head))
    model = MaskScoringRCNN(config).to(batch.images.device).train()
    if compiled:
        compile_parts(model)
    return model, lambda: model(batch)


def make_theirs(config: ModelConfig, chosen: list[Sample], batch: Batch) -> tuple[MaskRCNN, Losses]:
    """torchvision's Mask R-CNN on the batch's device, and what gives its losses; settings as ours."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=TRAINED_STAGES
    )
    model = MaskRCNN(
        backbone, num_classes=config.num_classes + 1, box_batch_size_per_image=config.roi.samples,
        box_positive_fraction=config.roi.positive_fraction, box_fg_iou_thresh=config.roi.positive_iou,
        box_bg_iou_thresh=config.roi.positive_iou,
    )  # fmt: skip
    model.transform = OnCanvas((batch.images.shape[2], batch.images.shape[3]))
    device = batch.images.device
    images, targets = dense_batch(chosen, batch.to("cpu"))
    images = [image.to(device) for image in images]
    targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
    model.to(device).train()
    return model, lambda: model(images, targets)


def our_step(model: MaskScoringRCNN, losses_of: Losses, bfloat16: bool) -> Callable[[Mark], None]:
    """A step as `msrcnn train` takes it, at the learning rate 0: norm of the gradient, guard and sums for a record.

    The record is read after each step here, in training after 20.
    """
    optimizer = make_optimizer(model, SolverConfig())
    device_type = next(model.parameters()).device.type
    sums: dict[str, Tensor] = {}

    def step(mark: Mark) -> None:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=bfloat16):
            losses = losses_of()
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        mark("forward")
        optimizer.zero_grad(set_to_none=True)
        mark(OUTSIDE)
        total.backward()
        mark("backward")
        norm = clip_gradients(model, 0.0)
        ok = total.isfinite() & norm.isfinite()
        set_learning_rate(optimizer, 0.0)
        mark(OUTSIDE)
        guarded_step(optimizer, ok)
        mark("optimiser")
        for name, value in {**losses, "gradient_norm": norm}.items():
            sums[name] = value.detach() + sums.get(name, 0)
        if mark is not unmarked:  # it waits for the device, which a step does not
            torch.stack([value.float() for value in sums.values()]).tolist()
        mark(OUTSIDE)

    return step


def their_step(model: nn.Module, losses_of: Losses, bfloat16: bool) -> Callable[[Mark], None]:
    """A step as in torchvision's detection references, at the learning rate 0; torch chooses how SGD is computed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    solver = SolverConfig()
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=solver.momentum, weight_decay=solver.weight_decay)
    device_type = trained[0].device.type

    def step(_mark: Mark) -> None:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=bfloat16):
            losses = losses_of()
        optimizer.zero_grad(set_to_none=True)
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        optimizer.step()

    return step
