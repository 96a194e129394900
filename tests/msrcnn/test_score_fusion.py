"""Worth to AP: its target, the numbers that it is learnt from, the network alone and in the detector."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from msrcnn import detector, maskiou_heads
from msrcnn.config import MaskIoUConfig, RPNConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.score_fusion import (
    FUSION_WEIGHT,
    ScoreFusion,
    evidence_of,
    fusion_loss,
    overlap_with_better,
    worth_of,
)
from msrcnn.solver import clip_gradients, guarded_step, make_optimizer
from msrcnn.structures import Batch
from tests.tiny import CONFIG, batch_of, detections_of, entropy, losses_of, make_model, noise, with_good_masks

pytestmark = pytest.mark.usefixtures("one_thread")

THRESHOLDS = np.arange(50, 100, 5) / 100


def box_iou(a: list[float], b: list[float]) -> float:
    w, h = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    inter = max(w, 0) * max(h, 0)
    return inter / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - inter)


def better_overlaps(boxes: Tensor, labels: Tensor, images: Tensor) -> list[float]:
    """By a plain double loop over those that come before."""
    rows, found = boxes.tolist(), []
    for n, row in enumerate(rows):
        before = [m for m in range(n) if labels[m] == labels[n] and images[m] == images[n] and labels[n] > 0]
        found.append(max((box_iou(row, rows[m]) for m in before), default=0.0))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_overlap_with_better_equals_a_double_loop(seed: int) -> None:
    """Over classes, images and slots that hold nothing."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (60, 2))
    boxes = torch.tensor(np.concatenate([low, low + rng.uniform(5, 40, (60, 2))], 1), dtype=torch.float32)
    labels, images = torch.tensor(rng.integers(0, 4, 60)), torch.arange(3).repeat_interleave(20)
    want = better_overlaps(boxes, labels, images)
    got = overlap_with_better(boxes, labels, images)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)
    assert not got[labels == 0].any()
    assert 0 < (got > 0.3).sum() < (got > 0).sum() < 60


def test_overlap_with_better_of_none_and_of_copies() -> None:
    """Of equal boxes the first has no better one, whatever its score."""
    none = overlap_with_better(torch.zeros(0, 4), *torch.zeros(2, 0, dtype=torch.int64))
    assert none.shape == (0,)
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(4, 4)
    labels, images = torch.tensor([1, 2, 1, 1]), torch.tensor([0, 0, 0, 1])
    assert overlap_with_better(boxes, labels, images).tolist() == [0, 0, 1, 0]


def test_worth_is_the_share_of_thresholds_without_the_steps() -> None:
    """Of a match between the share of COCO's thresholds that it reaches and one step more; at thresholds the share."""
    values = torch.linspace(0.5, 1, 501)
    worth = worth_of(values, torch.ones(501, dtype=torch.bool)).double().numpy()
    share = (values.double().numpy()[:, None] + 1e-6 >= THRESHOLDS).mean(1)
    assert (worth - share > -1e-5).all()
    assert (worth - share < 0.1).all()
    at = worth_of(torch.tensor(THRESHOLDS), torch.ones(10, dtype=torch.bool))
    np.testing.assert_allclose(at.numpy(), np.arange(1, 11) / 10, atol=1e-6)
    assert (np.diff(worth) >= 0).all()
    assert not worth_of(values, torch.zeros(501, dtype=torch.bool)).any()


def test_worth_by_hand() -> None:
    values = torch.tensor([0.0, 0.45, 0.5, 0.725, 0.95, 1.0, 0.95])
    matched = torch.tensor([True] * 6 + [False])
    torch.testing.assert_close(worth_of(values, matched), torch.tensor([0, 0, 0.1, 0.55, 1, 1, 0]))


def test_fusion_loss_by_hand() -> None:
    """Mean cross-entropy over those that train; the least is at the worth itself, which gets no gradient."""
    predicted, trained = torch.tensor([0.5, -1.0, 80.0]), torch.tensor([True, True, False])
    target = torch.tensor([0.9, 0.0, 0.0])

    want = (entropy(0.5, 0.9) + entropy(-1.0, 0.0)) / 2
    assert fusion_loss(predicted, target, trained).item() == pytest.approx(want)
    assert fusion_loss(predicted, target, torch.zeros_like(trained)).item() == 0
    label = torch.tensor([0.3, 0.8, 0.1], requires_grad=True)
    best = label.detach().logit().requires_grad_()
    fusion_loss(best, label * 1.0, trained).backward()
    assert best.grad is not None
    torch.testing.assert_close(best.grad, torch.zeros(3))
    assert label.grad is None


