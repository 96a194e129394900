"""R50-FPN with a torchvision Mask R-CNN's weights finds what torchvision finds on the same padded images.

A random network scores everything nearly alike. So the trunk's BatchNorm takes the statistics of the test's own
images, and the layers of the RPN and box heads and each last layer are scaled and shifted, channel by channel, until
their outputs on the images have mean 0 and a standard deviation as in a trained network (`SPREADS`). Box deltas are
small enough that no RoI is a sliver at the border, which torchvision pools otherwise by design (`test_pooling`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms
from torchvision.ops.poolers import initLevelMapper

from msrcnn.config import DataConfig, SelectionConfig
from msrcnn.data.batching import make_batch
from msrcnn.data.shapes import draw_image
from msrcnn.data.shapes_config import ShapesConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.masks import paste_and_encode
from msrcnn.presets import PRESETS
from msrcnn.pretrained import load_weights
from msrcnn.rows import ImageTruth
from msrcnn.soft_nms import Selected
from msrcnn.structures import Batch, Detections

CLASSES = 90
SCORE, IOU = 0.05, 0.5
"""torchvision's score threshold and NMS threshold."""
SPREADS = {
    "rpn.head.conv.0.0": 1.0,
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.1,
    "roi_heads.box_head.fc6": 1.0,
    "roi_heads.box_head.fc7": 1.0,
    "roi_heads.box_predictor.cls_score": 2.0,
    "roi_heads.box_predictor.bbox_pred": 1.0,
    "roi_heads.mask_predictor.mask_fcn_logits": 2.0,
}
"""Standard deviation of a layer's outputs, in the order in which they run."""


@dataclass(frozen=True)
class Reference:
    """torchvision's proposals, its box head's answers for them, and its detections; one entry an image."""

    proposals: list[Tensor]  # [P, 4]
    probabilities: list[Tensor]  # [P, 90]
    refined: list[Tensor]  # [P, 90, 4]
    detections: list[dict[str, Tensor]]


def padded(model: MaskRCNN, batch: Batch) -> ImageList:
    """The batch's images as torchvision normalises and pads them, but on the batch's canvas."""
    canvas = torch.zeros(batch.images.shape)
    sizes = [(int(h), int(w)) for h, w in batch.sizes]
    for image, raw, (h, w) in zip(canvas, batch.images, sizes, strict=True):
        image[:, :h, :w] = model.transform.normalize(raw[:, :h, :w].float() / 255)
    return ImageList(canvas, sizes)


@torch.no_grad()
def torchvision_finds(model: MaskRCNN, batch: Batch) -> Reference:
    """torchvision's own forward pass behind its resizing."""
    images, heads = padded(model, batch), model.roi_heads
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes)))
    counts = [len(p) for p in proposals]
    refined = heads.box_coder.decode(deltas, proposals).split(counts)
    for boxes, (h, w) in zip(refined, images.image_sizes, strict=True):
        boxes.clamp_(min=0)
        boxes[..., 0::2].clamp_(max=w)
        boxes[..., 1::2].clamp_(max=h)
    probabilities = logits.softmax(-1).split(counts)
    detections, _ = heads(features, proposals, images.image_sizes)
    return Reference(proposals, [p[:, 1:] for p in probabilities], [r[:, 1:] for r in refined], detections)


