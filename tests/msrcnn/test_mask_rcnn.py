"""Mask R-CNN, the paper's baseline: the detector without its MaskIoU head is the same detector otherwise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from msrcnn.config import DataConfig, MaskIoUConfig, model_config_from_dict, to_dict
from msrcnn.detector import MaskScoringRCNN
from msrcnn.pretrained import load_weights
from msrcnn.weights import load_model, save_model
from tests.tiny import C4, CONFIG, LOSSES, batch_of, detections_of, losses_of, make_model

pytestmark = pytest.mark.usefixtures("one_thread")

OFF = MaskIoUConfig(enabled=False)
CATEGORIES = [(1, 1, "disc"), (2, 2, "ring"), (3, 3, "star")]
NAMES = [name for _, _, name in CATEGORIES]
BASELINE = dataclasses.replace(CONFIG, maskiou=OFF)


def both(change: dict[str, Any]) -> tuple[MaskScoringRCNN, MaskScoringRCNN]:
    """A detector whose heads tell RoIs apart, and the one without a MaskIoU head, of the same weights."""
    full = make_model(dataclasses.replace(CONFIG, **change), sure=True)
    plain = make_model(dataclasses.replace(CONFIG, **change, maskiou=OFF))
    plain.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith("maskiou.")})
    return full, plain


def test_it_has_no_maskiou_head_and_the_same_initial_weights() -> None:
    full, plain = make_model().state_dict(), make_model(BASELINE).state_dict()
    assert full.keys() - plain.keys() == {name for name in full if name.startswith("maskiou.")} != set()
    assert all(torch.equal(tensor, full[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("change", [{}, C4], ids=["fpn", "c4"])
@pytest.mark.parametrize("keep", [("all", "all"), ("none", "none")], ids=str)
def test_the_other_losses_are_those_of_the_whole_and_reach_every_parameter(
    change: dict[str, Any], keep: tuple[str, ...]
) -> None:
    full, plain = both(change)
    losses, whole = losses_of(plain, batch_of(*keep)), losses_of(full, batch_of(*keep))
    assert losses.keys() == LOSSES - {"maskiou"}
    assert all(torch.equal(loss, whole[name]) for name, loss in losses.items())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in plain.parameters())


@pytest.mark.parametrize("change", [{}, C4], ids=["fpn", "c4"])
def test_its_detections_are_those_of_the_whole_with_masks_ranked_by_class_score(change: dict[str, Any]) -> None:
    full, plain = both(change)
    batch = batch_of("all", "none", training=False)
    found, whole = detections_of(plain, batch), detections_of(full, batch)
    assert found.valid.sum() > 5
    for name in ("boxes", "labels", "class_scores", "masks", "valid"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    assert (found.maskious == 1).all()
    assert torch.equal(found.mask_scores, found.class_scores)
    assert not torch.equal(whole.mask_scores, whole.class_scores)


def test_it_is_saved_and_read_back(tmp_path: Path) -> None:
    model = make_model(BASELINE)
    save_model(tmp_path / "model.pt", model, DataConfig(), CATEGORIES)
    read = load_model(tmp_path / "model.pt").model
    assert read.config == BASELINE
    assert read.maskiou is None
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_configuration_from_before_it_could_be_left_out_has_the_head() -> None:
    value = to_dict(CONFIG)
    del value["maskiou"]["enabled"]
    assert model_config_from_dict(value) == CONFIG


@pytest.mark.parametrize("into_baseline", [True, False])
def test_weights_go_from_one_to_the_other(into_baseline: bool, tmp_path: Path) -> None:
    """The head's tensors are left over where there is none, and missing where the file has none."""
    source, target = make_model(), MaskScoringRCNN(BASELINE)
    if not into_baseline:
        source, target = make_model(BASELINE), MaskScoringRCNN(CONFIG)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    save_model(tmp_path / "model.pt", source, DataConfig(), CATEGORIES)
    report = load_weights(target, str(tmp_path / "model.pt"), NAMES)
    head = {name for name in (*before, *source.state_dict()) if name.startswith("maskiou.")}
    assert set(report.left_over) == (head if into_baseline else set())
    assert set(report.missing) == (set() if into_baseline else head)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name] if name in head else source.state_dict()[name]), name
