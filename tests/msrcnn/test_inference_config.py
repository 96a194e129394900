"""A finished model that detects otherwise than its file says: as one whose file says so; refused where senseless."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from msrcnn.config import ModelConfig, SelectionConfig
from msrcnn.errors import InputError
from msrcnn.inference_config import InferenceConfig, SelectionChanges, described
from msrcnn.maskiou_config import MaskIoUConfig
from msrcnn.structures import Detections
from msrcnn.weights import load_model, save_model
from tests.tiny import CONFIG, DATA, batch_of, detections_of, make_model

pytestmark = pytest.mark.usefixtures("one_thread")
CATEGORIES = ((1, 5, "disk"), (2, 7, "ring"), (3, 9, "star"))


def equal(one: Detections, other: Detections) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in Detections.__dataclass_fields__)


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        (InferenceConfig(maskiou_power=2.0), {"maskiou": MaskIoUConfig(power=2.0)}),
        (
            InferenceConfig(selection=SelectionChanges(method="hard", iou_threshold=0.3, top_k=7)),
            {"selection": replace(CONFIG.selection, method="hard", iou_threshold=0.3, top_k=7)},
        ),
    ],
    ids=["power", "selection"],
)
def test_a_model_detects_as_one_whose_file_says_so(
    asked: InferenceConfig, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(sure=True)
    save_model(tmp_path / "model.pt", model, DATA, CATEGORIES)
    said = make_model(replace(CONFIG, **changes))
    said.load_state_dict(model.state_dict())
    batch = batch_of("all", "all", training=False)
    models = load_model(tmp_path, inference=asked).model, said, load_model(tmp_path).model
    got, want, plain = (detections_of(one, batch) for one in models)
    assert want.valid.any()
    assert equal(got, want)
    assert not equal(got, plain)


def test_what_is_not_given_or_equal_changes_nothing() -> None:
    assert InferenceConfig().applied(CONFIG) == CONFIG
    assert InferenceConfig().changed(CONFIG) == {}
    same = InferenceConfig(selection=SelectionChanges(sigma=CONFIG.selection.sigma), maskiou_power=1.0)
    assert same.changed(CONFIG) == {}
    other = InferenceConfig(selection=SelectionChanges("linear", top_k=7), maskiou_power=2.0)
    changed = other.changed(CONFIG)
    assert changed == {"selection": {"method": "linear", "top_k": 7}, "maskiou": {"power": 2.0}}
    assert described(changed) == "selection.method=linear, selection.top_k=7, maskiou.power=2.0"
    assert other.named("m.pt") == "m.pt with selection.method=linear, selection.top_k=7, maskiou_power=2"


@pytest.mark.parametrize(("make", "says"), [
    (lambda: SelectionChanges(sigma=0.0), r"selection\.sigma = 0\.0 is not accepted; it must be above 0"),
    (lambda: SelectionChanges(method="soft"), r"selection\.method = 'soft' is not accepted"),
    (lambda: SelectionChanges(top_k=0), r"selection\.top_k = 0 is not accepted"),
])  # fmt: skip
def test_values_that_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        InferenceConfig(selection=make())


@pytest.mark.parametrize("power", [-1.0, float("nan"), float("inf")])
def test_powers_that_are_refused(power: float) -> None:
    with pytest.raises(InputError, match=r"--maskiou-power = .* is not accepted; it must be 0 or more"):
        InferenceConfig(maskiou_power=power)


@pytest.mark.parametrize(("asked", "config", "says"), [
    ({"maskiou_power": 2.0}, ModelConfig(maskiou=MaskIoUConfig(enabled=False)), "--maskiou-power = 2.0 .* no MaskIoU"),
    ({"maskiou_power": 2.0}, ModelConfig(heads=("input=b",)), "--maskiou-power = 2.0 .* or several"),
    ({"selection": SelectionChanges(method="hard", sigma=0.4)}, ModelConfig(),
     r"--selection\.sigma = 0\.4 is not accepted; it must be absent with the method hard"),
    ({"selection": SelectionChanges(iou_threshold=0.4)}, ModelConfig(),
     r"--selection\.iou-threshold = 0\.4 .* absent with the method gaussian"),
    ({"selection": SelectionChanges(sigma=0.4)}, ModelConfig(selection=SelectionConfig(method="linear")),
     r"--selection\.sigma = 0\.4 .* absent with the method linear"),
])  # fmt: skip
def test_what_would_mean_nothing_with_a_model_is_refused(asked: dict[str, Any], config: ModelConfig, says: str) -> None:
    with pytest.raises(InputError, match=says):
        InferenceConfig(**asked).applied(config)
