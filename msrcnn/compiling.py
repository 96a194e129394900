"""Which parts of the detector `torch.compile` takes."""

from __future__ import annotations

from msrcnn.detector import MaskScoringRCNN


def compile_parts(model: MaskScoringRCNN) -> None:
    """Compiles backbone, RPN head and RoI heads in place, each at its first call; names of weights stay.

    What lies between them (proposals, sampling, targets) stays as it is: on a CPU its shapes depend on the data.
    """
    for part in (model.backbone, model.rpn.head, model.box, model.mask, *model.maskiou_heads()):
        part.compile()
