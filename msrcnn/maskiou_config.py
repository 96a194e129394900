"""One MaskIoU head and its training as a frozen dataclass, and the short names of heads that differ from it.

Imports no torch, as `msrcnn.config`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from msrcnn.errors import InputError, require

MaskIoUInput = Literal["a", "b", "c", "d", "e", "f"]
"""Designs of the MaskIoU head's input by the letters of Table 4 and Fig. 4."""
MaskIoUTarget = Literal[1, 2, 3]
"""Training targets of the MaskIoU head by the numbers of Table 5."""
RoIKind = Literal["proposals", "detections"]
"""Where RoIs that train a MaskIoU head come from."""
MaskIoUGoal = Literal["maskiou", "ap"]
"""What a MaskIoU head's output means."""
MaskIoULoss = Literal["l2", "l1", "bce"]
"""Losses of a MaskIoU head; the first is the paper's."""


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


VARIED: dict[str, Callable[[str], Any]] = {
    "input": str, "target": int, "tau": float, "weight": float, "rois": str, "unmatched": str, "loss": str,
    "balanced": _yes_or_no, "evidence": _yes_or_no, "goal": str, "power": float,
}  # fmt: skip
"""The fields in which further heads may differ, and what their values are read as."""
FORM = "FIELD=VALUE,... of the fields " + ", ".join(VARIED) + ", as input=b or input=b,tau=0.3"


