"""The MaskIoU head: the designs of Table 4 as Fig. 4 draws them, what each sees, what it costs, its loss."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from msrcnn.config import MaskIoUInput
from msrcnn.mask_head import MaskHead
from msrcnn.maskiou_head import MaskIoUHead, NoHead, balancing_weights, maskiou_loss
from tests.tiny import entropy, noise

CLASSES, CHANNELS, ROIS = 4, 8, 3
DESIGNS = get_args(MaskIoUInput)


def make_head(design: MaskIoUInput) -> MaskIoUHead:
    torch.manual_seed(0)
    head = MaskIoUHead(CHANNELS, CHANNELS, 16, CLASSES, design)
    torch.nn.init.normal_(head.iou.weight)
    return head


def inputs(head: MaskIoUHead) -> tuple[Tensor, Tensor, Tensor]:
    """RoI features, mask logits of the target class, which is class 2, and of all classes."""
    masks = noise(ROIS, CLASSES, 28, 28, seed=1)
    return noise(ROIS, CHANNELS, head.size, head.size), masks[:, 1], masks


@pytest.mark.parametrize(
    ("design", "channels", "side"),
    [("a", 257, 14), ("b", 256, 14), ("c", 336, 14), ("d", 257, 28), ("e", 1, 14), ("f", 256, 14)],
)
def test_shapes_as_in_fig_3_and_fig_4(design: MaskIoUInput, channels: int, side: int) -> None:
    head = MaskIoUHead(256, 256, 1024, 80, design)
    features, masks = torch.zeros(2, 256, head.size, head.size), torch.zeros(2, 80, 28, 28)
    assert head.size == (28 if design == "d" else 14)
    assert head.fuse(features, masks[:, 0], masks).shape == (2, channels, side, side)
    shapes: list[torch.Size] = []
    for layer in (*head.convs, head.fc1, head.fc2, head.iou):
        layer.register_forward_hook(lambda _layer, _given, output: shapes.append(output.shape[1:]))
    assert head(features, masks[:, 0], masks).shape == (2, 80)
    assert shapes == [(256, 14, 14)] * 3 + [(256, 7, 7), (1024,), (1024,), (80,)]


@pytest.mark.parametrize("design", DESIGNS)
def test_input_as_in_fig_4(design: MaskIoUInput) -> None:
    """Step by step as the paper says it: probabilities, select, max-pool, join."""
    head = make_head(design)
    features, target, masks = inputs(head)
    every = masks.sigmoid()
    one = every[:, 1:2]
    pooled, every_pooled = F.max_pool2d(one, 2, 2), F.max_pool2d(every, 2, 2)
    want = {
        "a": lambda: torch.cat([features, pooled], 1),
        "b": lambda: features * pooled,
        "c": lambda: torch.cat([features, every_pooled], 1),
        "d": lambda: torch.cat([features, one], 1),
        "e": lambda: pooled,
        "f": lambda: features,
    }[design]()
    torch.testing.assert_close(head.fuse(features, target, masks), want)


@pytest.mark.parametrize("design", DESIGNS)
def test_what_each_design_sees(design: MaskIoUInput) -> None:
    """Each RoI its own feature and mask, and only what its design shows it."""
    head = make_head(design)
    features, target, masks = inputs(head)
    base = head(features, target, masks)
    other_feature, other_masks, other_class = features.clone(), masks.clone(), masks.clone()
    other_feature[2] += 1
    other_masks[1] = -masks[1]
    other_class[0, 3] = -masks[0, 3]
    sees_mask, sees_feature, sees_all = design != "f", design != "e", design == "c"
    assert (head(features, other_masks[:, 1], other_masks) != base).any(1).tolist() == [False, sees_mask, False]
    assert (head(other_feature, target, masks) != base).any(1).tolist() == [False, False, sees_feature]
    assert (head(features, other_class[:, 1], other_class) != base).any(1).tolist() == [sees_all, False, False]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_gradient_goes_where_the_design_looks(design: MaskIoUInput) -> None:
    head = make_head(design)
    features, _, masks = (x.requires_grad_() for x in inputs(head))
    head(features, masks[:, 1], masks).sum().backward()
    reached = [x.grad is not None and bool(x.grad.any()) for x in (features, masks)]
    assert reached == [design != "e", design != "f"]
    if masks.grad is not None:
        assert masks.grad.flatten(2).any(2).any(0).tolist() == [design == "c", True, design == "c", design == "c"]


def multiply_accumulates(head: torch.nn.Module, *given: Tensor) -> float:
    """Of one RoI, in units of 1e9, by torch's counter (a multiply-accumulate is two of its operations)."""
    with FlopCounterMode(display=False) as counter:
        head(*given)
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("classes", [80, 81])
def test_the_heads_cost_what_the_paper_says(classes: int) -> None:
    """Section 4.4: 0.39 G and 0.53 G multiply-accumulates a RoI."""
    features, masks = torch.zeros(1, 256, 14, 14), torch.zeros(1, classes, 28, 28)
    maskiou = multiply_accumulates(MaskIoUHead(256, 256, 1024, classes), features, masks[:, 0], masks)
    assert maskiou == pytest.approx(0.39, rel=0.02)
    assert multiply_accumulates(MaskHead(256, classes), features) == pytest.approx(0.53, rel=0.02)


