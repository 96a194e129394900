"""RoIs that train MaskIoU heads beyond the paper: detections, their targets, and what of the detector they reach."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from msrcnn import detector
from msrcnn.config import MaskIoUConfig, RPNConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.maskiou_heads import loss_names
from msrcnn.maskiou_targets import MatchedRoIs, detection_maskious, targets_of, true_maskious_of_detections
from msrcnn.masks import pack_crops
from msrcnn.solver import clip_gradients, guarded_step, make_optimizer
from msrcnn.structures import RaggedMasks, Targets
from tests.roi_scene import BINS, CLASSES, SIDE, Scene, overlap, random_scene, tight
from tests.tiny import C4, CONFIG, batch_of, detections_of, losses_of, make_model, with_good_masks

pytestmark = pytest.mark.usefixtures("one_thread")


def detected(seed: int) -> tuple[Scene, MatchedRoIs, Tensor]:
    """A scene, detections in it, and mask logits [N, K, M, M]: each aims at an instance, several at the same.

    Some are of another class; the masks are right but for some noise, blurred ones for more.
    """
    scene, rng = random_scene(seed), np.random.default_rng(seed)
    corners: list[list[tuple[int, int]]] = []
    labels, logits = [], []
    for masks, of_image in zip(scene.masks, scene.labels, strict=True):
        corners.append([])
        for _ in range(25):
            aim = rng.integers(len(masks))
            x0, y0, x1, y1 = tight(masks[aim])
            x, y = ((a + b - BINS) // 2 + rng.integers(-3, 4) for a, b in ((x0, x1), (y0, y1)))
            x, y = (int(np.clip(v, 0, SIDE - BINS)) for v in (x, y))
            corners[-1].append((x, y))
            labels.append(of_image[aim] if rng.random() < 0.8 else rng.integers(1, CLASSES + 1))
            wrong = rng.random((BINS, BINS)) < rng.choice([0.02, 0.3])
            logits.append(np.where(masks[aim][y : y + BINS, x : x + BINS] ^ wrong, 3.0, -3.0))
    scene = Scene(scene.masks, scene.labels, corners)
    found = MatchedRoIs(scene.rois.boxes, torch.tensor(labels), torch.zeros(50, dtype=torch.int64), scene.rois.images)
    every = torch.from_numpy(np.stack(logits)).float()[:, None].expand(-1, CLASSES, -1, -1)
    return scene, found, every


def slow(scene: Scene, found: MatchedRoIs, logits: Tensor) -> tuple[list[float], list[int], list[bool]]:
    """MaskIoU with the best of the two nearest of its class, which that is, and COCO's one-to-one matches."""
    values, best, match = [], [], []
    taken = set()
    for n, (b, box) in enumerate(scene.where):
        x, y, right, bottom = box
        predicted = np.zeros((SIDE, SIDE), bool)
        predicted[y:bottom, x:right] = logits[n, 0].numpy() > 0
        near = {g: overlap(box, tight(scene.masks[b][g])) for g, k in enumerate(scene.labels[b])
                if k == found.labels[n]}  # fmt: skip
        near = {g: near[g] for g in sorted(near, key=lambda g: -near[g])[:2] if near[g] > 0}
        ious = {g: (predicted & scene.masks[b][g]).sum() / (predicted | scene.masks[b][g]).sum() for g in near}
        instance = max(ious, key=lambda g: ious[g], default=-1)
        values.append(float(ious.get(instance, 0)))
        best.append(instance)
        match.append(values[-1] >= 0.5 and (b, instance) not in taken)
        if match[-1]:
            taken.add((b, instance))
    return values, best, match


@pytest.mark.parametrize("seed", range(4))
def test_targets_of_detections_equal_full_resolution(seed: int) -> None:
    scene, found, logits = detected(seed)
    values, best, match = slow(scene, found, logits)
    own, instance = detection_maskious(logits[:, 0], found, scene.batch, scene.truth)
    np.testing.assert_allclose(own.numpy(), values, atol=1e-6)
    assert [i for i, v in zip(instance.tolist(), values, strict=True) if v] == [
        i for i, v in zip(best, values, strict=True) if v
    ]
    true = true_maskious_of_detections(logits, found, scene.batch, scene.truth, others=False)
    assert true.matched.tolist() == match
    assert 0 < sum(match) < sum(v >= 0.5 for v in values)  # there are duplicates,
    assert any(v == 0 for v in values)  # and detections on nothing
    plain = targets_of(MaskIoUConfig(tau=-1.0), true, found)
    strict = targets_of(MaskIoUConfig(tau=-1.0, unmatched="zero"), true, found)
    channel = (found.labels - 1)[:, None]
    assert plain.trained.sum() == strict.trained.sum() == len(values)
    assert plain.trained.gather(1, channel).all()
    np.testing.assert_allclose(plain.values.gather(1, channel)[:, 0].numpy(), values, atol=1e-6)
    zeroed = np.where(match, values, 0)
    np.testing.assert_allclose(strict.values.gather(1, channel)[:, 0].numpy(), zeroed, atol=1e-6)
    assert torch.equal(strict.own, strict.values.sum(1))
    above = targets_of(MaskIoUConfig(tau=0.3, unmatched="zero"), true, found).trained.any(1)
    assert above.tolist() == match  # tau looks at the target