@dataclass(frozen=True)
class MaskIoUConfig:
    """The MaskIoU head and its training: the paper, sections 3.2 and 4.3, and from `rois` on what goes beyond it."""

    enabled: bool = True
    """False leaves the head out: Mask R-CNN, the paper's baseline (Tables 1, 2, 4 and 5), whose masks are ranked by
    class score"""
    input: Literal[MaskIoUInput, "none"] = "a"
    """what the head sees, by the letter of Table 4 and Fig. 4. a: the target class's mask concatenated with the RoI
    feature; b: the two multiplied; c: the masks of all classes with the RoI feature; d: as a, mask and RoI feature at
    28x28 instead of 14x14; e: the target class's mask only; f: the RoI feature only. none, not in the paper: nothing is
    learnt, and the mean foreground probability of the mask stands for its MaskIoU"""
    target: MaskIoUTarget = 1
    """which classes of a RoI are learnt, by the number in Table 5. 1: that of its instance; 2: all, absent ones
    regress to 0; 3: all that are present in the RoI. A detection's own class is the predicted one"""
    tau: float = 0.0
    """train on RoIs whose MaskIoU is strictly above this (Table 6); -1 trains on all, also where it is 0"""
    weight: float = 1.0
    """weight of the MaskIoU loss"""
    rois: Literal[RoIKind, "both"] = "proposals"
    """RoIs that train the head. proposals: the positive ones among the sampled RoIs, as in the paper; detections: what
    the detector finds in the training image with its present weights, as in testing; both: the union"""
    unmatched: Literal["best", "zero"] = "best"
    """target of a detection that is no match. best: its highest MaskIoU with an instance of its class, as everywhere;
    zero: 0 where that is below 0.5 or a detection with a better class score has that instance already. tau looks at
    this target, so zero wants tau=-1"""
    loss: MaskIoULoss = "l2"
    """l2: half the squared error, as in the paper; l1: the absolute error; bce: binary cross-entropy with the MaskIoU
    as a soft label, for which the head's output is a logit"""
    balanced: bool = False
    """weigh the RoIs so that each tenth of the true MaskIoU, 0 to 0.1 and so on, has the same weight in a batch"""
    evidence: bool = False
    """let the first fully connected layer also see five numbers: mean foreground probability and sharpness of the mask,
    class score, the box's share of the image, and overlap with better detections"""
    goal: MaskIoUGoal = "maskiou"
    """what mask scores multiply class scores by. maskiou: the predicted MaskIoU; ap: what the detection is worth to
    AP, which a small network learns from that, class score and the numbers of `evidence`; wants rois=detections,
    tau=-1 and loss=bce"""
    power: float = 1.0
    """the mask score is class score x MaskIoU^power, or x worth^power with goal=ap; 0 ranks as Mask R-CNN does. Nothing
    that trains depends on it"""

    def __post_init__(self) -> None:
        inputs = (*get_args(MaskIoUInput), "none")
        require(self.input in inputs, "maskiou.input", self.input, "a, b, c, d, e or f (Table 4), or none")
        require(self.target in get_args(MaskIoUTarget), "maskiou.target", self.target, "1, 2 or 3 (Table 5)")
        require(-1 <= self.tau < 1, "maskiou.tau", self.tau, "in [-1, 1)")
        require(self.weight >= 0, "maskiou.weight", self.weight, "0 or more")
        require(self.rois in (*get_args(RoIKind), "both"), "maskiou.rois", self.rois, "proposals, detections or both")
        require(self.unmatched in ("best", "zero"), "maskiou.unmatched", self.unmatched, "best or zero")
        require(self.loss in get_args(MaskIoULoss), "maskiou.loss", self.loss, "l2, l1 or bce")
        require(self.goal in get_args(MaskIoUGoal), "maskiou.goal", self.goal, "maskiou or ap")
        detections = (self.rois, self.tau, self.loss, self.learns) == ("detections", -1, "bce", True)
        require(self.goal == "maskiou" or detections, "maskiou.goal", self.goal,
                "maskiou without a head and without rois=detections, tau=-1 and loss=bce")  # fmt: skip
        require(0 <= self.power < math.inf, "maskiou.power", self.power, "0 or more")

    @property
    def learns(self) -> bool:
        """Whether there is a head with weights, that trains."""
        return self.enabled and self.input != "none"

    @property
    def reads_evidence(self) -> bool:
        """Whether it needs the numbers of `msrcnn.score_fusion.evidence_of`."""
        return self.learns and (self.evidence or self.goal == "ap")

    @property
    def trained_on(self) -> tuple[RoIKind, ...]:
        """The kinds of RoIs that train the head; none without one."""
        if not self.learns:
            return ()
        return ("proposals", "detections") if self.rois == "both" else (self.rois,)

    def variant(self, text: str) -> MaskIoUConfig:
        """The head that differs from this one in what `text` says, as "input=b,tau=0.3".

        Raises:
            InputError: the text is of another form, names a field twice, or a value is not accepted.
        """
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            require(bool(equals) and name in VARIED and name not in values, "model.heads", text, FORM)
            try:
                values[name] = VARIED[name](value)
            except ValueError:
                accepted = "true or false" if VARIED[name] is _yes_or_no else "a number"
                require(False, "model.heads", text, f"{name}= and {accepted}")
        if values.get("goal") == "maskiou":
            values.setdefault("power", 1.0)  # that of a head which learns worth has no meaning in this one
        try:
            return dataclasses.replace(self, **values)
        except InputError as error:
            raise InputError(f"model.heads = {text!r} is not accepted; {error}") from None

    def name_of(self, other: MaskIoUConfig) -> str:
        """The text by which `variant` gives `other`, its fields in their order here; empty for this head itself."""

        def written(value: Any) -> str:
            return str(value).lower() if isinstance(value, bool) else str(value)

        return ",".join(
            f"{name}={written(getattr(other, name))}" for name in VARIED if getattr(other, name) != getattr(self, name)
        )


def check_heads(maskiou: MaskIoUConfig, heads: tuple[str, ...]) -> tuple[str, ...]:
    """The names of further heads in their one form.

    Raises:
        InputError: one is no variant of `maskiou`, is `maskiou` itself, or comes twice; or there is no such head.
    """
    require(maskiou.enabled or not heads, "model.heads", heads, "empty without maskiou.enabled")
    names: list[str] = []
    for text in heads:
        name = maskiou.name_of(maskiou.variant(text))
        require(bool(name), "model.heads", text, "another head than that of maskiou, which is there anyway")
        require(name not in names, "model.heads", text, "another head than those named before it")
        names.append(name)
    return tuple(names)


def plain_name(head: str) -> str:
    """A head's name in letters that names of losses, metrics and files may have: "input=b,tau=0.3" is
    "input-b_tau-0.3"."""
    return head.replace("=", "-").replace(",", "_")


HEAD_LOSS = "maskiou."
"""What the names of the further heads' losses begin with."""


def loss_name(head: str) -> str:
    """Of the loss of a further head."""
    return f"{HEAD_LOSS}{plain_name(head)}"
