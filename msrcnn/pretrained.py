"""Starting from weights that were trained elsewhere: torchvision's, a file's, or another run's.

Four kinds are told apart by the names in them: a checkpoint of `msrcnn.weights`, a torchvision Mask R-CNN (today's
names and those of its published file), a torchvision ResNet, and such a ResNet in part or with BatchNorm folded in.
torchvision's may be a state_dict by itself or one that a training script stored beside its optimizer's.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models import get_model_weights, get_weight
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError, closest, meant
from msrcnn.maskiou_config import MaskIoUConfig
from msrcnn.weights import FORMAT, read_plain

COCO = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
COCO_LABELS: list[str] = COCO.meta["categories"]
"""torchvision's 91 labels: the background, then COCO's category ids 1 to 90, of which ten are "N/A"."""
COCO_CHECKSUM = COCO.url.rpartition("-")[2].removesuffix(".pth")
"""How the SHA-256 of torchvision's published Mask R-CNN begins, which its file is named by."""
EPS = 1e-5
"""What BatchNorm adds to a variance, here and, unless told otherwise, in torchvision."""
TRUNK = "backbone.trunk."
NAMES = [str(weights) for model in ("resnet18", "resnet50", "resnet101", "maskrcnn_resnet50_fpn")
         for weights in get_model_weights(model)]  # fmt: skip
"""What torchvision calls the weights that have a place here."""
FRAMEWORKS = {
    "Detectron2": ("backbone.bottom_up.", "proposal_generator."),
    "MMDetection": ("rpn_head.", "roi_head."),
}
"""How names begin in the files of others."""
NESTED = ("model", "model_state_dict", "state_dict")
"""Where training scripts keep a model's state_dict beside an optimizer's; torchvision's own in `model`."""
WRAPPER = "module."
"""What DistributedDataParallel puts before each name."""
OF_A_CLASS = ("box.score.", "box.deltas.", "mask.logits.", "maskiou.iou.")
"""Weights whose number follows from that of the categories."""
SHOWN = 6
"""So many names of a kind are printed in full, more are counted by their module."""

MASK_RCNN = [
    (r"backbone\.body\.(.*)", r"backbone.trunk.\1"),
    (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(?:0\.)?(\w+)", r"backbone.fpn.\1_blocks.\2.0.\3"),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(\w+)", r"rpn.head.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.head.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.head.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"box.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"box.fc2.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box.score.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", r"mask.convs.\1.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask.logits.\1"),
]
"""A torchvision Mask R-CNN's names (some were without the numbers before torchvision 0.13) as ours."""


@dataclass(frozen=True)
class WeightsReport:
    """What came of loading weights; the names are the model's, those left over the file's."""

    source: str
    kind: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    norm: str = ""
    """of torchvision's Mask R-CNN: which eps its BatchNorm has, and why"""

    def lines(self) -> list[str]:
        """For people: what matched, what keeps its initial values, what of the file is not used."""
        lines = [f"weights {self.source} ({self.kind}): {len(self.matched)} tensors matched"]
        if self.norm:
            lines.append(f"  {self.norm}")
        if self.missing:
            lines.append(f"  missing, kept as initialised: {_summary(self.missing)}")
        if self.left_over:
            lines.append(f"  left over, not used: {_summary(self.left_over)}")
        return lines


def _summary(names: Sequence[str]) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names)
    modules = Counter(".".join(name.split(".")[: 3 if name.startswith(TRUNK) else 2]) for name in names)
    return ", ".join(f"{module} ({count})" for module, count in modules.items())


