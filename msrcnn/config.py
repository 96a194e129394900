"""What a run is made of: model, solver and input sizes, as frozen dataclasses.

Importing this module imports no torch, so that the command line can show every option at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from msrcnn.errors import InputError, require
from msrcnn.maskiou_config import MaskIoUConfig, RoIKind, check_heads
from msrcnn.maskiou_config import MaskIoUInput as MaskIoUInput
from msrcnn.maskiou_config import MaskIoUTarget as MaskIoUTarget

TRUNK_LEVELS = (2, 3, 4, 5)
"""C2 to C5: the trunk's stages at strides 4, 8, 16 and 32."""
SelectionMethod = Literal["gaussian", "linear", "hard"]
"""How overlapping boxes lose score."""
Precision = Literal["float32", "bfloat16"]
"""What layers compute in."""


def check_precision(name: str, value: str) -> None:
    """Raises InputError where the option called `name` is no `Precision`."""
    require(value in get_args(Precision), name, value, "float32 or bfloat16")


@dataclass(frozen=True)
class RPNConfig:
    """Region proposals (Faster R-CNN with FPN; the paper, section 4.1)."""

    positive_iou: float = 0.7
    """an anchor with at least this IoU with an instance is positive"""
    negative_iou: float = 0.3
    """an anchor with less than this IoU with every instance is negative"""
    samples: int = 256
    """anchors an image that enter the loss, at most half of them positive"""
    nms_iou: float = 0.7
    """a proposal overlapping a better one of its level by more than this is dropped"""
    train_proposals: int = 2000
    """proposals an image in training, the best over all levels after NMS"""
    test_proposals: int = 1000
    """the same in testing"""
    candidates: int = 1
    """times as many anchors a level enter NMS as proposals may leave it"""

    def __post_init__(self) -> None:
        require(0 < self.positive_iou <= 1, "rpn.positive_iou", self.positive_iou, "in (0, 1]")
        require(
            0 <= self.negative_iou <= self.positive_iou,
            "rpn.negative_iou",
            self.negative_iou,
            "in [0, positive_iou]",
        )
        require(0 < self.nms_iou <= 1, "rpn.nms_iou", self.nms_iou, "in (0, 1]")
        for name in ("samples", "train_proposals", "test_proposals", "candidates"):
            require(getattr(self, name) >= 1, f"rpn.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True)
class RoIConfig:
    """RoIs that train the heads (the paper, section 4.1)."""

    samples: int = 512
    """RoIs an image in training"""
    positive_fraction: float = 0.25
    """at most this share of them is positive; the mask and MaskIoU heads train on the positive ones"""
    positive_iou: float = 0.5
    """a RoI with at least this IoU with an instance is positive, any other negative"""

    def __post_init__(self) -> None:
        require(self.samples >= 1, "roi.samples", self.samples, "at least 1")
        require(0 < self.positive_fraction <= 1, "roi.positive_fraction", self.positive_fraction, "in (0, 1]")
        require(0 < self.positive_iou <= 1, "roi.positive_iou", self.positive_iou, "in (0, 1]")

    @property
    def positive_samples(self) -> int:
        """Slots for positive RoIs an image."""
        return max(1, int(self.samples * self.positive_fraction))


@dataclass(frozen=True)
class SelectionConfig:
    """From scored boxes to detections: SoftNMS (Gaussian in the author's setting) or hard NMS, then the top k."""

    method: SelectionMethod = "gaussian"
    """what a box's score is multiplied by for each better box of its class that it overlaps. gaussian:
    exp(-IoU^2 / sigma); linear: 1 - IoU above the threshold; hard: 0 above the threshold, plain NMS"""
    sigma: float = 0.6
    """width of the Gaussian decay"""
    iou_threshold: float = 0.5
    """linear and hard: an overlap up to this costs nothing. With hard NMS the paper's score threshold is 0.05"""
    score_threshold: float = 0.001
    """a box is out once its decayed score is at or below this"""
    top_k: int = 100
    """detections an image, at most"""

    def __post_init__(self) -> None:
        require(self.method in get_args(SelectionMethod), "selection.method", self.method, "gaussian, linear or hard")
        require(0 < self.iou_threshold <= 1, "selection.iou_threshold", self.iou_threshold, "in (0, 1]")
        require(self.sigma > 0, "selection.sigma", self.sigma, "above 0")
        require(0 <= self.score_threshold < 1, "selection.score_threshold", self.score_threshold, "in [0, 1)")
        require(self.top_k >= 1, "selection.top_k", self.top_k, "at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """A Mask Scoring R-CNN: trunk, pyramid, heads, and how they are trained and read out."""

    backbone: Literal["resnet18", "resnet50", "resnet101"] = "resnet18"
    """trunk, by torchvision's name"""
    deformable: bool = False
    """deformable 3x3 convolutions in the trunk's last stage (res5), as in the paper's DCN+FPN rows"""
    neck: Literal["fpn", "none"] = "fpn"
    """between trunk and heads. fpn: a feature pyramid; none: RPN and heads read C4 as it is, and the trunk's last stage
    (res5) runs on each RoI as the first part of the box and mask heads, as in the paper's ResNet-101 C4"""
    levels: tuple[int, ...] = (4, 5)
    """the trunk's stages that feed the pyramid, the RPN and the heads: 4 and 5 for the paper's ResNet-18 FPN; 4 alone
    without a neck"""
    norm: Literal["frozen_bn", "sync_bn", "group_norm"] = "frozen_bn"
    """frozen_bn with ImageNet weights; from scratch, where frozen statistics cannot work, group_norm or sync_bn
    (BatchNorm with statistics over all GPU workers; over each process's own images on CPUs)"""
    frozen_stages: int = 2
    """how many of the trunk's first parts (the stem, then C2 to C5) are not trained: 2 with ImageNet weights"""
    anchor_sizes: tuple[tuple[int, ...], ...] = ((32, 64, 128), (128, 256, 512))
    """anchor sides in pixels, a tuple a pyramid level, each with the ratios 1:2, 1:1 and 2:1. One entry more than
    `levels` adds a last level by stride-2 pooling. For C4 and C5 alone the paper is silent: five octaves from 32 to
    512 on two levels with one shared RPN head want three sizes each, 128 being on both"""
    channels: int = 256
    """channels of the pyramid and of the convolutional heads"""
    hidden: int = 1024
    """width of the fully connected layers of the box and MaskIoU heads"""
    num_classes: int = 80
    """object categories, the background not counted; training takes it from the shards"""
    trained: Literal["all", "maskiou"] = "all"
    """maskiou: train the MaskIoU head and nothing else, on top of a finished Mask R-CNN: the cheapest way to calibrated
    mask scores"""
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    maskiou: MaskIoUConfig = field(default_factory=MaskIoUConfig)
    heads: tuple[str, ...] = ()
    """more MaskIoU heads beside that of `maskiou`, which share everything else with it and train each by itself, so
    that no gradient of any of them reaches another or the trunk. Each is named by the fields of `maskiou` in which it
    differs: input=b, target=2, tau=0.5, or several as input=b,tau=0.3"""
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", check_heads(self.maskiou, self.heads))
        require(
            self.backbone in ("resnet18", "resnet50", "resnet101"),
            "model.backbone",
            self.backbone,
            "resnet18, resnet50 or resnet101",
        )
        require(self.neck in ("fpn", "none"), "model.neck", self.neck, "fpn or none")
        require(self.trained in ("all", "maskiou"), "model.trained", self.trained, "all or maskiou")
        require(
            self.trained == "all" or self.maskiou.enabled,
            "maskiou.enabled",
            self.maskiou.enabled,
            "True with model.trained = 'maskiou', which trains that head alone",
        )
        require(
            self.trained == "all" or any(head.learns for head in self.all_heads),
            "maskiou.input",
            self.maskiou.input,
            "a, b, c, d, e or f with model.trained = 'maskiou', where nothing else learns",
        )
        require(
            self.norm in ("frozen_bn", "sync_bn", "group_norm"),
            "model.norm",
            self.norm,
            "frozen_bn, sync_bn or group_norm",
        )
        consecutive = tuple(range(self.levels[0], self.levels[-1] + 1)) if self.levels else ()
        require(
            bool(self.levels) and self.levels == consecutive and set(self.levels) <= set(TRUNK_LEVELS),
            "model.levels",
            self.levels,
            "consecutive stages out of 2, 3, 4, 5",
        )
        require(
            self.neck == "fpn" or (self.levels == (4,) and len(self.anchor_sizes) == 1),
            "model.neck",
            self.neck,
            "fpn, but for levels = (4,) with one tuple of anchor_sizes",
        )
        for head in self.all_heads:
            require(
                self.neck == "fpn" or head.input != "d",
                "maskiou.input",
                head.input,
                "a, b, c, e or f without a neck, where masks are 14x14 as the RoI feature is",
            )
        require(
            not self.deformable or 5 in self.levels,
            "model.deformable",
            self.deformable,
            "False where levels end below 5",
        )
        require(
            len(self.anchor_sizes) in (len(self.levels), len(self.levels) + 1),
            "model.anchor_sizes",
            self.anchor_sizes,
            f"{len(self.levels)} tuples (one a level), or one more for a pooled last level",
        )
        counts = {len(sizes) for sizes in self.anchor_sizes}
        require(
            len(counts) == 1 and counts != {0},
            "model.anchor_sizes",
            self.anchor_sizes,
            "the same number of sizes on each level, at least one",
        )
        require(0 <= self.frozen_stages <= 5, "model.frozen_stages", self.frozen_stages, "0 to 5")
        for name in ("channels", "hidden", "num_classes"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        require(
            self.norm != "group_norm" or self.channels % 32 == 0,
            "model.channels",
            self.channels,
            "a multiple of 32 with group_norm",
        )

    @property
    def all_heads(self) -> tuple[MaskIoUConfig, ...]:
        """That of `maskiou`, then those of `heads`."""
        return self.maskiou, *(self.maskiou.variant(name) for name in self.heads)

    @property
    def trained_on(self) -> set[RoIKind]:
        """The kinds of RoIs that train MaskIoU heads; none in a Mask R-CNN."""
        return {kind for head in self.all_heads for kind in head.trained_on}

    def reads_evidence(self, kind: RoIKind | None = None) -> bool:
        """Whether a MaskIoU head, of those that train on RoIs of this kind, reads evidence."""
        return any(head.reads_evidence and kind in (None, *head.trained_on) for head in self.all_heads)


@dataclass(frozen=True)
class SolverConfig:
    """Synchronous SGD with warm-up and step decay (the paper, section 4.1)."""

    epochs: int = 18
    decay_epochs: tuple[int, ...] = (14, 17)
    """after each of these epochs the learning rate falls to a tenth"""
    batch: int = 16
    """images a step, over all workers"""
    lr: float = 0.02
    """learning rate for 16 images a step; scaled linearly with `batch`"""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """for weights; biases have none, and twice the learning rate, as in the authors' code"""
    warmup_steps: int = 500
    """steps of linear warm-up"""
    warmup_factor: float = 1 / 3
    """the learning rate starts at this share"""
    clip_norm: float = 0.0
    """largest gradient norm; 0 does not clip"""
    precision: Precision = "float32"
    """what layers compute in; with bfloat16 weights, losses and box arithmetic stay float32 (autocast)"""
    seed: int = 0
    """initial weights, order of images, scales, flips and samples follow from it"""

    def __post_init__(self) -> None:
        check_precision("solver.precision", self.precision)
        for name in ("epochs", "batch"):
            require(getattr(self, name) >= 1, f"solver.{name}", getattr(self, name), "at least 1")
        require(self.lr > 0, "solver.lr", self.lr, "above 0")
        require(0 <= self.momentum < 1, "solver.momentum", self.momentum, "in [0, 1)")
        require(0 < self.warmup_factor <= 1, "solver.warmup_factor", self.warmup_factor, "in (0, 1]")
        for name in ("weight_decay", "warmup_steps", "clip_norm", "seed"):
            require(getattr(self, name) >= 0, f"solver.{name}", getattr(self, name), "0 or more")
        ordered = all(0 < a < b for a, b in zip(self.decay_epochs, self.decay_epochs[1:], strict=False))
        require(
            ordered and all(e > 0 for e in self.decay_epochs),
            "solver.decay_epochs",
            self.decay_epochs,
            "ascending and above 0",
        )


@dataclass(frozen=True)
class DataConfig:
    """Sizes at which the network sees images (the paper, section 4.1)."""

    short_side: int = 600
    """the shorter side is resized to this many pixels, ..."""
    long_side: int = 1000
    """... or less where the longer side would exceed this"""
    short_sides: tuple[int, ...] = ()
    """train at several scales: each time an image is seen its shorter side is one of these, drawn, instead of
    `short_side`, at which it is tested; the paper trains at one"""
    flip: bool = True
    """mirror half of the training images"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "short_sides", tuple(self.short_sides))  # files hold a list
        require(self.short_side >= 32, "data.short_side", self.short_side, "at least 32")
        require(self.long_side >= self.short_side, "data.long_side", self.long_side,
                f"at least data.short_side ({self.short_side}); give both")  # fmt: skip
        require(all(32 <= side <= self.long_side for side in self.short_sides), "data.short_sides", self.short_sides,
                f"each from 32 to data.long_side ({self.long_side})")  # fmt: skip
        require(len(set(self.short_sides)) == len(self.short_sides), "data.short_sides", self.short_sides,
                "each once")  # fmt: skip


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dicts, lists and numbers, for JSON and checkpoints."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def model_config_from_dict(value: dict[str, Any]) -> ModelConfig:
    """Reads back `to_dict` of a ModelConfig.

    Raises:
        InputError: a field is unknown or its value not accepted.
    """
    parts: dict[str, Any] = {
        "rpn": RPNConfig,
        "roi": RoIConfig,
        "maskiou": MaskIoUConfig,
        "selection": SelectionConfig,
    }
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    if unknown := sorted(set(value) - known):
        raise InputError(f"model configuration: unknown field {unknown[0]!r}; written by another version of msrcnn?")
    fields = with_defaults(ModelConfig, value)  # files of earlier versions lack fields
    try:
        for name, part in parts.items():
            fields[name] = part(**fields[name])
    except TypeError as error:
        raise InputError(f"model configuration: {error}; written by another version of msrcnn?") from None
    for name in ("levels", "heads"):
        fields[name] = tuple(fields[name])
    fields["anchor_sizes"] = tuple(tuple(sizes) for sizes in fields["anchor_sizes"])
    return ModelConfig(**fields)


def with_defaults(kind: type, value: Any) -> Any:
    """`to_dict` of a configuration of another version, with the default of each field that did not exist then."""

    def merged(default: Any, value: Any) -> Any:
        if not isinstance(default, dict) or not isinstance(value, dict):
            return value
        return default | {name: merged(default.get(name), part) for name, part in value.items()}

    return merged(to_dict(kind()), value)


def without_defaults(config: Any) -> dict[str, Any]:
    """`to_dict` without the fields that have their default: what a later version adds changes nothing in it."""

    def other(value: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
        return {
            name: other(part, default[name]) if isinstance(part, dict) else part
            for name, part in value.items()
            if part != default[name]
        }

    return other(to_dict(config), to_dict(type(config)()))


def difference(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The fields in which two configurations (as `to_dict` gives them) differ, as 'name: old -> new'."""
    if isinstance(old, dict) or isinstance(new, dict):
        old, new = (value if isinstance(value, dict) else {} for value in (old, new))
        return [
            line
            for key in sorted({*old, *new})
            for line in difference(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]