def test_unused_slots_and_batches_without_an_instance() -> None:
    scene, found, logits = detected(0)
    found.labels[:10] = 0
    true = true_maskious_of_detections(logits, found, scene.batch, scene.truth, others=True)
    assert not true.own[:10].any()
    assert not true.matched[:10].any()
    assert not targets_of(MaskIoUConfig(tau=-1.0, target=2), true, found).trained[:10].any()
    empty = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0), pack_crops([], 0))
    true = true_maskious_of_detections(logits, found, scene.batch, empty, others=True)
    assert not any(part.any() for part in (true.own, true.matched, true.others, true.present))
    assert targets_of(MaskIoUConfig(tau=-1.0), true, found).trained.any(1).sum() == 40


@pytest.mark.parametrize("seed", range(2))
def test_other_classes_of_detections_equal_full_resolution(seed: int) -> None:
    scene, found, logits = detected(seed)
    own = np.arange(1, CLASSES + 1) == found.labels[:, None].numpy()
    scene.rois.labels.copy_(found.labels)
    values, present = scene.slow(logits)
    true = true_maskious_of_detections(logits, found, scene.batch, scene.truth, others=True)
    assert np.array_equal(true.present.numpy() & ~own, present & ~own)
    np.testing.assert_allclose(np.where(own, 0, true.others.numpy()), np.where(own, 0, values), atol=1e-6)


def test_a_detection_of_a_class_that_is_not_there_has_all_others() -> None:
    """As many others as there are instances, with no slot to spare."""
    masks = np.zeros((2, SIDE, SIDE), bool)
    masks[0, 30:58, 30:44] = masks[1, 30:58, 44:58] = True
    scene = Scene([masks], [[1, 2]], [[(30, 30)]])
    truth, ragged = scene.truth, scene.truth.masks
    full = Targets(truth.boxes[:, :2], truth.labels[:, :2], truth.areas[:, :2],
                   RaggedMasks(ragged.data, ragged.offsets[:, :2], ragged.crops[:, :2]))  # fmt: skip
    found = dataclasses.replace(scene.rois, labels=torch.tensor([3]))
    true = true_maskious_of_detections(torch.full((1, 3, BINS, BINS), 5.0), found, scene.batch, full, others=True)
    assert true.own.tolist() == [0]
    torch.testing.assert_close(true.others, torch.tensor([[0.5, 0.5, 0.0]]))
    assert true.present.tolist() == [[True, True, False]]


# In the detector

WHOLE = dataclasses.replace(CONFIG, rpn=RPNConfig(samples=64, train_proposals=80, test_proposals=80))
"""As many proposals in training as in testing."""
BEYOND = (
    "tau=-1.0", "rois=detections", "tau=-1.0,rois=detections", "tau=-1.0,rois=detections,unmatched=zero",
    "input=d,tau=-1.0,rois=both", "target=2,rois=both", "target=3,rois=detections", "loss=l1", "loss=bce",
    "balanced=true", "rois=both,balanced=true", "evidence=true",
    "input=e,tau=-1.0,rois=both,unmatched=zero,loss=bce,balanced=true,evidence=true",
    "tau=-1.0,rois=detections,loss=bce,goal=ap",
)  # fmt: skip


def seen(model: MaskScoringRCNN, number: int = 0) -> list[tuple[Tensor, ...]]:
    """What a head gets from now on: feature, target mask, masks, evidence."""
    inputs: list[tuple[Tensor, ...]] = []
    model.maskiou_heads()[number].register_forward_pre_hook(lambda _head, given: inputs.append(given))
    return inputs


@pytest.mark.parametrize("trained", ["all", "maskiou"])
@pytest.mark.parametrize("change", [{}, C4], ids=["fpn", "c4"])
def test_detections_in_training_are_those_of_testing(change: Any, trained: Literal["all", "maskiou"]) -> None:
    """Also where more proposals train the detector than are tested, and more anchors enter their NMS."""
    option = MaskIoUConfig(rois="detections", tau=-1.0, evidence=True)
    few = RPNConfig(samples=64, train_proposals=80, test_proposals=40)
    config = dataclasses.replace(CONFIG, maskiou=option, trained=trained, **{**change, "rpn": few})
    model = make_model(config, sure=True)
    inputs = seen(model)
    losses_of(model, batch_of("all", "none"))
    found = detections_of(model, batch_of("all", "none", training=False))
    (training, testing) = inputs
    assert len(training[0]) == found.valid.sum() > 20
    assert all(torch.equal(a, b) for a, b in zip(training, testing, strict=True))
    scores = found.class_scores[found.valid]  # the decayed ones
    torch.testing.assert_close(training[3][:, 2].mul(2).sigmoid(), scores.clamp(1e-3, 1 - 1e-3))


