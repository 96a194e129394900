"""The whole detector on tiny images: learning, gradients in every corner case, and what detections promise."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from msrcnn.boxes import pairwise_iou
from msrcnn.config import MaskIoUConfig, MaskIoUInput, MaskIoUTarget, SelectionConfig, SelectionMethod
from msrcnn.data.batching import make_batch
from msrcnn.detection_rows import detection_rows
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.maskiou_heads import loss_names
from msrcnn.proposals import Proposals
from msrcnn.structures import Batch, Detections
from tests.tiny import C4, CONFIG, DATA, LOSSES, batch_of, detections_of, losses_of, make_model, shape_image

pytestmark = pytest.mark.usefixtures("one_thread")


def named(change: dict[str, Any]) -> str:
    """A test's id without the numbers of samples."""
    return str({name: value for name, value in change.items() if name not in ("roi", "rpn")})


def test_training_on_one_batch_lowers_the_loss() -> None:
    model, batch = make_model(), batch_of("all", "all")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    history = []
    for step in range(15):
        # other samples each step, as in training
        losses = losses_of(model, dataclasses.replace(batch, draws=batch.draws + step))
        assert losses.keys() == LOSSES
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append(total.item())
    assert np.isfinite(history).all()
    assert np.mean(history[-3:]) < 0.8 * np.mean(history[:3])


