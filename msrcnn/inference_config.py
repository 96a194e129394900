"""What a finished model may be asked to do otherwise than its file says: select boxes, rank masks, round.

Imports no torch, as `msrcnn.config`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from msrcnn.config import ModelConfig, Precision, SelectionConfig, SelectionMethod, check_precision
from msrcnn.errors import require

GAUSSIAN_ONLY, OTHERS_ONLY = "selection.sigma", "selection.iou_threshold"
"""Settings of one kind of method, which mean nothing with the other."""


@dataclass(frozen=True)
class SelectionChanges:
    """From scored boxes to detections; what is not given is as the model was trained with."""

    method: SelectionMethod | None = None
    """what a box's score is multiplied by for each better box of its class that it overlaps. gaussian:
    exp(-IoU^2 / sigma); linear: 1 - IoU above the threshold; hard: 0 above the threshold, plain NMS"""
    sigma: float | None = None
    """width of the Gaussian decay"""
    iou_threshold: float | None = None
    """linear and hard: an overlap up to this costs nothing"""
    score_threshold: float | None = None
    """a box is out once its decayed class score is at or below this; 0.05 is the paper's with hard NMS"""
    top_k: int | None = None
    """detections an image, at most, the best by class score"""

    @property
    def given(self) -> dict[str, Any]:
        """What is to change."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a finished model detects, where that is to be otherwise than its file says. Its weights stay as they are.

    Raises:
        InputError: a value is not accepted.
    """

    selection: SelectionChanges = field(default_factory=SelectionChanges)
    maskiou_power: float | None = None
    """mask score = class score x MaskIoU^this, or x worth^this of a model trained for AP; absent: as the model was
    trained with; 0 ranks as Mask R-CNN does. `msrcnn rescore` finds a good one"""
    precision: Precision = "float32"
    """what layers compute in; bfloat16 is faster where the device has instructions for it and gives nearly the same
    detections: scores, boxes and masks stay float32"""

    def __post_init__(self) -> None:
        SelectionConfig(**self.selection.given)
        check_precision("--precision", self.precision)
        power = self.maskiou_power
        require(power is None or 0 <= power < math.inf, "--maskiou-power", power, "0 or more")

    @property
    def inference(self) -> InferenceConfig:
        """These settings alone, of options that hold others besides."""
        return InferenceConfig(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(InferenceConfig)}
        )

    def named(self, model: str) -> str:
        """A model with what is asked of it beside its name."""
        asked = [f"selection.{name}={value}" for name, value in self.selection.given.items()]
        asked += [] if self.maskiou_power is None else [f"maskiou_power={self.maskiou_power:g}"]
        asked += [] if self.precision == "float32" else [f"precision={self.precision}"]
        return f"{model} with {', '.join(asked)}" if asked else model

    def applied(self, config: ModelConfig) -> ModelConfig:
        """The configuration of a model that detects so.

        Raises:
            InputError: a setting means nothing with this model.
        """
        selection = dataclasses.replace(config.selection, **self.selection.given)
        unused = OTHERS_ONLY if selection.method == "gaussian" else GAUSSIAN_ONLY
        value = self.selection.given.get(unused.removeprefix("selection."))
        require(value is None, f"--{unused.replace('_', '-')}", value, f"absent with the method {selection.method}")
        maskiou = config.maskiou
        if self.maskiou_power is not None:
            require(maskiou.enabled and not config.heads, "--maskiou-power", self.maskiou_power,
                    "absent with a model that has no MaskIoU head, or several")  # fmt: skip
            maskiou = dataclasses.replace(maskiou, power=self.maskiou_power)
        return dataclasses.replace(config, selection=selection, maskiou=maskiou)

    def changed(self, config: ModelConfig) -> dict[str, Any]:
        """In what a model that detects so differs from one of this configuration: what is equal is left out.

        By part of the configuration, `selection` and `maskiou`; and `precision`.

        Raises:
            InputError: as `applied`.
        """
        new = self.applied(config)
        parts: dict[str, Any] = {} if self.precision == "float32" else {"precision": self.precision}
        for part in ("selection", "maskiou"):
            old, now = (dataclasses.asdict(getattr(of, part)) for of in (config, new))
            if changed := {name: value for name, value in now.items() if value != old[name]}:
                parts[part] = changed
        return parts


def described(changed: dict[str, Any]) -> str:
    """What `changed` says, in a line: selection.method=linear, maskiou.power=2; empty where nothing is otherwise."""
    said = []
    for part, values in changed.items():
        named = (
            {f"{part}.{name}": value for name, value in values.items()} if isinstance(values, dict) else {part: values}
        )
        said += [f"{name}={value}" for name, value in named.items()]
    return ", ".join(said)