def test_the_default_is_the_loss_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its formula from what the head says and the true MaskIoUs, to the bit."""
    kept: list[Any] = []
    run = detector.true_maskious

    def true_maskious(*given: Any) -> Any:
        kept.extend((given[2], run(*given)))
        return kept[-1]

    monkeypatch.setattr(detector, "true_maskious", true_maskious)
    model = with_good_masks(WHOLE)
    said: list[Tensor] = []
    model.maskiou.register_forward_hook(lambda _head, _given, output: said.append(output))
    loss = losses_of(model, batch_of("all", "all"))["maskiou"]
    rois, true = kept
    (output,) = said
    trained = (rois.labels > 0) & (true.own > 0)
    error = (output - torch.zeros_like(output).scatter(1, rois.labels[:, None] - 1, true.own[:, None])).square()
    own = torch.zeros_like(output, dtype=torch.bool).scatter(1, rois.labels[:, None] - 1, trained[:, None])
    assert torch.equal(loss, 0.5 * error.where(own, 0).sum() / trained.sum())
    assert trained.sum() > 5


def test_tau_below_zero_trains_on_masks_that_are_all_wrong() -> None:
    losses = {}
    for tau in (0.0, -1.0):
        model = make_model(dataclasses.replace(WHOLE, maskiou=MaskIoUConfig(tau=tau)), sure=True)
        model.mask.logits.bias.data.fill_(-100.0)  # no mask at all
        outputs: list[Tensor] = []
        model.maskiou.register_forward_hook(lambda _head, _given, output, outputs=outputs: outputs.append(output))
        losses[tau] = losses_of(model, batch_of("all", "all"))["maskiou"]
        (output,) = outputs
        (gradient,) = torch.autograd.grad(losses[tau], output)
        assert (gradient != 0).sum(1).tolist() == [int(tau < 0)] * len(output)
    assert losses[0.0] == 0 < losses[-1.0]


def test_every_option_learns_beside_the_others() -> None:
    """On a finished trunk targets and RoIs stay, so that each head's own loss falls; each is what it would be alone."""
    model = with_good_masks(dataclasses.replace(WHOLE, heads=(*BEYOND, "input=none"), trained="maskiou"))
    batch, history = batch_of("all", "all"), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
    for _ in range(3):
        losses = losses_of(model, batch)
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        for head in model.maskiou_heads()[:-1]:
            assert all(p.grad.isfinite().all() and p.grad.any() for p in head.parameters())
        optimizer.step()
    assert list(history[0]) == loss_names(model.config)
    assert "maskiou.input-none" not in history[0]
    assert len(history[0]) == len(BEYOND) + 1
    assert all(history[2][name] < history[1][name] < history[0][name] for name in history[0])
    assert len(set(history[0].values())) == len(history[0])
    for number in (4, 6, 13, 14):
        config = dataclasses.replace(model.config, maskiou=model.config.all_heads[number], heads=())
        single = make_model(config)
        trunk = {name: value for name, value in model.state_dict().items() if not name.startswith("maskiou.")}
        single.load_state_dict(trunk, strict=False)
        loss = losses_of(single, batch)["maskiou"].item()
        assert loss == pytest.approx(history[0][loss_names(model.config)[number]], abs=1e-5), BEYOND[number - 1]


def test_both_is_the_union() -> None:
    """The mean over the RoIs of both kinds."""
    sums, counts = {}, {}
    for rois in ("proposals", "detections", "both"):
        option = MaskIoUConfig(rois=rois, tau=-1.0)
        model = make_model(dataclasses.replace(WHOLE, maskiou=option, trained="maskiou"), sure=True)
        inputs = seen(model)
        loss = losses_of(model, batch_of("all", "all"))["maskiou"]
        counts[rois] = sum(len(given[0]) for given in inputs)
        sums[rois] = loss.item() * counts[rois]
    assert counts["both"] == counts["proposals"] + counts["detections"]
    assert sums["both"] == pytest.approx(sums["proposals"] + sums["detections"], rel=1e-5)


