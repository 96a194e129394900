"""All MaskIoU heads of a detector: one as in the paper, or several on one trunk, as Tables 4 to 6 compare them.

The ablations of these tables change nothing but the MaskIoU head. So the heads of all rows can see the same RoIs of the
same trunk, train side by side and be read out in one pass. Each trains as it would alone on this trunk: it begins with
the weights that it would have in a detector of its own, no gradient leaves it, and its gradient is clipped by its own
norm (`msrcnn.solver.clip_gradients`). The paper's heads do pass a gradient on to the trunk; only a head without others
does so here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from msrcnn.config import ModelConfig
from msrcnn.maskiou_config import MaskIoUConfig, loss_name
from msrcnn.maskiou_head import MaskIoUHead, maskiou_loss
from msrcnn.maskiou_targets import MatchedRoIs, TrueMaskIoUs, targets_of


def make_heads(config: ModelConfig, features: int, mask_size: int) -> list[MaskIoUHead]:
    """The heads of `ModelConfig.all_heads` with initial weights, each drawn from the same state of the generator.

    That is left as if the first had been made alone.

    Args:
        config: of the detector.
        features: channels of the RoI feature.
        mask_size: side of the masks.
    """

    def make(head: MaskIoUConfig) -> MaskIoUHead:
        return MaskIoUHead(features, config.channels, config.hidden, config.num_classes, head.input, mask_size)

    main, *further = config.all_heads
    made = []
    for head in further:
        with torch.random.fork_rng(devices=[]):
            made.append(make(head))
    return [make(main), *made]


def predictions(
    heads: Sequence[MaskIoUHead], pool: Callable[[int], Tensor], logits: Tensor, masks: Tensor
) -> list[Tensor]:
    """What each head predicts for N RoIs, [N, K] each. Several heads pass no gradient on to what they read.

    Args:
        heads: of one detector.
        pool: gives the RoI features [N, C, size, size] of a size; called once for each that the heads take.
        logits: [N, M, M], mask logits of the target class.
        masks: [N, K, M, M], mask logits of all classes.
    """
    if len(heads) == 1:
        return [heads[0](pool(heads[0].size), logits, masks)]
    with torch.no_grad():
        features = {size: pool(size).detach() for size in sorted({head.size for head in heads})}
    logits, masks = logits.detach(), masks.detach()
    return [head(features[head.size], logits, masks) for head in heads]


def head_losses(
    config: ModelConfig, predicted: Sequence[Tensor], true: TrueMaskIoUs, rois: MatchedRoIs
) -> dict[str, Tensor]:
    """The losses of the MaskIoU heads by name: `maskiou`, and `maskiou.input-b` of the further head input=b.

    Args:
        config: of the detector.
        predicted: [N, K] of each head.
        true: with the other classes, if a head learns them.
        rois: the RoIs.
    """
    losses = {}
    for name, head, values in zip(loss_names(config), config.all_heads, predicted, strict=True):
        target = targets_of(head, true, rois)
        losses[name] = head.weight * maskiou_loss(values, target.values, target.trained)
    return losses


def loss_names(config: ModelConfig) -> list[str]:
    """Of the losses of `ModelConfig.all_heads`."""
    return ["maskiou", *(loss_name(head) for head in config.heads)]
