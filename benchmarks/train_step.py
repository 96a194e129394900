"""A training step beside torchvision's Mask R-CNN: time, images a second and, on a GPU, peak memory.

Both are a ResNet-50 FPN with frozen BatchNorm, stem and first stage, and get the same images on the same padded canvas,
already resized and on the device; ours with ragged masks, torchvision's with dense ones at the network's resolution.
Weights are random, with the learning rate 0 so that every step does the same work, and RoIs count as positive from an
IoU of 0.1 so that both mask heads are as busy as in a trained network. A step is forward, backward and optimiser. It
is not the same computation: ours has the MaskIoU head besides, and on a GPU computes slots that torchvision leaves out.

float32 is torch's default (a GPU's convolutions then use TF32); a GPU also has rows in bfloat16 by autocast, and ours
compiled. On a GPU one step of ours runs with synchronisations forbidden; the command fails where there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.images import Sample, busy, full_image_masks, samples, training_batch
from benchmarks.measuring import (
    add_device,
    device_clock,
    milliseconds,
    parser_of,
    print_result,
    print_settings,
    quotient,
    time_in_turn,
)
from msrcnn.backbones import IMAGE_MEAN, IMAGE_STD
from msrcnn.config import DataConfig, ModelConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.presets import PRESETS
from msrcnn.solver import make_optimizer, set_learning_rate
from msrcnn.structures import Batch

TRAINED_STAGES = 3
"""C3 to C5 of torchvision's trunk, as ours with `frozen_stages` 2."""
WARM_UP = 3
"""Steps before anything is measured: kernels are chosen, momentum allocated."""

SYNCHRONISATIONS = "synchronisations"
"""Figures whose names end so must be "none"."""

Builder = Callable[[], tuple[nn.Module, Callable[[], object]]]
"""Gives a detector on the device and what computes its losses."""


@dataclass(frozen=True)
class Side:
    """One of the compared detectors, on the device and warm."""

    step: Callable[[], object]
    mask_rois: int
    """RoIs that its mask head sees in a step"""
    peak_bytes: int | None
    """most memory in a step: weights, gradients, momentum, batch and activations; None on a CPU"""


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


def make_ours(config: ModelConfig, batch: Batch, compiled: bool) -> tuple[MaskScoringRCNN, Callable[[], object]]:
    """Our detector on the batch's device, and what gives its losses."""
    model = MaskScoringRCNN(config).to(batch.images.device).train()
    if compiled:
        for part in (model.backbone, model.rpn.head, model.box, model.mask, model.maskiou):
            part.compile()
    return model, lambda: model(batch)


def make_theirs(config: ModelConfig, chosen: list[Sample], batch: Batch) -> tuple[MaskRCNN, Callable[[], object]]:
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


def train_step(model: nn.Module, losses_of: Callable[[], object], bfloat16: bool) -> Callable[[], object]:
    """Forward, backward and SGD at the learning rate 0."""
    optimizer = make_optimizer(model, SolverConfig())
    set_learning_rate(optimizer, 0.0)
    device_type = next(model.parameters()).device.type

    def step() -> None:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=bfloat16):
            losses = losses_of()
        assert isinstance(losses, dict)
        optimizer.zero_grad(set_to_none=True)
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        optimizer.step()

    return step


def make_side(build: Builder, bfloat16: bool, device: torch.device, warm_up: int) -> Side:
    """Builds one side, warms it up and measures its memory; what other sides hold is not counted."""
    cuda = device.type == "cuda"
    others = torch.cuda.memory_allocated(device) if cuda else 0
    model, losses_of = build()
    mask_head = model.get_submodule("mask" if isinstance(model, MaskScoringRCNN) else "roi_heads.mask_head")
    seen: list[int] = []
    hook = mask_head.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    step = train_step(model, losses_of, bfloat16)
    step()
    hook.remove()
    for _ in range(warm_up - 1):
        step()
    if not cuda:
        return Side(step, seen[0], None)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return Side(step, seen[0], torch.cuda.max_memory_allocated(device) - others)