def test_detections_are_found_once_and_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("select", "own_scores", "positive_rois"):
        run = getattr(MaskScoringRCNN, name)
        monkeypatch.setattr(MaskScoringRCNN, name, lambda *a, run=run, name=name: calls.append(name) or run(*a))
    for heads, want in (
        ((), ["positive_rois"]),
        (("evidence=true",), ["own_scores", "positive_rois"]),
        (("rois=detections", "tau=-1.0,rois=both", "rois=detections,evidence=true"), ["positive_rois", "select"]),
        (("rois=detections,tau=-1,loss=bce,goal=ap",), ["positive_rois", "select"]),
    ):
        model = make_model(dataclasses.replace(WHOLE, heads=heads))
        calls.clear()
        losses_of(model, batch_of("all", "all"))
        assert sorted(calls) == want
    option = MaskIoUConfig(rois="detections")
    model = make_model(dataclasses.replace(WHOLE, maskiou=option, trained="maskiou"))
    calls.clear()
    losses_of(model, batch_of("all", "all"))
    assert calls == ["select"]  # no mask of another RoI


@pytest.mark.parametrize("change", [{}, C4], ids=["fpn", "c4"])
def test_the_loss_of_detections_reaches_trunk_and_mask_head(change: dict[str, Any]) -> None:
    """As that of proposals does; boxes and scores are given."""
    option = MaskIoUConfig(rois="detections", tau=-1.0, evidence=True)
    model = make_model(dataclasses.replace(WHOLE, maskiou=option, **change), sure=True)
    losses_of(model, batch_of("all", "all"))["maskiou"].backward()
    for part in (model.backbone.trunk.conv1, model.mask.logits, model.maskiou):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
    for part in (model.box, model.rpn):
        assert all(p.grad is None or not p.grad.any() for p in part.parameters())


@pytest.mark.parametrize("keep", [("all", "all"), ("none", "none"), ("crowds", "crowds")])
@pytest.mark.parametrize("heads", [(), ("rois=detections,loss=bce,goal=ap",)], ids=["single", "several"])
def test_every_parameter_has_a_gradient_in_bfloat16_too(keep: tuple[str, str], heads: tuple[str, ...]) -> None:
    """Also where weights serve a pass without gradient first or last, and without an instance."""
    option = MaskIoUConfig(rois="both", evidence=True, tau=-1.0, unmatched="zero")
    model = make_model(dataclasses.replace(WHOLE, maskiou=option, heads=heads), sure=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch_of(*keep))
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    reached = (model.box.score, model.mask.logits, model.maskiou.fc1) if "all" in keep else (model.box.score,)
    assert all(p.grad.any() for part in reached for p in part.parameters())


def test_what_stands_for_maskiou_in_testing() -> None:
    """The head's own output, with cross-entropy its sigmoid; without a head the mean foreground probability."""
    batch = batch_of("all", "all", training=False)
    model = make_model(dataclasses.replace(WHOLE, heads=("loss=bce", "input=none")), sure=True)
    torch.nn.init.normal_(model.heads[0].iou.weight, std=20.0)
    said: list[Tensor] = []
    for head in model.maskiou_heads():
        head.register_forward_hook(lambda _head, _given, output: said.append(output))
    found = detections_of(model, batch)
    labels = found.labels[found.valid]
    own = [output.gather(1, labels[:, None] - 1)[:, 0] for output in said]
    assert torch.equal(found.maskious[found.valid], own[0])
    assert torch.equal(found.head_maskious[found.valid], torch.stack([own[1].sigmoid(), own[2]], 1))
    assert ((own[1] < 0) | (own[1] > 1)).any()
    p = found.masks[found.valid].flatten(1)
    mean = torch.stack([row[row > 0.5].mean() if (row > 0.5).any() else torch.tensor(0.0) for row in p])
    torch.testing.assert_close(found.head_maskious[found.valid][:, 1], mean)
    assert ((found.head_maskious >= 0) & (found.head_maskious <= 1)).all()


def test_without_a_head_that_learns_it_trains_as_a_mask_rcnn() -> None:
    """Same parameters, same losses bit by bit, a gradient clipped as one."""
    none, plain = (make_model(dataclasses.replace(CONFIG, maskiou=m))
                   for m in (MaskIoUConfig(input="none"), MaskIoUConfig(enabled=False)))  # fmt: skip
    assert none.state_dict().keys() == plain.state_dict().keys()
    batch = batch_of("all", "all")
    ours, theirs = losses_of(none, batch), losses_of(plain, batch)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for model, losses in ((none, ours), (plain, theirs)):
        torch.stack(list(losses.values())).sum().backward()
        clip_gradients(model, 0.1)
        guarded_step(make_optimizer(model, SolverConfig()), torch.tensor(True))
    assert all(torch.equal(a, b) for a, b in zip(none.parameters(), plain.parameters(), strict=True))
    beside = make_model(dataclasses.replace(CONFIG, maskiou=MaskIoUConfig(input="none"), heads=("input=b",)))
    assert losses_of(beside, batch).keys() == {*theirs, "maskiou.input-b"}
    torch.stack(list(losses_of(beside, batch).values())).sum().backward()
    assert clip_gradients(beside, 0.1) > 0.1
