"""Images a second from encoded images to detection rows: ours, and torchvision's Mask R-CNN, both R18-FPN on C4 and C5.

ours: what an inference process does with a row group of a shard: decode, resize, detect in batches of one padded
shape, paste and encode inside boxes (on a GPU in a thread beside the network), rows. torchvision: decode, its Mask
R-CNN image by image (its own resizing, pasting into full images), masks cut at 0.5, pycocotools' encoding, rows.
Anchors, proposals, hard NMS at 0.5, score threshold 0.05 and 100 detections an image are the same; weights are random,
with class scores spread out as a trained network's are.

`ratio` compares ours without its MaskIoU head, so that both do the same job, `ratio_with_head` ours with it. The
command fails where a side has not found 100 detections in every image.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.images import Sample, samples
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
from msrcnn.config import DataConfig, ModelConfig, SelectionConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.prediction import suited_batch
from msrcnn.presets import PRESETS
from pipelines.inference import detected_rows
from pipelines.schema import DETECTION_ROW, SHARD_ROW

SELECTION = SelectionConfig(method="hard", iou_threshold=0.5, score_threshold=0.05)
"""torchvision's."""
SPREAD = 0.4
"""Standard deviation of the class scores' weights: some RoIs are sure of a class."""
Rows = Callable[[], pa.Table]


class NoExtraLevel(ExtraFPNBlock):
    """torchvision would add a pooled level."""

    def forward(self, results: list[Any], _x: list[Any], names: list[str]) -> tuple[list[Any], list[str]]:
        """As they are."""
        return results, names


def shard_rows(chosen: Sequence[Sample]) -> pa.Table:
    """The images as a row group."""
    rows = [{"image_id": i, "file_name": "", "height": t.height, "width": t.width, "image": image, "instances": []}
            for i, (image, t) in enumerate(chosen)]  # fmt: skip
    return pa.Table.from_pylist(rows, SHARD_ROW)


def make_ours(config: ModelConfig, head: bool, seed: int) -> MaskScoringRCNN:
    """Our detector with random weights, with or without its MaskIoU head."""
    torch.manual_seed(seed)
    model = MaskScoringRCNN(replace(config, maskiou=replace(config.maskiou, enabled=head), selection=SELECTION))
    nn.init.normal_(model.box.score.weight, std=SPREAD)
    return model.eval()


def make_theirs(config: ModelConfig, data: DataConfig, seed: int) -> MaskRCNN:
    """torchvision's on the same levels of the same trunk, settings as ours."""
    torch.manual_seed(seed)
    trunk = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    levels = {f"layer{level - 1}": str(i) for i, level in enumerate(config.levels)}
    channels = [64 * 2 ** (level - 2) for level in config.levels]
    backbone = BackboneWithFPN(trunk, levels, channels, config.channels, extra_blocks=NoExtraLevel())
    names, proposals = list(levels.values()), config.rpn.test_proposals
    anchors = AnchorGenerator(config.anchor_sizes, ((0.5, 1.0, 2.0),) * len(names))
    model = MaskRCNN(
        backbone, num_classes=config.num_classes + 1, min_size=data.short_side, max_size=data.long_side,
        rpn_anchor_generator=anchors, rpn_pre_nms_top_n_test=proposals, rpn_post_nms_top_n_test=proposals,
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2), mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
        box_score_thresh=SELECTION.score_threshold, box_nms_thresh=SELECTION.iou_threshold,
        box_detections_per_img=SELECTION.top_k,
    )  # fmt: skip
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=SPREAD)
    return model.eval()


@torch.no_grad()
def their_rows(model: MaskRCNN, table: pa.Table, device: torch.device) -> pa.Table:
    """From encoded images to rows, image by image."""
    rows: list[dict[str, Any]] = []
    for image_id, encoded in zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True):
        pixels = pil_to_tensor(Image.open(io.BytesIO(encoded)).convert("RGB")).to(device).float() / 255
        found = {name: value.cpu() for name, value in model([pixels])[0].items()}
        height, width = pixels.shape[1:]
        planes = (np.array(mask.numpy(), dtype=np.uint8, order="F") for mask in found["masks"][:, 0] > 0.5)
        columns = zip(found["labels"].tolist(), found["boxes"].tolist(), found["scores"].tolist(), planes, strict=True)
        rows += [
            {"image_id": image_id, "height": height, "width": width, "category": label, "bbox": box,
             "class_score": score, "maskiou": 1.0, "mask_score": score, "rle": coco_mask.encode(plane)["counts"]}
            for label, box, score, plane in columns
        ]  # fmt: skip
    return pa.Table.from_pylist(rows, DETECTION_ROW)


def main() -> int:
    parser = parser_of(__doc__ or "")
    add_device(parser)
    parser.add_argument("--images", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, help="of ours (default: what an evaluation takes, 1 on a CPU, 8 on a GPU)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    args = parser.parse_args()
    batch = args.batch or suited_batch(args.device)
    images, rounds = (4, 2) if args.quick else (args.images, args.rounds)
    preset = PRESETS["r18-fpn"]
    data = DataConfig(short_side=200, long_side=333) if args.quick else preset.data
    chosen, source = samples(images, args.seed)
    table = shard_rows(chosen)
    print_settings("inference", args.device, images=f"{images}, {source}", resized_to=data, batch_of_ours=batch,
                   selection=SELECTION, weights="random", rounds=rounds, seed=args.seed)  # fmt: skip
    models = {head: make_ours(preset.model, head, args.seed).to(args.device) for head in (False, True)}
    theirs = make_theirs(preset.model, data, args.seed).to(args.device)

    def ours(head: bool) -> pa.Table:
        beside = args.device.type == "cuda"
        rows = list(detected_rows(models[head], data, args.device, batch, table, beside))
        return pa.Table.from_pylist(rows, DETECTION_ROW)

    sides: dict[str, Rows] = {
        "torchvision": lambda: their_rows(theirs, table, args.device),
        "ours": lambda: ours(False),
        "ours_with_head": lambda: ours(True),
    }
    counts = {name: len(side()) - side()["category"].null_count for name, side in sides.items()}
    times = time_in_turn(sides, rounds, clock=device_clock(args.device))
    figures: dict[str, Any] = {}
    for name, of in (("ratio", "ours"), ("ratio_with_head", "ours_with_head")):
        figures[name], figures[f"{name}_spread"] = quotient(times["torchvision"], times[of])
    for name, timing in times.items():
        print(f"{name.replace('_', ' ')}: {images / timing.median:.2f} images/s, {counts[name]} detections")
        figures |= {f"{name}_images_per_second": images / timing.median, f"{name}_detections": counts[name]}
    print_result("inference", args.device, **figures, **milliseconds(**times), images=images, batch=batch,
                 data=[data.short_side, data.long_side], seed=args.seed)  # fmt: skip
    if set(counts.values()) != {images * SELECTION.top_k}:
        print("inference: not every image has 100 detections; another --seed may", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