def load_weights(
    model: MaskScoringRCNN, source: str, categories: Sequence[str], eps: float | None = None
) -> WeightsReport:
    """Loads what fits of `source` into `model`; what is missing there keeps its values.

    Args:
        model: changed in place.
        source: a file, or torchvision's name of weights, as "ResNet50_Weights.IMAGENET1K_V1", then downloaded.
        categories: names of the model's categories 1..K. Of a detector with torchvision's 91 COCO labels they pick
            theirs, unless the model has all of them (then category k is label k).
        eps: what BatchNorm of a torchvision Mask R-CNN added to variances when it was trained, which no file tells; if
            absent, 0 for torchvision's published one, known by its checksum, and EPS for any other.

    Raises:
        InputError: nothing is at `source`, it is none of the known kinds, nothing in it has a place in the model, a
            shape is another one, BatchNorm is folded into it and the model's is not frozen, or `eps` is given for
            another kind. The model is unchanged.
    """
    found, heads = _read(source)
    kind, state = _translate(source, found)
    _place_heads(model, heads, state)
    norm = ""
    if kind == "torchvision Mask R-CNN":
        _drop_background(state)
        _pick_labels(state, categories)
    if kind == "torchvision Mask R-CNN" and model.config.norm != "group_norm":
        norm = _take_eps(source, state, eps)
    elif eps is not None:
        raise InputError(f"{source}: --weights-eps is for a torchvision Mask R-CNN's BatchNorm, this is for "
                         f"model.norm = {model.config.norm!r} a {kind}; leave it out")  # fmt: skip
    _check_norm(source, model, state)
    return replace(_load(model, source, kind, state), norm=norm)


def _read(source: str) -> tuple[dict[str, Tensor], tuple[MaskIoUConfig, ...]]:
    """The tensors at `source` by name, a checkpoint's by the model's own names; and a checkpoint's MaskIoU heads."""
    if not Path(source).is_file() and re.fullmatch(r"\w+_Weights\.\w+", source):
        try:
            weights = get_weight(source)
        except (AttributeError, ValueError, KeyError):
            raise InputError(f"{source}: torchvision has no weights of this name; {meant(closest(source, NAMES))}"
                             f"there are {', '.join(NAMES)}") from None  # fmt: skip
        try:
            return dict(weights.get_state_dict(check_hash=True, weights_only=True)), ()
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{source}: cannot be downloaded ({reason}); give the file {weights.url}") from None
    _check_file(Path(source))
    value = read_plain(Path(source), "weights")
    if value.get("format") == FORMAT and isinstance(value.get("weights"), dict):
        return _tensors(value["weights"]), _heads_of(value.get("model"))
    return _state_dict(source, value), ()


def _state_dict(source: str, value: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of another program's model by name: what `value` has by itself, or the one state_dict in it.

    Raises:
        InputError: there are several, or none, or they are of a program whose models have no place here.
    """
    nested = [key for key in NESTED if isinstance(value.get(key), dict) and value[key]]
    nested = [key for key in nested if all(isinstance(tensor, Tensor) for tensor in value[key].values())]
    if len(nested) > 1:
        raise InputError(f"{source}: holds tensors in {' and in '.join(map(repr, nested))}; save the ones that are "
                         "meant by themselves")  # fmt: skip
    state = _tensors(value[nested[0]] if nested else value)
    if not state:
        held = ", ".join(repr(str(key)) for key in value) or "nothing"
        raise InputError(f"{source}: holds no tensors by name, neither by itself nor in {', '.join(map(repr, NESTED))} "
                         f"(it holds {held[:120]}); save the model's state_dict by itself")  # fmt: skip
    if all(name.startswith(WRAPPER) for name in state):
        state = {name.removeprefix(WRAPPER): tensor for name, tensor in state.items()}
    if framework := _framework(state):
        raise InputError(f"{source}: weights of {framework}, whose layers have other names and partly other forms; "
                         "give a torchvision Mask R-CNN or ResNet, or `msrcnn score` that detector's COCO results"
                         )  # fmt: skip
    return state


def _tensors(value: dict[Any, Any]) -> dict[str, Tensor]:
    return {str(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}


def _check_file(path: Path) -> None:
    """Raises InputError where no file is, with what was probably meant."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the file in it, as model.pt of a run")
    if not path.exists():
        begun = next((name for name in NAMES if name.lower().startswith(path.name.lower())), "")
        raise InputError(f"{path}: no such file; {meant(begun or closest(path.name, NAMES))}give a file of weights, or "
                         f"one of torchvision's names: {', '.join(NAMES)}")  # fmt: skip
    if path.suffix == ".pkl":
        raise InputError(f"{path}: a pickle, which may run code when it is read; give a file that torch.save wrote")


