"""Each part of the detector compiles as one graph, and the whole runs under bfloat16 autocast."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from msrcnn.box_head import BoxHead
from msrcnn.config import DataConfig, MaskIoUInput, ModelConfig, RoIConfig, RPNConfig, SelectionConfig
from msrcnn.data.batching import make_batch
from msrcnn.detector import MaskScoringRCNN
from msrcnn.mask_head import MaskHead
from msrcnn.maskiou_head import MaskIoUHead
from msrcnn.pooling import PyramidPooler
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch, Detections
from tests.tiny import noise

SIDE, CHANNELS, CLASSES = 96, 16, 3
CONFIG = ModelConfig(
    levels=(3, 4, 5), norm="group_norm", frozen_stages=0, anchor_sizes=((16,), (32,), (64,)), channels=32, hidden=64,
    num_classes=CLASSES, rpn=RPNConfig(samples=64, train_proposals=80, test_proposals=60), roi=RoIConfig(samples=32),
    selection=SelectionConfig(top_k=20),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.compiler.reset()


class Compiled:
    """A function compiled as one graph (anything that needs the interpreter in between raises); counts its graphs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.graphs = 0
        self.function = torch.compile(function, fullgraph=True, backend=self.backend)

    def backend(self, graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward  # as torch's "eager" backend

    def __call__(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def check(function: Callable[..., Any], cases: list[tuple[Any, ...]], graphs: int) -> None:
    """Compiled and plain outputs are equal in each case; no more than so many graphs are made for all of them."""
    torch.compiler.reset()
    compiled = Compiled(function)
    for inputs in cases:
        torch.testing.assert_close(compiled(*inputs), function(*inputs))
    assert 1 <= compiled.graphs <= graphs


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"deformable": True, "anchor_sizes": ((16,), (32,), (64,), (96,))},
    ],
    ids=str,
)
def test_backbone_and_rpn_head_compile(change: dict[str, Any]) -> None:
    model = MaskScoringRCNN(dataclasses.replace(CONFIG, **change)).train()

    def run(images: Tensor, sizes: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        features = model.backbone(images, sizes)
        return features, *model.rpn.head(features)

    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[64.0, 96], [50, 71]])
    check(run, [(images, sizes), (images.flip(0), sizes.flip(0))], graphs=1)


COUNTS = (5, 9, 14, 6)
"""Numbers of RoIs, which on a CPU differ from step to step: the second one may make a graph, for any number."""


@pytest.mark.parametrize(("design", "evidence"), [("a", False), ("a", True), ("c", False), ("d", False)])
def test_roi_heads_compile(design: MaskIoUInput, evidence: bool) -> None:
    """Box, mask and MaskIoU head; the letters are those of Table 4."""
    box, mask = BoxHead(CHANNELS, 32, CLASSES), MaskHead(CHANNELS, CLASSES)
    maskiou = MaskIoUHead(CHANNELS, CHANNELS, 32, CLASSES, design, evidence=evidence)

    def run(small: Tensor, large: Tensor, fused: Tensor) -> tuple[Tensor, ...]:
        masks = mask(large)
        told = small[:, 0, 0, :5] if evidence else None  # [N, 5]
        return *box(small), masks, maskiou(fused, masks[:, 0], masks, told)

    cases = [
        (noise(n, CHANNELS, 7, 7), noise(n, CHANNELS, 14, 14), noise(n, CHANNELS, maskiou.size, maskiou.size))
        for n in COUNTS
    ]
    check(run, cases, graphs=2)


def test_pooling_and_box_head_compile_as_one() -> None:
    box = BoxHead(CHANNELS, 32, CLASSES)
    features = [noise(2, CHANNELS, 128 // s, 192 // s, seed=s) for s in (4, 8, 16)]

    def run(image: Tensor, boxes: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor]:
        return box(PyramidPooler(maps, [4, 8, 16])(image, boxes, 7))

    cases = []
    for n in COUNTS:
        low = noise(n, 2, seed=n).abs() * 30
        boxes = torch.cat([low, low + 5 + noise(n, 2, seed=n + 1).abs() * 60], 1).clamp(max=127)
        cases.append((torch.arange(n) % 2, boxes, *features))
    check(run, cases, graphs=2)


def square_image(number: int) -> tuple[bytes, ImageTruth]:
    """Two squares of different classes on noise."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 120, (SIDE, SIDE, 3)).astype(np.uint8)
    boxes, rles = np.array([[8, 10, 48, 52], [40, 44, 90, 80]], np.float32) + 3 * number, []
    for k, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
        mask[y0:y1, x0:x1] = 1
        pixels[mask.astype(bool), k] = 250
        rles.append(coco_mask.encode(mask)["counts"])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    truth = ImageTruth(
        number, SIDE, SIDE, np.arange(2), np.array([1, 2], np.int32), boxes, areas, np.zeros(2, bool), rles
    )
    return file.getvalue(), truth


def batch_of(training: bool) -> Batch:
    images, truths = zip(*(square_image(k) for k in range(2)), strict=True)
    return make_batch(images, truths, DataConfig(short_side=SIDE, long_side=SIDE), [4, 8] if training else None)


def sure_model() -> MaskScoringRCNN:
    """Heads that tell RoIs apart, as trained ones do."""
    torch.manual_seed(0)
    model = MaskScoringRCNN(CONFIG)
    for layer, std in ((model.box.score, 0.4), (model.box.deltas, 0.05), (model.maskiou.iou, 0.2),
                       (model.rpn.head.objectness, 0.2), (model.rpn.head.deltas, 0.05)):  # fmt: skip
        nn.init.normal_(layer.weight, std=std)
    return model


def test_a_step_in_bfloat16_is_near_one_in_float32() -> None:
    batch, totals, gradients = batch_of(training=True), [], []
    for enabled in (False, True):
        model = sure_model().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = model(batch)
        assert losses.keys() == {"rpn_objectness", "rpn_box", "class", "box", "mask", "maskiou"}
        assert all(loss.isfinite() and loss > 0 for loss in losses.values())
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()
        parameters = list(model.parameters())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        totals.append(total)
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    torch.testing.assert_close(totals[1], totals[0], rtol=0.05, atol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.7  # other proposals, so other samples


def test_detections_in_bfloat16_are_near_those_in_float32() -> None:
    batch, model = batch_of(training=False), sure_model().eval()
    plain: Detections = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        low: Detections = model(batch)
    for b in range(2):
        want, found = plain.valid[b], low.valid[b]
        overlap = box_iou(plain.boxes[b, want], low.boxes[b, found])  # [N, M]
        overlap = overlap.where(plain.labels[b, want][:, None] == low.labels[b, found], 0)
        best, index = overlap.max(1)
        same = best > 0.95  # a score that is a little lower may change SoftNMS's order, and with it who decays
        assert same.sum() >= 0.8 * len(same) >= 8
        for name, within in (("class_scores", 0.05), ("maskious", 0.1), ("masks", 0.5)):
            values = getattr(low, name)[b, found]
            assert values.dtype == torch.float32
            error = (values[index] - getattr(plain, name)[b, want])[same].abs()
            assert error.max() < within
            assert error.mean() < within / 5