def test_evidence_by_hand() -> None:
    """Probabilities 0.9 and 0.6 are foreground, 0.2 and 0.5 are not; a box of a quarter of its image."""
    probability = torch.tensor([[[0.9, 0.2], [0.6, 0.5]], [[0.1, 0.1], [0.1, 0.1]]])
    boxes, sizes = torch.tensor([[0.0, 0, 20, 10], [5, 5, 5, 5]]), torch.tensor([[20.0, 40], [30, 30]])
    got = evidence_of(probability.logit(), torch.tensor([0.7, 1.0]), boxes, sizes, torch.tensor([0.25, 0.0]))
    sharpness = (0.8 + 0.6 + 0.2 + 0) / 4
    first = [10 * (0.75 - 0.9), 10 * (sharpness - 0.8), math.log(0.7 / 0.3) / 2, math.log(0.25) / 2 + 3, 0.5]
    second = [10 * (0 - 0.9), 0, math.log(999) / 2, math.log(1e-6) / 2 + 3, 0]
    torch.testing.assert_close(got, torch.tensor([first, second]), rtol=1e-4, atol=1e-5)


def test_a_class_is_told_the_same_whatever_stands_beside_it() -> None:
    """And a RoI; but it sees its own MaskIoU and each number of its own evidence."""
    torch.manual_seed(0)
    fusion = ScoreFusion()
    maskious, evidence = noise(6, 4), noise(6, 5, seed=1)
    base = fusion(maskious, evidence)
    assert base.shape == (6, 4)
    for k in range(4):
        torch.testing.assert_close(fusion(maskious[:, [k]], evidence), base[:, [k]])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(fusion(maskious[:, order], evidence), base[:, order])
    torch.testing.assert_close(fusion(maskious[3:4], evidence[3:4]), base[3:4])
    other = maskious.clone()
    other[1, 2] += 1
    assert (fusion(other, evidence) != base).nonzero().tolist() == [[1, 2]]
    for column in range(5):
        told = evidence.clone()
        told[4, column] += 1
        assert (fusion(maskious, told) != base).any(1).nonzero().flatten().tolist() == [4]


def test_no_gradient_flows_into_what_the_fusion_sees() -> None:
    torch.manual_seed(0)
    fusion, maskious = ScoreFusion(), noise(6, 4).requires_grad_()
    logits = noise(6, 7, 7, seed=1).requires_grad_()
    scores, boxes = torch.full((6,), 0.5, requires_grad=True), torch.tensor([[0.0, 0, 8, 8]] * 6, requires_grad=True)
    overlaps = overlap_with_better(boxes, torch.ones(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64))
    evidence = evidence_of(logits, scores, boxes, torch.full((6, 2), 64.0), overlaps)
    fusion(maskious, evidence).sum().backward()
    assert all(x.grad is None for x in (maskious, logits, scores, boxes))
    assert all(p.grad is not None and p.grad.any() for p in fusion.parameters())


