"""The paper's rows by name, and two for a laptop: settings of model, solver and input that belong together.

NAME+ap is that preset's detector, finished, to which a MaskIoU head is trained that learns what a detection is worth
to AP (docs/training.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from msrcnn.config import TRUNK_LEVELS, DataConfig, ModelConfig, RoIConfig, RPNConfig, SolverConfig
from msrcnn.errors import InputError, closest, meant


@dataclass(frozen=True)
class Preset:
    """Model, solver and input sizes that belong together."""

    model: ModelConfig
    solver: SolverConfig
    data: DataConfig


def pyramid(backbone: Literal["resnet50", "resnet101"], deformable: bool = False) -> Preset:
    """The paper's rows on ResNet-50/101 FPN: C2 to C5 and a pooled P6, an octave of anchors a level, 800/1333."""
    sizes = ((32,), (64,), (128,), (256,), (512,))
    model = ModelConfig(backbone=backbone, deformable=deformable, levels=TRUNK_LEVELS, anchor_sizes=sizes)
    return Preset(model, SolverConfig(), DataConfig(short_side=800, long_side=1333))


def plain_c4(backbone: Literal["resnet50", "resnet101"]) -> Preset:
    """The paper's row without a pyramid: five octaves of anchors on C4, res5 in the heads, 800/1333.

    12000 anchors enter NMS in training and 6000 in testing, as Detectron's C4 models have it: one level must do what
    five do in a pyramid.
    """
    model = ModelConfig(
        backbone=backbone, neck="none", levels=(4,), anchor_sizes=((32, 64, 128, 256, 512),),
        rpn=RPNConfig(candidates=6),
    )  # fmt: skip
    return Preset(model, SolverConfig(), DataConfig(short_side=800, long_side=1333))


PRESETS: dict[str, Preset] = {
    # Table 1, first row: 600/1000 pixels, C4 and C5 only.
    "r18-fpn": Preset(ModelConfig(), SolverConfig(), DataConfig()),
    # Tables 1 to 3: the pyramid of Lin et al. (CVPR 2017); the last with deformable convolutions (Dai et al., 2017).
    "r50-fpn": pyramid("resnet50"),
    "r101-fpn": pyramid("resnet101"),
    "r101-dcn-fpn": pyramid("resnet101", deformable=True),
    # Tables 2 and 3: Faster R-CNN as it was before pyramids (Ren et al., 2015; He et al., CVPR 2016).
    "r101-c4": plain_c4("resnet101"),
    # A few hundred images on a laptop: 431 images of nuclei take 5 to 7 minutes on 2 cores and give mask AP 35
    # (docs/own_data.md). Small images and objects, so the pyramid begins at C2, with anchors from 16 pixels on.
    "small": Preset(
        ModelConfig(
            levels=(2, 3, 4, 5),
            anchor_sizes=((16,), (32,), (64,), (128,)),
            channels=64,
            hidden=256,
            rpn=RPNConfig(samples=128, train_proposals=500, test_proposals=300),
            roi=RoIConfig(samples=128),
        ),
        SolverConfig(epochs=3, decay_epochs=(2,), batch=4, warmup_steps=50, clip_norm=10.0),
        DataConfig(short_side=256, long_side=384),
    ),
    # The built-in shapes on a laptop: from scratch at 160 pixels without upscaling. At a quarter of the paper's
    # image size its stride-16 level would leave an object 3 cells, so the pyramid begins at C2.
    "demo": Preset(
        ModelConfig(
            levels=(2, 3, 4, 5),
            norm="group_norm",
            frozen_stages=0,
            anchor_sizes=((16,), (32,), (64,), (128,)),
            channels=64,
            hidden=256,
            num_classes=3,
            rpn=RPNConfig(samples=128, train_proposals=500, test_proposals=300),
            roi=RoIConfig(samples=128),
        ),
        SolverConfig(epochs=4, decay_epochs=(3,), batch=4, lr=0.08, warmup_steps=100, clip_norm=10.0),
        DataConfig(short_side=160, long_side=160),
    ),
}
"""Settings by name: the paper's rows, `small` and `demo`."""


DEFAULT_PRESET = "r18-fpn"
"""Where none is named."""
AP = "+ap"
"""Ends the name of a preset whose MaskIoU head is trained for AP, alone."""
ON_FINISHED_TRUNK: dict[str, Any] = {"lr": 0.32, "warmup_factor": 0.02, "clip_norm": 1.0}
"""Solver of MaskIoU heads on a finished trunk. The whole detector's learning rate leaves them far from done: after two
epochs of nuclei, correlation over all detections 0.84 at 0.04 for 16 images, 0.88 at 0.64 (images that neither had
seen). Such a rate from the first step on, or a step of a large gradient, kills a head's units for good."""

POWER = 2.0
"""Of the worth in mask scores. On held-out training images nuclei chose 4, shapes 2 (docs/results.md)."""


def find_preset(name: str) -> Preset:
    """The preset called `name`, or one for AP if that ends in +ap.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    base = name.removesuffix(AP)
    if base not in PRESETS:
        hint = meant(closest(base, PRESETS))
        raise InputError(f"--preset {name}: no such preset; {hint}there are {', '.join(PRESETS)}, and each with {AP}")
    return for_ap(PRESETS[base]) if name.endswith(AP) else PRESETS[base]


def for_ap(preset: Preset) -> Preset:
    """A MaskIoU head that learns, on detections, what each is worth to AP; the rest of the detector stays as it is."""
    maskiou = replace(preset.model.maskiou, rois="detections", tau=-1.0, loss="bce", goal="ap", power=POWER)
    solver = replace(preset.solver, **ON_FINISHED_TRUNK)
    return Preset(replace(preset.model, trained="maskiou", maskiou=maskiou), solver, preset.data)