def _framework(names: Iterable[str]) -> str:
    """Which other program wrote weights of these names; empty if none that we know."""
    for framework, beginnings in FRAMEWORKS.items():
        if any(name.startswith(beginnings) for name in names):
            return framework
    return ""


def _heads_of(config: Any) -> tuple[MaskIoUConfig, ...]:
    """The MaskIoU heads that a checkpoint's configuration tells of; none if it is another version's."""
    try:
        maskiou = MaskIoUConfig(**config["maskiou"])
        return maskiou, *(maskiou.variant(name) for name in config.get("heads", ()))
    except (KeyError, TypeError, InputError):
        return ()


def _place_heads(model: MaskScoringRCNN, heads: Sequence[MaskIoUConfig], state: dict[str, Tensor]) -> None:
    """Lets each MaskIoU head of the model have the weights of the one in a checkpoint that is configured like it.

    The first takes those of the checkpoint's first where none is; a further one begins anew. The power, which only
    ranks, may be another.
    """
    places = ["maskiou.", *(f"heads.{number}." for number in range(max(len(heads), len(model.heads) + 1) - 1))]
    held = {name: state.pop(name) for name in list(state) if name.startswith(tuple(places))}
    at = dict(zip((replace(head, power=1.0) for head in heads), places, strict=False))
    used = set()
    for place, head in zip(places, model.config.all_heads, strict=False):
        source = at.get(replace(head, power=1.0), "maskiou." if place == "maskiou." else None)
        if source is not None:
            used.add(source)
            state |= {place + n.removeprefix(source): held[n] for n in held if n.startswith(source)}
    state |= {f"another MaskIoU head: {n}": held[n] for n in held if not n.startswith(tuple(used))}


