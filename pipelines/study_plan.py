"""The studies by name: data, trunk, schedules, MaskIoU heads, seeds. Fixed here before validation is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from msrcnn.config import DataConfig, ModelConfig, SolverConfig
from msrcnn.data.shapes_config import ShapesConfig
from msrcnn.presets import ON_FINISHED_TRUNK, find_preset

CHOOSE, CONFIRM = "choose", "confirm"
"""The parts of a study."""
ABLATIONS = {
    "(b)": "input=b", "(c)": "input=c", "(d)": "input=d", "(e)": "input=e", "(f)": "input=f",
    "#2": "target=2", "#3": "target=3",
    "tau 0.3": "tau=0.3", "tau 0.5": "tau=0.5", "tau 0.7": "tau=0.7",
}  # fmt: skip
"""The rows of Tables 4 to 6 by their short names; (a), #1 and tau 0 are the head itself."""
FOREGROUND = "mean foreground probability"
"""No head: the mean foreground probability in the place of a predicted MaskIoU."""
DETECTIONS = "rois=detections,tau=-1"
IDEAS = {
    FOREGROUND: "input=none",
    "detections": DETECTIONS,
    "detections, 0 if unmatched": f"{DETECTIONS},unmatched=zero",
    "detections, balanced": f"{DETECTIONS},balanced=true",
    "detections, cross-entropy": f"{DETECTIONS},loss=bce",
    "detections, evidence": f"{DETECTIONS},evidence=true",
    "worth to AP": f"{DETECTIONS},loss=bce,goal=ap",
}
"""Heads that go beyond the paper by what is new in them."""
HEADS = ON_FINISHED_TRUNK | {"warmup_steps": 50}
"""Solver of the heads on a finished trunk."""
FINALISTS = {name: IDEAS[name] for name in (FOREGROUND, "detections, cross-entropy", "worth to AP")}
"""Heads that are trained for longer, and with every seed that confirms."""
SMALLEST = {name: IDEAS[name] for name in (FOREGROUND, "worth to AP")}
"""Those of `quick`."""
POWERS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""b of s_cls * s_iou^b. As a ranking s_cls^a * s_iou^b is that with b / a, so that one power is enough."""


@dataclass(frozen=True)
class Study:
    """What a study trains and measures.

    Attributes:
        preset: that trunk, solver and sizes start from.
        epochs, decay: of the trunk's training.
        head_epochs, head_decay: of the heads' training on the finished trunk where a variant is chosen.
        final_epochs, final_decay: the same where it is confirmed.
        shapes: parameters of the built-in data set, if the study makes its own data.
        screened: the further MaskIoU heads, by their short names, where a variant is chosen.
        confirmed: the same where it is confirmed: for longer, so fewer; a variant is one of both.
        choosing: seeds that train on one part of the training images and choose a variant on the other; without any
            the one candidate is it, with power 1.
        confirming: seeds that train on all training images and are measured on validation.
        counts: numbers of detections an image at which AP is measured; the first is COCO's.
        lr: of the trunk's training, for 16 images; None: the preset's.
        baselines: whether seeds that confirm also measure the paper's model with hard NMS, and a Mask R-CNN.
    """

    preset: str
    epochs: int
    decay: tuple[int, ...]
    head_epochs: int
    head_decay: tuple[int, ...]
    final_epochs: int
    final_decay: tuple[int, ...]
    shapes: ShapesConfig | None = None
    screened: Mapping[str, str] = field(default_factory=lambda: IDEAS)
    confirmed: Mapping[str, str] = field(default_factory=lambda: FINALISTS)
    choosing: tuple[int, ...] = (0,)
    confirming: tuple[int, ...] = (1, 2, 3)
    counts: tuple[int, ...] = (100,)
    lr: float | None = None
    baselines: bool = True

    def kinds(self, part: str) -> tuple[str, ...]:
        """What a seed trains and evaluates, in order.

        paper and heads (on the paper's trunk) are as in `model`; nms is the paper's model with hard NMS; plain, a Mask
        R-CNN, says whether boxes suffer from the head.
        """
        if part == CHOOSE or not self.baselines:
            return ("paper", "heads")
        return ("paper", "heads", "nms", "plain")

    def heads(self, part: str) -> Mapping[str, str]:
        """The further MaskIoU heads of a part."""
        return self.screened if part == CHOOSE else self.confirmed

    def model(self, part: str, kind: str) -> ModelConfig:
        """The detector of a training.

        Args:
            part: choose or confirm.
            kind: plain (Mask R-CNN), paper (MaskIoU head and trunk together), or heads (all heads on a frozen trunk).
        """
        model = find_preset(self.preset).model
        if kind == "plain":
            return replace(model, maskiou=replace(model.maskiou, enabled=False))
        if kind == "paper":
            return model
        return replace(model, trained="maskiou", heads=tuple(self.heads(part).values()))

    def solver(self, part: str, kind: str, seed: int) -> SolverConfig:
        """The schedule of a training."""
        solver = find_preset(self.preset).solver
        solver = replace(solver, precision="bfloat16", seed=seed)
        if kind == "heads":
            short, long = (self.head_epochs, self.head_decay), (self.final_epochs, self.final_decay)
            epochs, decay = short if part == CHOOSE else long
            return replace(solver, epochs=epochs, decay_epochs=decay, **HEADS)
        return replace(solver, epochs=self.epochs, decay_epochs=self.decay, lr=self.lr or solver.lr)

    def data(self) -> DataConfig:
        """Sizes of the images."""
        return find_preset(self.preset).data

    def described(self) -> str:
        """The trunk and its schedule in words."""
        model, data = find_preset(self.preset).model, self.data()
        images = f"{data.short_side} pixels" + (f" to {data.long_side}" if data.long_side > data.short_side else "")
        rate = f" at a learning rate of {self.lr:g} for 16 images" if self.lr else ""
        return (f"Preset {self.preset} ({model.backbone}, {model.channels} channels, {images}) in bfloat16, "
                f"trunk {self.epochs} epochs{rate}, heads {self.final_epochs}"
                f"{f', {self.head_epochs} to choose' if self.choosing else ''}")  # fmt: skip


SHAPES = ShapesConfig(train=800, val=300, seed=7)
STUDIES = {
    # The smallest that shows anything: one head, (a), and what needs none. Images of its own: those of shapes were
    # looked at while both were planned.
    "quick": Study(
        "demo", 3, (2,), 2, (1,), 2, (1,), ShapesConfig(train=150, val=75, seed=8), SMALLEST, SMALLEST, choosing=(),
        baselines=False,
    ),
    "shapes": Study("demo", 3, (2,), 2, (1,), 4, (3,), SHAPES, confirmed={**ABLATIONS, **FINALISTS}),
    "nuclei": Study("small", 3, (2,), 3, (2,), 9, (7,), counts=(100, 400)),
    # With the preset's rate of 0.02 and 6 epochs mask AP was 0.005 where a variant is chosen: nothing to rank.
    "coco_sample": Study("small", 12, (10,), 3, (2,), 4, (3,), lr=0.08, baselines=False),
}  # fmt: skip
"""The studies by name."""