def synchronisations(step: Callable[[], object]) -> str:
    """ "none", or what PyTorch says of the first synchronisation of host and device in a step."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def compare(builders: dict[str, Builder], bfloat16: bool, batch: Batch, rounds: int, warm_up: int) -> dict[str, object]:
    """Builds all sides, times them in turn and prints a row each.

    Returns:
        The figures; their names begin with the precision and the side.
    """
    device, precision = batch.images.device, "bfloat16" if bfloat16 else "float32"
    sides = {name: make_side(build, bfloat16, device, warm_up) for name, build in builders.items()}
    timings = time_in_turn({n: s.step for n, s in sides.items()}, rounds, warm_up=0, clock=device_clock(device))
    figures: dict[str, object] = {}
    for name, side in sides.items():
        timing = timings[name]
        rate = len(batch.images) / timing.median
        ratio, spread = quotient(timings["torchvision"], timing)
        row = {"ratio": ratio, "ratio_spread": spread, "images_per_second": rate, "mask_rois": side.mask_rois}
        row |= milliseconds(step=timing)
        memory = ""
        if side.peak_bytes is not None:
            row["peak_bytes"], memory = side.peak_bytes, f", peak {side.peak_bytes / 2**30:.2f} GiB"
        print(f"{precision} {name}: {timing.text}, {rate:.2f} images/s{memory}, {side.mask_rois} mask RoIs; "
              f"{ratio:.2f} times torchvision's speed")  # fmt: skip
        figures |= {f"{precision}_{name}_{figure}": value for figure, value in row.items()}
    if device.type == "cuda":
        found = figures[f"{precision}_{SYNCHRONISATIONS}"] = synchronisations(sides["ours"].step)
        print(f"{precision} synchronisations of host and device in a step of ours: {found}")
    return figures


def main() -> int:
    parser = parser_of(__doc__ or "")
    add_device(parser)
    size = PRESETS["r50-fpn"].data
    parser.add_argument("--batch", type=int, default=2, help="images (default: %(default)s)")
    parser.add_argument("--short-side", type=int, default=size.short_side, help="pixels (default: %(default)s)")
    parser.add_argument("--long-side", type=int, default=size.long_side, help="pixels (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="ours compiled too; a GPU always has this row")
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 10 on a GPU, 3 on a CPU, 2 with --quick)")
    args = parser.parse_args()
    cuda = args.device.type == "cuda"
    data = DataConfig(256, 416, flip=False) if args.quick else DataConfig(args.short_side, args.long_side, flip=False)
    rounds = args.rounds or (2 if args.quick else 10 if cuda else 3)
    model = PRESETS["r50-fpn"].model
    config = busy(model, 64 if args.quick else model.roi.samples)
    chosen, source = samples(args.batch, args.seed)
    batch = training_batch(chosen, data, args.seed).to(args.device)
    print_settings(
        "train_step", args.device, images=f"{args.batch}, {source}", canvas=tuple(batch.images.shape[2:]),
        instances=[len(truth.rles) for _, truth in chosen], rois_an_image=config.roi.samples,
        positive_iou=config.roi.positive_iou, rounds=rounds, seed=args.seed,
    )  # fmt: skip
    torch.manual_seed(args.seed)
    builders: dict[str, Builder] = {
        "ours": lambda: make_ours(config, batch, False),
        "torchvision": lambda: make_theirs(config, chosen, batch),
    }
    if args.compile or cuda:
        builders["ours_compiled"] = lambda: make_ours(config, batch, True)
    figures: dict[str, object] = {}
    for bfloat16 in (False, True) if cuda else (False,):
        figures |= compare(builders, bfloat16, batch, rounds, WARM_UP if cuda else 1)
    print_result(
        "train_step", args.device, ratio=figures["float32_ours_ratio"], **figures, batch=args.batch,
        canvas=list(batch.images.shape[2:]), seed=args.seed,
    )  # fmt: skip
    return 0 if all(v == "none" for name, v in figures.items() if name.endswith(SYNCHRONISATIONS)) else 1


if __name__ == "__main__":
    sys.exit(main())
