"""One MaskIoU head and its training as a frozen dataclass, and the short names of heads that differ from it.

Imports no torch, as `msrcnn.config`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from msrcnn.errors import InputError, require

MaskIoUInput = Literal["a", "b", "c", "d", "e", "f"]
"""Designs of the MaskIoU head's input by the letters of Table 4 and Fig. 4."""
MaskIoUTarget = Literal[1, 2, 3]
"""Training targets of the MaskIoU head by the numbers of Table 5."""
VARIED: dict[str, Callable[[str], Any]] = {"input": str, "target": int, "tau": float, "weight": float}
"""The fields in which further heads may differ, and what their values are read as."""
FORM = "FIELD=VALUE,... of the fields " + ", ".join(VARIED) + ", as input=b or input=b,tau=0.3"


@dataclass(frozen=True)
class MaskIoUConfig:
    """The MaskIoU head and its training (the paper, sections 3.2 and 4.3)."""

    enabled: bool = True
    """False leaves the head out: Mask R-CNN, the paper's baseline (Tables 1, 2, 4 and 5), whose masks are ranked by
    class score"""
    input: MaskIoUInput = "a"
    """what the head sees, by the letter of Table 4 and Fig. 4. a: the target class's mask concatenated with the RoI
    feature; b: the two multiplied; c: the masks of all classes with the RoI feature; d: as a, mask and RoI feature at
    28x28 instead of 14x14; e: the target class's mask only; f: the RoI feature only"""
    target: MaskIoUTarget = 1
    """which classes of a RoI are learnt, by the number in Table 5. 1: that of its instance; 2: all, absent ones
    regress to 0; 3: all that are present in the RoI"""
    tau: float = 0.0
    """train on RoIs whose MaskIoU is strictly above this (Table 6)"""
    weight: float = 1.0
    """weight of the MaskIoU loss"""

    def __post_init__(self) -> None:
        require(self.input in get_args(MaskIoUInput), "maskiou.input", self.input, "a, b, c, d, e or f (Table 4)")
        require(self.target in get_args(MaskIoUTarget), "maskiou.target", self.target, "1, 2 or 3 (Table 5)")
        require(0 <= self.tau < 1, "maskiou.tau", self.tau, "in [0, 1)")
        require(self.weight >= 0, "maskiou.weight", self.weight, "0 or more")

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
                require(False, "model.heads", text, f"{name}= and a number")
        try:
            return dataclasses.replace(self, **values)
        except InputError as error:
            raise InputError(f"model.heads = {text!r} is not accepted; {error}") from None

    def name_of(self, other: MaskIoUConfig) -> str:
        """The text by which `variant` gives `other`, its fields in their order here; empty for this head itself."""
        return ",".join(
            f"{name}={getattr(other, name)}" for name in VARIED if getattr(other, name) != getattr(self, name)
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