def _translate(source: str, found: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """What kind of weights these are, and they by the model's names; names without one are kept."""
    if any(name.startswith(TRUNK) for name in found):
        return "msrcnn checkpoint", found
    if any(name.startswith("roi_heads.") for name in found):
        return "torchvision Mask R-CNN", {_mask_rcnn_name(name): tensor for name, tensor in found.items()}
    if "conv1.weight" in found:
        return "torchvision ResNet", {f"{TRUNK}{name}": tensor for name, tensor in found.items()}
    raise InputError(f"{source}: neither a checkpoint of msrcnn nor a torchvision ResNet or Mask R-CNN, by its names "
                     f"({', '.join(list(found)[:2])}); use another")  # fmt: skip


def _mask_rcnn_name(name: str) -> str:
    if old := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", name):
        return f"mask.convs.{int(old[1]) - 1}.{old[2]}"  # counted from 1 before torchvision 0.13
    for pattern, ours in MASK_RCNN:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return name


def _drop_background(state: dict[str, Tensor]) -> None:
    """torchvision predicts a mask of the background too, which nothing reads; here channel k - 1 is category k."""
    for name in ("mask.logits.weight", "mask.logits.bias"):
        if name in state:
            state[name] = state[name][1:]  # [K + 1, ...] -> [K, ...]


def _pick_labels(state: dict[str, Tensor], categories: Sequence[str]) -> None:
    """Of a detector with torchvision's COCO labels keeps those with the names of `categories`, in their order."""
    labels = len(COCO_LABELS)
    known = set(categories) <= set(COCO_LABELS[1:])
    if "box.score.bias" not in state or len(state["box.score.bias"]) != labels or len(categories) == labels - 1:
        return
    if not known:
        return  # other categories: the shapes differ, and loading says so
    rows = [0, *(COCO_LABELS.index(name) for name in categories)]
    for end in ("weight", "bias"):
        state[f"box.score.{end}"] = state[f"box.score.{end}"][rows]  # [91, ...] -> [K + 1, ...]
        deltas = state[f"box.deltas.{end}"].unflatten(0, (labels, 4))  # [91 * 4, ...] -> [91, 4, ...]
        state[f"box.deltas.{end}"] = deltas[rows].flatten(0, 1)  # [K + 1, 4, ...] -> [(K + 1) * 4, ...]
        state[f"mask.logits.{end}"] = state[f"mask.logits.{end}"][[row - 1 for row in rows[1:]]]  # [90, ...]


def _take_eps(source: str, state: dict[str, Tensor], eps: float | None) -> str:
    """Makes up for the eps that a torchvision Mask R-CNN was trained with, as ours adds EPS; says which, and why.

    torchvision runs its published weights with eps 0, with which they were trained (pytorch/vision #2940), and so a
    detector that is fine-tuned from them. Their variances are frozen, so no value in a file tells the two apart.
    """
    if eps is not None:
        why = "as given"
    elif _is_published(source):
        eps, why = 0.0, "as torchvision runs its published weights, which these are"
    else:
        eps, why = EPS, "torchvision's default; fine-tuned from its published weights it would be 0: --weights-eps 0"
    for name in state:
        if name.endswith("running_var"):
            state[name] = state[name] + (eps - EPS)
    return f"BatchNorm's eps is {eps:g}, {why}"


def _is_published(source: str) -> bool:
    """Whether these are torchvision's COCO weights, by their name or a file's checksum."""
    if not Path(source).is_file():
        return get_weight(source) is COCO
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(COCO_CHECKSUM)


def _check_norm(source: str, model: MaskScoringRCNN, state: dict[str, Tensor]) -> None:
    """Keeps BatchNorm's values out of GroupNorm, whose parameters have the same names, and refuses folded ones."""
    means = {name: tensor for name, tensor in state.items() if name.endswith("running_mean")}
    folded = bool(means) and not any(mean.any() for mean in means.values())
    folded = folded and any(state[name.replace("running_mean", "bias")].any() for name in means)
    if folded and model.config.norm != "frozen_bn":
        raise InputError(f"{source}: BatchNorm is folded into its convolutions, which model.norm = "
                         f"{model.config.norm!r} would normalise again; use frozen_bn")  # fmt: skip
    if model.config.norm == "group_norm":
        for name in means:
            for end in ("weight", "bias"):
                other = name.replace("running_mean", end)
                state[f"{other} (BatchNorm)"] = state.pop(other)


def _load(model: MaskScoringRCNN, source: str, kind: str, state: dict[str, Tensor]) -> WeightsReport:
    own = model.state_dict()
    matched = [name for name in own if name in state]
    for name in matched:
        if own[name].shape != state[name].shape:
            shapes = f"{name} is {tuple(state[name].shape)} where the model has {tuple(own[name].shape)}"
            if name.startswith(OF_A_CLASS) and "box.score.bias" in state:
                raise InputError(f"{source}: is for {len(state['box.score.bias']) - 1} categories, this data set has "
                                 f"{model.config.num_classes} ({shapes}); use a detector for these categories, or a "
                                 "ResNet's weights")  # fmt: skip
            raise InputError(f"{source}: {shapes}; use weights of this backbone (--preset chooses it) and these sizes")
    if not matched:
        raise InputError(f"{source}: nothing in it has a place in this model; use weights of its backbone")
    model.load_state_dict({name: state[name] for name in matched}, strict=False)
    # BatchNorm's count of batches has no use where its statistics are frozen.
    left_over = [name for name in state if name not in own and not name.endswith("num_batches_tracked")]
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    return WeightsReport(source, kind, tuple(matched), tuple(missing), tuple(left_over))