@pytest.mark.parametrize(
    "change",
    [
        {"levels": (4, 5), "anchor_sizes": ((16, 32), (32, 64))},
        {"norm": "sync_bn"},
        {"deformable": True},
        {"backbone": "resnet50", "levels": (2, 3, 4, 5), "anchor_sizes": ((8,), (16,), (32,), (64,), (96,))},
        {"backbone": "resnet101", "deformable": True},
        {"backbone": "resnet101", **C4},
    ],
    ids=named,
)
def test_every_backbone_trains_a_step_and_detects(change: dict[str, Any]) -> None:
    model, batch = make_model(dataclasses.replace(CONFIG, **change)), batch_of("all", "all")
    before = [p.detach().clone() for p in model.backbone.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.stack(list(losses_of(model, batch).values())).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    still = {n for (n, p), b in zip(model.backbone.named_parameters(), before, strict=True) if torch.equal(p, b)}
    assert not still
    found = detections_of(model, batch)
    assert found.valid.any(1).all()
    for tensor in (found.boxes, found.class_scores, found.maskious, found.masks):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("keep", [("none", "none"), ("none", "all"), ("crowds", "crowds"), ("all", "all")])
@pytest.mark.parametrize("change", [{}, {"norm": "frozen_bn"}, C4], ids=["fpn", "frozen", "c4"])
def test_losses_are_finite_and_reach_every_parameter(keep: tuple[str, ...], change: dict[str, Any]) -> None:
    """Also without an instance: DistributedDataParallel waits for each parameter's gradient."""
    model = make_model(dataclasses.replace(CONFIG, **change))
    losses = losses_of(model, batch_of(*keep))
    assert losses.keys() == LOSSES
    for name, loss in losses.items():
        assert loss.shape == ()
        assert loss.isfinite(), name
        assert loss >= 0, name
    empty = "all" not in keep
    assert (losses["mask"] == 0) == (losses["maskiou"] == 0) == (losses["box"] == 0) == empty
    assert losses["rpn_objectness"] > 0
    torch.stack(list(losses.values())).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


def test_an_empty_image_beside_a_full_one_trains_on_both() -> None:
    """The empty image's RoIs are all background; the full one's positive RoIs keep their own instances."""
    model, batch = make_model().train(), batch_of("none", "all")
    assert batch.targets is not None
    boxes = torch.tensor([[[0.0, 0, 30, 30], [40, 40, 90, 90]]]).expand(2, -1, -1)
    proposals = Proposals(boxes, torch.tensor([[True, True], [True, False]]))
    rois, labels, instance, valid = model.sample_rois(proposals, batch.targets, batch.draws)
    count = int(batch.targets.valid[1].sum())
    assert not labels[0].any()
    assert int(valid[0].sum()) == 2
    positive = labels[1] > 0
    assert int(positive.sum()) == min(count, CONFIG.roi.positive_samples)
    assert torch.equal(rois[1, positive], batch.targets.boxes[1, instance[1, positive]])  # the instances themselves
    assert torch.equal(labels[1, positive], batch.targets.labels[1, instance[1, positive]])
    assert int(valid[1].sum()) <= count + 1  # the proposal that is not valid is never drawn as background,
    ghost = batch.targets.boxes[:, :1] + 0.5
    proposals = Proposals(ghost, torch.zeros(2, 1, dtype=torch.bool))
    for step in range(5):
        rois, labels, _, valid = model.sample_rois(proposals, batch.targets, batch.draws + step)
        assert not (valid & (rois == ghost).all(-1)).any()  # nor as a positive RoI
        assert not (labels.bool() & ~valid).any()


def test_the_maskiou_loss_reaches_trunk_and_mask_head() -> None:
    """No stop-gradient on the MaskIoU head's input (Fig. 3); the mask head is reached through the mask alone."""
    model = make_model(sure=True)
    loss = losses_of(model, batch_of("all", "all"))["maskiou"]
    assert loss > 0
    loss.backward()
    for part in (model.backbone.trunk.conv1, model.backbone.fpn, *model.mask.convs, model.mask.logits, model.maskiou):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    for part in (model.box, model.rpn):
        assert all(p.grad is None or not p.grad.any() for p in part.parameters())


def test_the_maskiou_loss_reaches_the_trunk_through_the_feature() -> None:
    """With a mask that the feature does not change, what is left is the path through the RoI feature."""
    model = make_model(sure=True)
    torch.nn.init.zeros_(model.mask.logits.weight)
    torch.nn.init.ones_(model.mask.logits.get_parameter("bias"))
    losses_of(model, batch_of("all", "all"))["maskiou"].backward()
    gradient = model.backbone.trunk.conv1.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_weight_and_tau_of_the_maskiou_loss() -> None:
    batch = batch_of("all", "all")
    plain = losses_of(make_model(sure=True), batch)
    config = dataclasses.replace(CONFIG, maskiou=MaskIoUConfig(weight=3.0))
    heavy = losses_of(make_model(config, sure=True), batch)
    torch.testing.assert_close(heavy["maskiou"], 3 * plain["maskiou"])
    torch.testing.assert_close(heavy["mask"], plain["mask"])
    strict = losses_of(make_model(dataclasses.replace(CONFIG, maskiou=MaskIoUConfig(tau=0.95)), sure=True), batch)
    assert strict["maskiou"] == 0  # no initial mask is that good


OF_PROPOSALS = [
    *(MaskIoUConfig(input=design) for design in get_args(MaskIoUInput)),
    *(MaskIoUConfig(target=target) for target in get_args(MaskIoUTarget)[1:]),
    MaskIoUConfig(tau=0.3),
    MaskIoUConfig(weight=2.0),
]
OF_DETECTIONS = [
    MaskIoUConfig(rois="detections", tau=-1.0, unmatched="zero"),
    MaskIoUConfig(rois="both", target=3, evidence=True, balanced=True, loss="bce"),
    MaskIoUConfig(rois="detections", tau=-1.0, loss="bce", goal="ap"),
]
ON_ONE_TRUNK = {"heads": tuple(MaskIoUConfig().name_of(option) for option in OF_PROPOSALS[1:])}
"""All that train on proposals, beside the default."""


@pytest.mark.parametrize("option", [*OF_PROPOSALS, *OF_DETECTIONS])
def test_a_step_on_each_option_lowers_the_loss(option: MaskIoUConfig) -> None:
    """The sum of all losses, and the MaskIoU loss alone by a step of its head, under which its targets stay."""
    model, batch = make_model(dataclasses.replace(CONFIG, maskiou=option)), batch_of("all", "all")
    for trained, names in ((model, LOSSES), (model.maskiou, {"maskiou"})):
        history = []
        for _ in range(2):
            losses = losses_of(model, batch)
            total = torch.stack([losses[name] for name in sorted(names)]).sum()
            history.append(total.item())
            model.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 5.0)
            torch.optim.SGD(trained.parameters(), lr=0.01).step()
        assert history[1] < history[0]


@cache
def by_default() -> tuple[dict[str, Tensor], Detections]:
    """A trunk, and what the default head finds on it."""
    model = make_model(sure=True)
    trunk = {name: value for name, value in model.state_dict().items() if "maskiou" not in name}
    return trunk, detections_of(model, batch_of("all", "all", training=False))