def synthetic(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Class scores, MaskIoU, which is known, evidence, worth, and overlap with better detections, all [count].

    Class score and MaskIoU share most of what they know, and a third of the detections are duplicates.
    """
    common, a, b = noise(3, count, seed=seed)
    scores, maskious = (common + 0.3 * a).sigmoid(), (common + 0.3 * b + 1).sigmoid()
    overlaps = torch.rand(count, generator=torch.Generator().manual_seed(seed + 1))
    evidence = torch.stack([0 * a, 0 * a, scores.logit() / 2, 0 * a, 2 * overlaps], 1)
    worth = worth_of(maskious, overlaps < 0.67) * scores**0.25
    return scores, maskious, evidence, worth, overlaps


def test_the_fusion_learns_to_rank_better_than_the_product() -> None:
    """With the solver's own rate, on what it has not seen."""
    torch.manual_seed(0)
    fusion = ScoreFusion()
    optimizer = make_optimizer(fusion, SolverConfig())
    scores, maskious, evidence, worth, _ = synthetic(8000, seed=0)
    everything = torch.ones(100, dtype=torch.bool)
    for step in range(300):
        rows = slice(100 * (step % 80), 100 * (step % 80) + 100)
        predicted = fusion(maskious[rows, None].logit(), evidence[rows]).squeeze(1)
        optimizer.zero_grad()
        (FUSION_WEIGHT * fusion_loss(predicted, worth[rows], everything)).backward()
        guarded_step(optimizer, torch.tensor(True))
    scores, maskious, evidence, worth, overlaps = synthetic(2000, seed=10)
    with torch.no_grad():
        predicted = fusion(maskious[:, None].logit(), evidence).squeeze(1)
    for rows in (overlaps >= 0, overlaps < 0.6):  # all; and without the duplicates
        ours, product = (spearmanr(x[rows], worth[rows]).statistic for x in (predicted, scores * maskious))
        assert ours > 0.9
        assert ours > product + 0.01
    assert spearmanr(scores * maskious, worth).statistic < 0.8


# In the detector

PLAIN = MaskIoUConfig(rois="detections", tau=-1.0, loss="bce")
WORTH = dataclasses.replace(PLAIN, goal="ap")
WHOLE = dataclasses.replace(CONFIG, rpn=RPNConfig(samples=64, train_proposals=80, test_proposals=80))


def alike(model: MaskScoringRCNN, other: MaskScoringRCNN) -> MaskScoringRCNN:
    """The model with the weights of `other` where it has the same."""
    report = model.load_state_dict(other.state_dict(), strict=False)
    assert all(".fusion." in name for name in (*report.missing_keys, *report.unexpected_keys))
    return model


def pair(**change: Any) -> tuple[MaskScoringRCNN, MaskScoringRCNN]:
    """A detector with the goal and one without, of the same weights."""
    config = dataclasses.replace(WHOLE, maskiou=WORTH, **change)
    model = with_good_masks(config)
    return model, alike(make_model(dataclasses.replace(config, maskiou=PLAIN)), model)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the last training step knew: the detections, their true MaskIoUs, the fusion's loss.

    The first detections are made to be the instances, each twice, as no detector finds them that has not learnt.
    """
    kept: dict[str, Any] = {}
    select = MaskScoringRCNN.select

    def select_instances(model: MaskScoringRCNN, pooler: Any, proposals: Any, batch: Batch) -> Any:
        found, truth = select(model, pooler, proposals, batch), batch.targets
        assert truth is not None
        for boxes, labels, instances, classes in zip(found.boxes, found.labels, truth.boxes, truth.labels, strict=True):
            twice, count = (classes > 0).nonzero().flatten().repeat(2), 2 * int((classes > 0).sum())
            boxes[:count], labels[:count] = instances[twice], classes[twice]
        return found

    monkeypatch.setattr(MaskScoringRCNN, "select", select_instances)
    find, lose = detector.true_maskious_of_detections, maskiou_heads.fusion_loss

    def true_maskious_of_detections(masks: Tensor, found: Any, *given: Any) -> Any:
        kept["found"], kept["true"] = found, find(masks, found, *given)
        return kept["true"]

    def kept_loss(*given: Any) -> Tensor:
        kept["loss"] = lose(*given)
        return kept["loss"]

    monkeypatch.setattr(detector, "true_maskious_of_detections", true_maskious_of_detections)
    monkeypatch.setattr(maskiou_heads, "fusion_loss", kept_loss)
    return kept


def test_worth_stands_for_maskiou_in_testing() -> None:
    """The sigmoid of what the fusion makes of the head's output and of evidence from the finished detections."""
    model = with_good_masks(dataclasses.replace(WHOLE, heads=("tau=-1,rois=detections,loss=bce,goal=ap", "input=b")))
    head = model.heads[0]
    torch.nn.init.normal_(head.iou.weight, std=5.0)
    said: list[tuple[Tensor, Tensor]] = []
    head.register_forward_hook(lambda _head, given, output: said.append((given[1], output)))
    batch = batch_of("all", "all", training=False)
    found = detections_of(model, batch)
    assert found.valid.sum() > 20
    boxes, labels, scores = (x[found.valid] for x in (found.boxes, found.labels, found.class_scores))
    images = found.valid.nonzero()[:, 0]
    ((logits, output),) = said
    overlaps = torch.tensor(better_overlaps(boxes, labels, images))
    assert (overlaps > 0.3).any()
    evidence = evidence_of(logits, scores, boxes, batch.sizes[images], overlaps)
    own = output.gather(1, labels[:, None] - 1)  # [N, 1]
    with torch.no_grad():
        want = head.fusion(own, evidence).squeeze(1).sigmoid()
    column = found.head_maskious[found.valid][:, 0]
    torch.testing.assert_close(column, want, rtol=1e-4, atol=1e-5)
    assert ((column >= 0) & (column <= 1)).all()
    assert len(column.unique()) > 20
    assert not torch.allclose(column, own.sigmoid().squeeze(1), atol=0.05)


def test_the_power_is_of_the_worth_in_mask_scores_alone() -> None:
    """Not of what is learnt."""
    plain, other = (with_good_masks(dataclasses.replace(WHOLE, maskiou=dataclasses.replace(WORTH, power=power)))
                    for power in (1.0, 4.0))  # fmt: skip
    other.load_state_dict(plain.state_dict())
    found, ranked = (detections_of(model, batch_of("all", training=False)) for model in (plain, other))
    assert len(found.worths[found.valid].unique()) > 10
    torch.testing.assert_close(ranked.worths[found.valid], found.worths[found.valid] ** 4)
    torch.testing.assert_close(ranked.mask_scores, ranked.class_scores * ranked.worths)
    assert torch.equal(ranked.maskious, found.maskious)
    losses = [losses_of(model, batch_of("all", "all")) for model in (plain, other)]
    assert losses[0] == losses[1]


def test_the_maskiou_stays_what_the_head_predicts() -> None:
    """As without the goal, whatever ranks the masks."""
    model, plain = pair()
    torch.nn.init.normal_(model.maskiou.iou.weight, std=5.0)
    found, wanted = (detections_of(m, batch_of("all", training=False)) for m in (model, alike(plain, model)))
    assert len(found.maskious[found.valid].unique()) > 10
    assert torch.equal(found.maskious, wanted.maskious)
    assert torch.equal(wanted.worths, wanted.maskious)
    assert not torch.allclose(found.worths[found.valid], found.maskious[found.valid], atol=0.05)


def test_a_power_of_the_maskiou_takes_what_is_below_0_as_0() -> None:
    plain, squared, none = (
        make_model(dataclasses.replace(CONFIG, maskiou=dataclasses.replace(CONFIG.maskiou, power=power)), sure=True)
        for power in (1.0, 2.0, 0.0)
    )
    with torch.no_grad():
        plain.maskiou.iou.bias -= detections_of(plain, batch_of("all", training=False)).maskious.mean()
    squared.load_state_dict(plain.state_dict())
    none.load_state_dict(plain.state_dict())
    found, of_square, of_none = (detections_of(m, batch_of("all", training=False)) for m in (plain, squared, none))
    values = found.maskious[found.valid]
    assert values.min() < 0 < values.max()
    assert torch.equal(found.worths, found.maskious)
    assert torch.equal(of_square.maskious, found.maskious)
    torch.testing.assert_close(of_square.worths[found.valid], values.clamp(min=0).square())
    assert torch.equal(of_none.mask_scores[found.valid], found.class_scores[found.valid])


def test_the_loss_is_that_without_the_goal_and_the_fusions(known: dict[str, Any]) -> None:
    model, plain = pair()
    said: list[Tensor] = []
    model.maskiou.fusion.register_forward_hook(lambda _fusion, _given, output: said.append(output))
    batch = batch_of("all", "all")
    ours, theirs = losses_of(model, batch), losses_of(plain, batch)
    assert all(torch.equal(loss, theirs[name]) for name, loss in ours.items() if name != "maskiou")
    found, true = known["found"], known["true"]
    assert 0 < true.matched.sum() < (true.own >= 0.5).sum() < (found.labels > 0).sum()
    worth = ((true.own - 0.45) / 0.5).clamp(0, 1) * true.matched
    (logits,) = said
    want = F.binary_cross_entropy(logits.sigmoid().gather(1, found.labels[:, None] - 1)[:, 0], worth)
    torch.testing.assert_close(ours["maskiou"] - theirs["maskiou"], FUSION_WEIGHT * want, rtol=1e-4, atol=1e-5)
    heavy = make_model(dataclasses.replace(WHOLE, maskiou=dataclasses.replace(WORTH, weight=3.0)))
    heavy.load_state_dict(model.state_dict())
    torch.testing.assert_close(losses_of(heavy, batch)["maskiou"], 3 * ours["maskiou"])


def test_the_fusions_loss_reaches_the_fusion_alone(known: dict[str, Any]) -> None:
    """And the rest of the loss all that it reaches without the goal, bit by bit."""
    model, plain = pair()
    batch = batch_of("all", "all")
    losses_of(model, batch)
    known["loss"].backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == name.startswith("maskiou.fusion."), name
    assert all(p.grad.any() for p in model.maskiou.fusion.parameters())
    model.zero_grad()
    for one in (model, plain):
        losses_of(one, batch)["maskiou"].backward()
    ours = dict(model.named_parameters())
    reached = [name for name, p in plain.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(name.startswith("backbone") for name in reached)
    assert any(name.startswith("maskiou") for name in reached)
    for name, p in plain.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name].grad, p.grad, msg=name)