@torch.no_grad()
def make_torchvision(batch: Batch, proposals: int, detections: int) -> MaskRCNN:
    """A random Mask R-CNN whose outputs on `batch` spread as a trained one's."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, rpn_pre_nms_top_n_test=proposals,
        rpn_post_nms_top_n_test=proposals, box_detections_per_img=detections,
    )  # fmt: skip
    for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
        # Else torchvision infers the strides from the largest image, wrongly where the canvas is 1.41 times as high.
        pool.scales, pool.map_levels = [1 / 4, 1 / 8, 1 / 16, 1 / 32], initLevelMapper(2, 5)
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
            norm.weight.uniform_(0.5, 1.0).mul_(0.2 if name.endswith("bn3") else 1.0)
            norm.bias.normal_(0, 0.1)
    model.backbone.body.train()(padded(model, batch).tensors)
    model.eval()
    for name, std in SPREADS.items():
        layer, outputs = model.get_submodule(name), []
        hook = layer.register_forward_hook(lambda _m, _i, output, outputs=outputs: outputs.append(output))
        torchvision_finds(model, batch)
        hook.remove()
        values = torch.cat([o.transpose(0, 1).flatten(1) for o in outputs], 1)  # [channels, outputs]
        scale = std / values.std(1)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.sub_(values.mean(1)).mul_(scale)
    return model


def hard_nms(boxes: Tensor, scores: Tensor, config: SelectionConfig) -> Selected:
    """The reference of Mask R-CNN's selection: torchvision's NMS per class, then the best `top_k`."""
    images, classes, count = scores.shape
    slots = Selected(
        torch.zeros(images, config.top_k, 4), torch.zeros(images, config.top_k),
        torch.ones(images, config.top_k, dtype=torch.int64), torch.zeros(images, config.top_k, dtype=torch.bool),
    )  # fmt: skip
    label = torch.arange(1, classes + 1).repeat_interleave(count)
    for b in range(images):
        score, box = scores[b].flatten(), boxes[b].flatten(0, 1)
        index = torch.where(score > config.score_threshold)[0]
        index = index[batched_nms(box[index], score[index], label[index], IOU)][: config.top_k]
        for slot, values in ((slots.boxes, box), (slots.scores, score), (slots.labels, label)):
            slot[b, : len(index)] = values[index]
        slots.valid[b, : len(index)] = True
    return slots


def nearest(ours: Tensor, theirs: Tensor, within: float = 1e-2) -> Tensor:
    """For each of their boxes [N, 4] the index of ours [N, 4] that is the same; one to one."""
    assert len(ours) == len(theirs)
    distance, index = torch.cdist(theirs, ours, p=float("inf")).min(1)
    assert distance.max() <= within
    assert len(index.unique()) == len(index)
    return index


def check_masks(found: Detections, b: int, order: Tensor, theirs: dict[str, Tensor], height: int, width: int) -> None:
    """Masks pasted at the size of the image overlap by 0.999 or more."""
    rles = paste_and_encode(found.masks[b, order], found.boxes[b, order], height, width)
    ours = coco_mask.decode([{"size": [height, width], "counts": rle} for rle in rles]).astype(bool)  # [H, W, D]
    want = paste_masks_in_image(theirs["masks"], theirs["boxes"], (height, width))[:, 0].numpy() > 0.5
    both = (ours & want.transpose(1, 2, 0)).sum((0, 1))
    either = (ours | want.transpose(1, 2, 0)).sum((0, 1))
    assert (either > 0).mean() > 0.9
    assert (both[either > 0] / either[either > 0]).min() >= 0.999


def check_parity(
    batches: list[Batch], proposals: int, detections: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares proposals, class probabilities, refined boxes and detections on each batch."""
    theirs = make_torchvision(batches[0], proposals, detections)
    torch.save(theirs.state_dict(), path)
    preset = PRESETS["r50-fpn"].model
    torch.manual_seed(1)
    ours = MaskScoringRCNN(replace(
        preset, num_classes=CLASSES, rpn=replace(preset.rpn, test_proposals=proposals),
        selection=SelectionConfig(score_threshold=SCORE, top_k=detections),
    )).eval()  # fmt: skip
    report = load_weights(ours, str(path), [f"category {k}" for k in range(1, CLASSES + 1)])
    assert not report.left_over
    assert {name.split(".")[0] for name in report.missing} == {"maskiou"}
    seen: list[tuple[Tensor, Tensor]] = []

    def select(boxes: Tensor, scores: Tensor, config: SelectionConfig) -> Selected:
        seen.append((boxes.transpose(1, 2), scores.transpose(1, 2)))  # [B, R, K, 4], [B, R, K]
        return hard_nms(boxes, scores, config)

    propose, proposed = ours.rpn.propose, []
    monkeypatch.setattr("msrcnn.detector.soft_nms", select)
    monkeypatch.setattr(ours.rpn, "propose", lambda *a: proposed.append(propose(*a)) or proposed[-1])
    for batch in batches:
        want = torchvision_finds(theirs, batch)
        found = ours(batch)
        boxes, scores = seen[-1]
        for b, detected in enumerate(want.detections):
            height, width = (int(side) for side in batch.sizes[b])
            order = nearest(proposed[-1].boxes[b, proposed[-1].valid[b]], want.proposals[b])
            torch.testing.assert_close(scores[b, order], want.probabilities[b], rtol=0, atol=1e-4)
            torch.testing.assert_close(boxes[b, order], want.refined[b], rtol=0, atol=1e-2)

            assert len(detected["boxes"]) > detections // 2
            assert detected["scores"].std() > 0.02
            # Scores nearer than the tolerance may change places over the cut after the last detection.
            last = detected["scores"][-1] if len(detected["scores"]) == detections else 0.0
            clear = detected["scores"] > last + 1e-4
            assert clear.sum() >= len(clear) - 3
            detected = {name: values[clear] for name, values in detected.items()}
            ours_clear = torch.where(found.valid[b] & (found.class_scores[b] > last + 1e-4))[0]
            order = ours_clear[nearest(found.boxes[b, ours_clear], detected["boxes"])]
            assert torch.equal(found.labels[b, order], detected["labels"])
            torch.testing.assert_close(found.class_scores[b, order], detected["scores"], rtol=0, atol=1e-4)
            check_masks(found, b, order, detected, height, width)


def test_two_small_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(128, 160), (100, 131)]
    images = torch.zeros(2, 3, 128, 160, dtype=torch.uint8)
    for b, (h, w) in enumerate(sizes):
        pixels, _ = draw_image(ShapesConfig(size=160), "train", b)
        images[b, :, :h, :w] = torch.from_numpy(pixels[:h, :w]).permute(2, 0, 1)
    size = torch.tensor(sizes).float()
    batch = Batch(images, size, size, torch.zeros(2, dtype=torch.bool), torch.arange(2), torch.arange(2))
    check_parity([batch], 100, 20, tmp_path / "mask_rcnn.pth", monkeypatch)


def coco_batches(folder: Path, images: int, size: int, data: DataConfig) -> Iterator[Batch]:
    entries = json.loads((folder / "annotations" / "instances_val2017.json").read_text())["images"][:images]
    empty: Callable[..., np.ndarray] = np.zeros
    for start in range(0, len(entries), size):
        part = entries[start : start + size]
        truths = [
            ImageTruth(e["id"], e["height"], e["width"], empty(0), empty(0), empty((0, 4)), empty(0), empty(0), [])
            for e in part
        ]
        yield make_batch([(folder / "val2017" / e["file_name"]).read_bytes() for e in part], truths, data)


@pytest.mark.slow
def test_eight_images_of_coco(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = list(coco_batches(data_dir / "coco_sample", 8, 2, DataConfig(short_side=256, long_side=427)))
    check_parity(batches, 300, 50, tmp_path / "mask_rcnn.pth", monkeypatch)