@pytest.mark.parametrize("change", [ON_ONE_TRUNK, *({"maskiou": option} for option in OF_DETECTIONS)], ids=str)
def test_each_option_detects(change: dict[str, Any]) -> None:
    """A MaskIoU for each detection, of the same boxes and masks whatever the option."""
    trunk, plain = by_default()
    model = make_model(dataclasses.replace(CONFIG, **change), sure=True)
    model.load_state_dict(trunk, strict=False)
    found = detections_of(model, batch_of("all", "all", training=False))
    for name in ("boxes", "labels", "class_scores", "masks", "valid"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    maskious = torch.cat([found.maskious[..., None], found.head_maskious], -1)  # [B, D, 1 + V]
    columns = maskious[found.valid].unbind(-1)
    assert len(columns) == len(model.maskiou_heads())
    assert all(len(column.unique()) > 5 for column in columns)


def on_fake_gpu(value: Any) -> Any:
    """The dataclass with each tensor replaced by one that knows its shape and device but holds nothing."""
    parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    made = {name: torch.empty(part.shape, dtype=part.dtype, device="cuda") if isinstance(part, Tensor)
            else on_fake_gpu(part) for name, part in parts.items() if part is not None}  # fmt: skip
    return dataclasses.replace(value, **made)


ON_A_GPU: list[dict[str, Any]] = [
    *({"maskiou": option} for option in (MaskIoUConfig(), *OF_DETECTIONS, MaskIoUConfig(enabled=False))),
    ON_ONE_TRUNK, C4, {"trained": "maskiou"},
    {"maskiou": MaskIoUConfig(input="none"), "heads": ("input=a,rois=detections,evidence=true", "input=d,rois=both")},
]  # fmt: skip


@pytest.mark.parametrize("change", ON_A_GPU, ids=named)
def test_a_gpu_never_waits_for_the_host(change: dict[str, Any]) -> None:
    """Whatever asks a tensor without content for a value, or has a shape that depends on one, raises."""
    batch = batch_of("all", "all")
    with FakeTensorMode():
        with torch.device("cuda"):
            model = MaskScoringRCNN(dataclasses.replace(CONFIG, **change))
        losses = losses_of(model, on_fake_gpu(batch))
        trunk = set() if "trained" in change else LOSSES - {"maskiou"}
        assert losses.keys() == trunk | set(loss_names(model.config))
        assert {loss.device.type for loss in losses.values()} == {"cuda"}
        found = detections_of(model, on_fake_gpu(dataclasses.replace(batch, targets=None)))
        side = 14 if change is C4 else 28
        assert found.masks.shape == (2, CONFIG.selection.top_k, side, side)


@pytest.mark.parametrize("target", get_args(MaskIoUTarget))
def test_an_absent_class_learns_in_target_2_only(target: MaskIoUTarget) -> None:
    """The last of 4 classes is in no image."""
    config = dataclasses.replace(CONFIG, num_classes=4, maskiou=MaskIoUConfig(target=target))
    model = make_model(config, sure=True)
    losses_of(model, batch_of("all", "all"))["maskiou"].backward()
    gradient = model.maskiou.iou.get_parameter("bias").grad
    assert gradient is not None
    assert gradient[:3].any()
    assert bool(gradient[3]) == (target == 2)


@pytest.mark.parametrize("method", get_args(SelectionMethod))
def test_each_selection_method_detects(method: SelectionMethod) -> None:
    config = dataclasses.replace(CONFIG, selection=SelectionConfig(method=method, iou_threshold=0.2))
    found = detections_of(make_model(config, sure=True), batch_of("all", training=False))
    boxes, scores, labels = (x[0, found.valid[0]] for x in (found.boxes, found.class_scores, found.labels))
    assert len(boxes) > 5
    assert (scores.diff() <= 0).all()
    overlaps = (pairwise_iou(boxes, boxes) > 0.2) & (labels[:, None] == labels) & ~torch.eye(len(boxes)).bool()
    assert bool(overlaps.any()) == (method != "hard")


def test_losses_follow_the_draws_alone() -> None:
    """The same draws, the same samples; others, others; no global random state."""
    batch = batch_of("all", "all")
    torch.manual_seed(1)
    one = losses_of(make_model(sure=True), batch)
    model = make_model(sure=True)
    torch.manual_seed(2)
    again = losses_of(model, batch)
    other = losses_of(model, dataclasses.replace(batch, draws=batch.draws + 2))
    assert all(torch.equal(one[name], again[name]) for name in LOSSES)
    assert any(not torch.equal(one[name], other[name]) for name in ("rpn_objectness", "class"))


@pytest.mark.parametrize("change", [{}, {"deformable": True}, C4, {"trained": "maskiou"}], ids=named)
def test_a_training_step_draws_from_no_generator(change: dict[str, Any]) -> None:
    """What is random follows from `draws`, so that a checkpoint needs no generator's state to go on as if unbroken."""
    model, batch = make_model(dataclasses.replace(CONFIG, **change)), batch_of("all", "all")

    def states() -> tuple[Any, ...]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002  # the global generator is what is asked about
        return torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), *rest

    before = states()
    torch.stack(list(losses_of(model, batch).values())).sum().backward()
    assert states() == before
    torch.rand(1)
    assert states() != before