def test_high_resolution_costs_what_the_default_costs() -> None:
    """Its strides are chosen so."""
    masks = torch.zeros(1, 80, 28, 28)
    plain, fine = MaskIoUHead(256, 256, 1024, 80, "a"), MaskIoUHead(256, 256, 1024, 80, "d")
    want = multiply_accumulates(plain, torch.zeros(1, 256, 14, 14), masks[:, 0], masks)
    assert multiply_accumulates(fine, torch.zeros(1, 256, 28, 28), masks[:, 0], masks) == want
    assert [p.shape for p in fine.parameters()] == [p.shape for p in plain.parameters()]


def test_loss_by_hand() -> None:
    """A class a RoI: half the mean of squares. Several: their sum, over the number of RoIs that train."""
    predicted = torch.tensor([[0.5, 9.0], [9.0, 0.9], [5.0, 5.0]])
    target = torch.tensor([[0.9, 0.0], [0.0, 0.3], [0.8, 0.8]])
    one = torch.tensor([[True, False], [False, True], [False, False]])
    assert maskiou_loss(predicted, target, one).item() == pytest.approx(0.5 * (0.16 + 0.36) / 2)
    several = torch.tensor([[True, True], [False, True], [False, False]])
    assert maskiou_loss(predicted, target, several).item() == pytest.approx(0.5 * (0.16 + 81 + 0.36) / 2)
    assert maskiou_loss(predicted, target, torch.zeros_like(one)).item() == 0


def test_loss_sends_no_gradient_into_the_target() -> None:
    predicted = torch.tensor([[0.5], [0.4]], requires_grad=True)
    source = torch.tensor([[0.9], [0.1]], requires_grad=True)
    maskiou_loss(predicted, source * 1.0, torch.ones(2, 1, dtype=torch.bool)).backward()
    assert source.grad is None
    assert predicted.grad is not None
    torch.testing.assert_close(predicted.grad, torch.tensor([[-0.2], [0.15]]))  # (p - t) / 2 RoIs


def test_other_losses_by_hand() -> None:
    """Absolute error; and cross-entropy of a logit with a soft label, whose least is at the label itself."""
    predicted = torch.tensor([[0.5, 9.0], [9.0, 0.9], [5.0, 5.0]])
    target = torch.tensor([[0.9, 0.0], [0.0, 0.3], [0.8, 0.8]])
    one = torch.tensor([[True, False], [False, True], [False, False]])
    assert maskiou_loss(predicted, target, one, "l1").item() == pytest.approx((0.4 + 0.6) / 2)

    want = (entropy(0.5, 0.9) + entropy(0.9, 0.3)) / 2
    assert maskiou_loss(predicted, target, one, "bce").item() == pytest.approx(want)
    best = target.logit().requires_grad_()
    maskiou_loss(best, target, one, "bce").backward()
    assert best.grad is not None
    torch.testing.assert_close(best.grad, torch.zeros(3, 2))
    weights = torch.tensor([3.0, 0.5, 7.0])
    assert maskiou_loss(predicted, target, one, "l1", weights).item() == pytest.approx((3 * 0.4 + 0.5 * 0.6) / 2)


def test_balancing_weights_by_hand() -> None:
    """Bins 0.9-1 (both ends), 0.1-0.2 and 0-0.1; a RoI that does not train counts nowhere."""
    values = torch.tensor([0.95, 1.0, 0.92, 0.15, 0.0, 0.55])
    trained = torch.tensor([True, True, True, True, True, False])
    want = torch.tensor([5 / 9, 5 / 9, 5 / 9, 5 / 3, 5 / 3, 0])
    torch.testing.assert_close(balancing_weights(values, trained), want)
    assert not balancing_weights(values, torch.zeros_like(trained)).any()


def test_balanced_bins_weigh_the_same() -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(0)).square()
    trained = values > 0.05
    trained &= (values * 10).long() != 4
    weights = balancing_weights(values, trained)
    assert weights[trained].mean().item() == pytest.approx(1)
    shares = torch.zeros(10).index_add(0, (values * 10).long(), weights)
    filled = shares[shares > 0]
    assert len(filled) == 9
    torch.testing.assert_close(filled, torch.full((9,), shares.sum().item() / 9))


def test_a_head_with_evidence_sees_each_rois_own() -> None:
    torch.manual_seed(0)
    head = MaskIoUHead(CHANNELS, CHANNELS, 16, CLASSES, evidence=True)
    torch.nn.init.normal_(head.iou.weight)
    assert head.fc1.weight.shape == (16, CHANNELS * 49 + 5)
    features, target, masks = inputs(head)
    evidence = noise(ROIS, 5, seed=5)
    base = head(features, target, masks, evidence)
    for column in range(5):
        other = evidence.clone()
        other[1, column] += 5
        changed = (head(features, target, masks, other) != base).any(1)
        assert changed.tolist() == [False, True, False]


def test_no_head_is_the_mean_foreground_probability() -> None:
    head = NoHead(CLASSES)
    _, target, masks = inputs(make_head("a"))
    target = target.clone()
    target[2] = -1.0  # no foreground
    got = head(torch.zeros(ROIS, CHANNELS, head.size, head.size), target, masks)
    p = target.sigmoid().numpy()
    want = [p[n][p[n] > 0.5].mean() for n in range(2)]
    assert got.shape == (ROIS, CLASSES)
    torch.testing.assert_close(got, torch.tensor([*want, 0.0])[:, None].expand(-1, CLASSES))
    assert not head.state_dict()
