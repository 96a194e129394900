"""Which parts of the detector `torch.compile` takes."""

from __future__ import annotations

from msrcnn.detector import MaskScoringRCNN

GRAPHS = 4
"""Of a part at most: for one number of RoIs and for any, with gradient and without."""


def compile_parts(model: MaskScoringRCNN) -> None:
    """Compiles backbone, RPN head and RoI heads in place, each at its first call; names of weights stay.

    What lies between them (proposals, sampling, targets) stays as it is: on a CPU its shapes depend on the data.
    """
    from torch._dynamo import config  # takes a second

    heads = model.maskiou_heads()
    for part in (model.backbone, model.rpn.head, model.box, model.mask, *heads):
        part.compile()
    # MaskIoU heads run the same code, each design with graphs of its own; past the limit code is not compiled at all.
    designs = len({(head.design, head.evidence) for head in heads})
    config.recompile_limit = max(config.recompile_limit, GRAPHS * designs)