def test_detections_are_in_the_image_ranked_and_scored() -> None:
    model = make_model(sure=True)
    batch = batch_of("all", "all", training=False)
    batch = dataclasses.replace(batch, sizes=torch.tensor([[80.0, 96], [96, 70]]))  # the rest counts as padding
    found = detections_of(model, batch)
    assert found.boxes.shape == (2, 30, 4)
    assert found.masks.shape == (2, 30, 28, 28)
    assert found.valid.sum(1).min() > 5
    for b, (h, w) in enumerate(batch.sizes.tolist()):
        valid = found.valid[b]
        boxes, scores = found.boxes[b, valid], found.class_scores[b, valid]
        assert (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= w).all()
        assert (boxes[:, [1, 3]] <= h).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 0.01).all()
        assert (scores.diff() <= 0).all()
        assert (scores > CONFIG.selection.score_threshold).all()
        assert set(found.labels[b, valid].tolist()) <= {1, 2, 3}
        assert ((found.masks[b, valid] > 0) & (found.masks[b, valid] < 1)).all()
    assert len(found.maskious[found.valid].unique()) > 5
    assert torch.equal(found.mask_scores, found.class_scores * found.maskious)


def test_a_batch_gives_what_its_images_give() -> None:
    model = make_model(sure=True)
    images, truths = zip(*(shape_image(i) for i in range(2)), strict=True)
    both = detections_of(model, make_batch(images, truths, DATA))
    for b in range(2):
        one = detections_of(model, make_batch(images[b : b + 1], truths[b : b + 1], DATA))
        valid = one.valid[0]
        assert valid.sum() > 5
        assert torch.equal(both.valid[b], valid)
        assert torch.equal(both.labels[b, valid], one.labels[0, valid])
        for name in ("boxes", "class_scores", "maskious", "masks", "mask_scores"):
            got, want = getattr(both, name)[b, valid], getattr(one, name)[0, valid]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [{}, C4], ids=["fpn", "c4"])
def test_testing_keeps_nothing_for_a_backward_pass(change: dict[str, Any]) -> None:
    """Kept activations are most of a step's memory; callers that do not think of gradients must not pay for it."""
    model, batch = make_model(dataclasses.replace(CONFIG, **change), sure=True), batch_of("all", "all")

    def kept(forward: Callable[[MaskScoringRCNN, Batch], Any]) -> int:
        tensors: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: tensors.append(x) or x, lambda x: x):
            forward(model, batch)
        return len(tensors)

    assert kept(detections_of) == 0
    assert kept(losses_of) > 100
    with torch.no_grad():
        assert kept(losses_of) == 0
    assert torch.is_grad_enabled()


def test_the_maskiou_head_does_not_touch_boxes_or_their_ranking() -> None:
    model, batch = make_model(sure=True), batch_of("all", "all", training=False)
    before = detections_of(model, batch)
    with torch.no_grad():
        for p in model.maskiou.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    after = detections_of(model, batch)
    for name in ("boxes", "labels", "class_scores", "masks", "valid"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert not torch.allclose(before.maskious, after.maskious)
    assert not torch.allclose(before.mask_scores, after.mask_scores)


def test_maskiou_of_a_detection_is_that_of_its_class() -> None:
    """A head that answers each class with its number shows which output was read."""
    model = make_model(sure=True)
    torch.nn.init.zeros_(model.maskiou.iou.weight)
    model.maskiou.iou.bias.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    found = detections_of(model, batch_of("all", "all", training=False))
    assert len(found.labels[found.valid].unique()) > 1
    torch.testing.assert_close(found.maskious[found.valid], found.labels[found.valid].float())


def test_nothing_found_is_no_error() -> None:
    model = make_model()
    model.box.score.bias.data[0] = 50.0  # everything is background
    found = detections_of(model, batch_of("none", training=False))
    assert not found.valid.any()
    assert found.boxes.isfinite().all()


@pytest.mark.parametrize(
    ("weight", "column"),
    [
        ("box.score.weight", "class_scores"), ("box.deltas.bias", "boxes"), ("box.fc1.weight", "boxes"),
        ("rpn.head.deltas.bias", "boxes"), ("maskiou.iou.bias", "maskious"),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_no_empty_image(weight: str, column: str) -> None:
    """Nor read past the end of a feature map, as RoIAlign does of a box that is no number."""
    model, batch = make_model(sure=True), batch_of("all", "all", training=False)
    model.get_parameter(weight).data.fill_(torch.nan)
    with pytest.raises(InputError, match=rf"image 0: the model gives {column} that are not finite"):
        detection_rows(batch, detections_of(model, batch), [shape_image(k)[1] for k in range(2)])


def test_a_worth_that_is_not_finite_is_no_empty_image() -> None:
    """Under a least score no mask score that is no number is kept, and nothing else tells."""
    model, batch = make_model(sure=True), batch_of("all", "all", training=False)
    found = detections_of(model, batch)
    broken = dataclasses.replace(found, worths=torch.full_like(found.worths, torch.nan))
    with pytest.raises(InputError, match="image 0: the model gives worths that are not finite"):
        detection_rows(batch, broken, [shape_image(k)[1] for k in range(2)], min_score=0.1)