def test_a_step_on_a_frozen_trunk_lowers_the_fusions_loss(known: dict[str, Any]) -> None:
    model = with_good_masks(dataclasses.replace(WHOLE, maskiou=WORTH, trained="maskiou"))
    optimizer = make_optimizer(model, SolverConfig(lr=0.002))
    batch, history = batch_of("all", "all"), []
    for _ in range(3):
        loss = losses_of(model, batch)["maskiou"]
        history.append(known["loss"].item())
        optimizer.zero_grad()
        loss.backward()
        guarded_step(optimizer, torch.tensor(True))
    assert known["true"].matched.any()
    assert history[2] < history[1] < history[0]


@pytest.mark.parametrize("trained", ["maskiou", "all"])
def test_the_goal_changes_nothing_of_what_else_is_learnt(trained: str) -> None:
    """Also where gradients are clipped: the fusion's count for themselves, in a single head and among several."""
    model, plain = pair(trained=trained)
    begun = {name: p.detach().clone() for name, p in plain.named_parameters()}
    several = with_good_masks(dataclasses.replace(
        WHOLE, heads=("tau=-1,rois=detections,loss=bce", "tau=-1,rois=detections,loss=bce,goal=ap"), trained=trained,
    ))  # fmt: skip
    for one in (model, plain, several):
        optimizer = make_optimizer(one, SolverConfig(lr=0.02))
        for _ in range(2):
            losses = losses_of(one, batch_of("all", "all"))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            assert clip_gradients(one, 0.1) > 0.1
            guarded_step(optimizer, torch.tensor(True))
    ours = dict(model.named_parameters())
    for name, p in plain.named_parameters():
        torch.testing.assert_close(ours[name], p, msg=name)
        assert not p.requires_grad or not name.endswith("weight") or not torch.equal(p, begun[name]), name
    first, second = (dict(head.named_parameters()) for head in several.heads)
    assert second.keys() - first.keys() == {name for name in second if name.startswith("fusion.")} != set()
    for name, p in first.items():
        assert torch.equal(second[name], p), name


def test_only_detections_have_better_ones() -> None:
    """In the evidence of a head that trains on both."""
    config = dataclasses.replace(WHOLE, maskiou=MaskIoUConfig(rois="both", tau=-1.0, evidence=True), trained="maskiou")
    model = make_model(config, sure=True)
    seen: list[Tensor] = []
    model.maskiou.register_forward_pre_hook(lambda _head, given: seen.append(given[3]))
    losses_of(model, batch_of("all", "all"))
    proposals, detections = seen
    assert not proposals[:, 4].any()
    assert (detections[:, 4] > 0).any()
