"""Training the MaskIoU head alone on top of a finished detector."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from msrcnn.config import RPNConfig
from msrcnn.detector import MaskScoringRCNN
from tests.tiny import C4, CONFIG, batch_of, detections_of, losses_of, make_model

pytestmark = pytest.mark.usefixtures("one_thread")
WHOLE = dataclasses.replace(
    CONFIG, norm="sync_bn", rpn=RPNConfig(samples=64, train_proposals=80, test_proposals=80)
)  # as many proposals in training as in testing, so that the RoIs are the same


def calibrating(**change: Any) -> MaskScoringRCNN:
    return make_model(dataclasses.replace(WHOLE, trained="maskiou", **change), sure=True)


@pytest.mark.parametrize("change", [{}, C4, {"deformable": True}], ids=["fpn", "c4", "dcn"])
def test_only_the_maskiou_head_changes(change: dict[str, Any]) -> None:
    model, batch = calibrating(**change), batch_of("all", "all")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    history = []
    for _ in range(4):
        losses = losses_of(model, batch)
        assert losses.keys() == {"maskiou"}
        optimizer.zero_grad()
        losses["maskiou"].backward()
        optimizer.step()
        history.append(losses["maskiou"].item())
    assert history[-1] < history[0]
    for name, value in model.state_dict().items():  # BatchNorm's running statistics too
        assert torch.equal(value, before[name]) != name.startswith("maskiou."), name
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("maskiou."))


def test_the_loss_is_that_of_training_everything() -> None:
    """Same weights and RoIs: the same MaskIoU loss, and the same gradient in the MaskIoU head."""
    batch, results = batch_of("all", "all"), []
    for trained in ("all", "maskiou"):
        model = make_model(dataclasses.replace(WHOLE, norm="group_norm", trained=trained), sure=True)
        loss = losses_of(model, batch)["maskiou"]
        loss.backward()
        results.append((loss, [p.grad for p in model.maskiou.parameters()]))
    torch.testing.assert_close(results[0], results[1])


def test_its_forward_skips_the_box_head_and_the_rpn_losses() -> None:
    model, batch = calibrating(), batch_of("all", "all")
    ran = []
    model.box.register_forward_hook(lambda *_: ran.append("box"))
    model.rpn.losses = lambda *_: ran.append("rpn losses")  # type: ignore[assignment, method-assign]
    losses_of(model, batch)
    assert ran == []
    detections_of(model, batch)
    assert ran == ["box"]


def test_nothing_of_the_frozen_part_is_kept_for_a_gradient() -> None:
    """Autograd saves tensors for the MaskIoU head alone."""
    model, batch = calibrating(), batch_of("all", "all")
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        losses_of(model, batch)
    frozen = {p.data_ptr() for name, p in model.named_parameters() if not name.startswith("maskiou.")}
    own = {p.data_ptr() for p in model.maskiou.parameters() if p.dim() > 1}
    assert not frozen & set(saved)
    assert own <= set(saved)
