"""The detector without a pyramid: res5 in the heads, computed once a RoI, and the MaskIoU head on C4."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from msrcnn.config import MaskIoUConfig, MaskIoUInput
from msrcnn.detector import MaskScoringRCNN
from msrcnn.pretrained import load_weights
from tests.tiny import C4, CONFIG, batch_of, detections_of, losses_of, make_model

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = dataclasses.replace(CONFIG, **C4)


def inputs_of(module: nn.Module) -> list[Tensor]:
    """What `module` is called with from now on."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _m, args, _o: seen.append(args[0].detach()))
    return seen


def outputs_of(module: nn.Module) -> list[Tensor]:
    """What `module` gives from now on."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _m, _a, output: seen.append(output))
    return seen


def test_shapes_of_the_r101_row() -> None:
    """1024 channels into the RPN and, at 14x14, into res5 and the MaskIoU head; 2048 out of res5; masks of 14x14."""
    config = dataclasses.replace(
        PLAIN, backbone="resnet101", norm="frozen_bn", channels=256, hidden=1024, num_classes=80
    )
    with torch.device("meta"):
        model = MaskScoringRCNN(config)
        c4 = model.backbone(torch.zeros(1, 3, 128, 160, dtype=torch.uint8), torch.tensor([[128.0, 160.0]]))
        assert [x.shape for x in c4] == [(1, 1024, 8, 10)]
        deep = model.backbone.trunk.res5(torch.zeros(5, 1024, 14, 14))
        assert deep.shape == (5, 2048, 7, 7)
        scores, deltas = model.box(deep)
        masks = model.mask(deep)
        assert (scores.shape, deltas.shape, masks.shape) == ((5, 81), (5, 81, 4), (5, 80, 14, 14))
        fused = model.maskiou.fuse(torch.zeros(5, 1024, 14, 14), masks[:, 0], masks)
        assert fused.shape == (5, 1025, 14, 14)
        assert model.maskiou(torch.zeros(5, 1024, 14, 14), masks[:, 0], masks).shape == (5, 80)
    assert model.rpn.head.conv.in_channels == 1024


def test_the_mask_is_not_pooled() -> None:
    """Masks are 14x14 as the feature is: their probabilities lie beside it bin for bin."""
    model = make_model(PLAIN)
    features, masks = torch.randn(3, 256, 14, 14), torch.randn(3, 3, 14, 14)
    fused = model.maskiou.fuse(features, masks[:, 1], masks)
    assert torch.equal(fused[:, :256], features)
    assert torch.equal(fused[:, 256], masks[:, 1].sigmoid())


def test_res5_runs_once_a_roi_in_training() -> None:
    """The mask head takes the features of the positive RoIs from the box head's, whichever slots are used."""
    model, batch = make_model(PLAIN), batch_of("all", "none", "all")
    rois, deep = inputs_of(model.backbone.trunk.layer4), outputs_of(model.backbone.trunk.layer4)
    masked, coarse = inputs_of(model.mask), inputs_of(model.maskiou)
    losses_of(model, batch)
    assert len(rois) == len(masked) == 1
    for ours, source in ((masked[0], deep[0]), (coarse[0], rois[0])):
        assert 0 < len(ours) < len(source)
        same = (ours[:, None] == source).flatten(2).all(2)  # [positive RoIs, RoIs]
        assert same.any(1).all()


def test_shared_features_are_those_pooled_anew() -> None:
    """Losses and gradients as if the mask head pooled its RoIs itself."""
    batch, results = batch_of("all", "none", "all"), []
    for shared in (True, False):
        model = make_model(PLAIN, sure=True)
        if not shared:
            box_losses = model.box_losses
            model.box_losses = lambda *a, run=box_losses: (run(*a)[0], None)  # type: ignore[method-assign]
        losses = losses_of(model, batch)
        torch.stack(list(losses.values())).sum().backward()
        results.append((losses, [p.grad for p in model.parameters()]))
    for name, loss in results[0][0].items():
        torch.testing.assert_close(loss, results[1][0][name])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("design", [d for d in get_args(MaskIoUInput) if d != "d"])
def test_every_input_design_trains_and_detects(design: MaskIoUInput) -> None:
    model = make_model(dataclasses.replace(PLAIN, maskiou=MaskIoUConfig(input=design)), sure=True)
    loss = losses_of(model, batch_of("all", "all"))["maskiou"]
    assert loss > 0
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.maskiou.parameters())
    found = detections_of(model, batch_of("all", training=False))
    assert len(found.maskious[found.valid].unique()) > 5


def test_an_imagenet_resnet_fills_trunk_and_res5(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    source = resnet18()
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    model = MaskScoringRCNN(dataclasses.replace(PLAIN, norm="frozen_bn"))
    report = load_weights(model, str(tmp_path / "resnet18.pth"), ["a", "b", "c"])
    assert set(report.left_over) == {"backbone.trunk.fc.weight", "backbone.trunk.fc.bias"}
    assert not any(name.startswith("backbone.") for name in report.missing)
    x = torch.rand(2, 256, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone.trunk.res5(x), source.eval().layer4(x))
