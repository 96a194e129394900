"""All MaskIoU heads of a detector: one as in the paper, or several on one trunk, as Tables 4 to 6 compare them.

The ablations of these tables change nothing but the MaskIoU head. So the heads of all rows can see the same RoIs of the
same trunk, train side by side and be read out in one pass. Each trains as it would alone on this trunk: it begins with
the weights that it would have in a detector of its own, no gradient leaves it, and its gradient is clipped by its own
norm (`msrcnn.solver.clip_gradients`). The paper's heads do pass a gradient on to the trunk; only a head without others
does so here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from msrcnn.config import ModelConfig
from msrcnn.maskiou_config import MaskIoUConfig, RoIKind, loss_name
from msrcnn.maskiou_head import MaskIoUHead, NoHead, balancing_weights, maskiou_loss
from msrcnn.maskiou_targets import MaskIoUTargets, MatchedRoIs, TrueMaskIoUs, targets_of
from msrcnn.score_fusion import FUSION_WEIGHT, fusion_loss, worth_of

AnyHead = MaskIoUHead | NoHead


@dataclass(frozen=True)
class HeadInputs:
    """What MaskIoU heads read of N RoIs."""

    pool: Callable[[int], Tensor]  # gives the RoI features [N, C, size, size] of a size
    logits: Tensor  # [N, M, M], mask logits of the target class
    masks: Tensor  # [N, K, M, M], mask logits of all classes
    evidence: Tensor | None  # float [N, 5] of `evidence_of`; None where no head reads it

    def apart(self) -> HeadInputs:
        """The same for several heads: it passes no gradient on, and features of a size are pooled once."""

        @cache
        def pool(size: int) -> Tensor:
            with torch.no_grad():
                return self.pool(size).detach()

        return HeadInputs(pool, self.logits.detach(), self.masks.detach(), self.evidence)


@dataclass(frozen=True)
class RoISet:
    """RoIs of one kind that train MaskIoU heads."""

    inputs: HeadInputs
    rois: MatchedRoIs
    true: TrueMaskIoUs  # with the other classes, if a head learns them


def make_heads(config: ModelConfig, features: int, mask_size: int) -> list[AnyHead]:
    """The heads of `ModelConfig.all_heads` with initial weights, each drawn from the same state of the generator.

    That is left as if the first had been made alone.

    Args:
        config: of the detector.
        features: channels of the RoI feature.
        mask_size: side of the masks.
    """

    def make(head: MaskIoUConfig) -> AnyHead:
        if head.input == "none":
            return NoHead(config.num_classes)
        return MaskIoUHead(
            features, config.channels, config.hidden, config.num_classes, head.input, mask_size, head.evidence,
            head.goal == "ap",
        )  # fmt: skip

    main, *further = config.all_heads
    made = []
    for head in further:
        with torch.random.fork_rng(devices=[]):
            made.append(make(head))
    return [make(main), *made]


def maskious_of(
    config: ModelConfig, heads: Sequence[AnyHead], inputs: HeadInputs, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """What heads predict for the own class of N RoIs.

    Args:
        config: of the detector.
        heads: its heads.
        inputs: of the RoIs.
        labels: int64 [N], 1..K; 0 in a slot that holds no RoI.

    Returns:
        The first head's MaskIoU, float [N]; and what stands for it in the mask scores of each head, float [N, heads]:
        MaskIoU^power, a negative one taken as 0 unless the power is 1, or worth^power with goal=ap.
    """
    inputs = inputs.apart()
    channel = (labels - 1).clamp(min=0)[:, None]  # [N, 1]
    maskious, worths = [], []
    for of_head, head in zip(config.all_heads, heads, strict=True):
        output = _outputs(head, inputs)
        both = [values.float().gather(1, channel) for values in (output, _worth(head, output, inputs))]
        maskiou, worth = (v.sigmoid() if of_head.loss == "bce" and of_head.learns else v for v in both)
        maskious.append(maskiou)
        worths.append(worth if of_head.power == 1 else worth.clamp(min=0) ** of_head.power)
    return maskious[0].squeeze(1), torch.cat(worths, dim=1)  # [N, 1] -> [N]; [N, 1] each -> [N, heads]


def head_losses(config: ModelConfig, heads: Sequence[AnyHead], sets: Mapping[RoIKind, RoISet]) -> dict[str, Tensor]:
    """The losses of the MaskIoU heads by name: `maskiou`, and `maskiou.input-b` of the further head input=b.

    The loss of a single head reaches features and mask through its input (the paper, Fig. 3); of several none does.

    Args:
        config: of the detector.
        heads: its heads.
        sets: the RoIs of each kind that a head trains on.
    """
    inputs = {kind: rois.inputs.apart() if len(heads) > 1 else rois.inputs for kind, rois in sets.items()}
    losses = {}
    for name, of_head, head in zip(_names(config), config.all_heads, heads, strict=True):
        if not of_head.learns:
            continue
        kinds = of_head.trained_on
        predicted = [_outputs(head, inputs[kind]) for kind in kinds]
        target = _joined([targets_of(of_head, sets[kind].true, sets[kind].rois) for kind in kinds])
        weights = balancing_weights(target.own, target.trained.any(1)) if of_head.balanced else None
        loss = maskiou_loss(torch.cat(predicted), target.values, target.trained, of_head.loss, weights)
        if of_head.goal == "ap":
            loss = loss + FUSION_WEIGHT * _fusion_loss(head, predicted[0], sets["detections"], inputs["detections"])
        losses[name] = of_head.weight * loss
    return losses


def _worth(head: AnyHead, predicted: Tensor, inputs: HeadInputs) -> Tensor:
    """What stands for the MaskIoU in a head's mask scores [N, K]: the head's output, or what its fusion makes of it."""
    if head.fusion is None:
        return predicted
    assert inputs.evidence is not None, "a head with fusion needs evidence"
    return head.fusion(predicted, inputs.evidence)


def _fusion_loss(head: AnyHead, predicted: Tensor, found: RoISet, inputs: HeadInputs) -> Tensor:
    """The loss of a head's fusion on detections, of which the head predicted [N, K]."""
    own = (found.rois.labels - 1).clamp(min=0)[:, None]  # [N, 1]
    worth = _worth(head, predicted, inputs).gather(1, own).squeeze(1)  # [N, 1] -> [N]
    return fusion_loss(worth, worth_of(found.true.own, found.true.matched), found.rois.labels > 0)


def loss_names(config: ModelConfig) -> list[str]:
    """Of the losses of `ModelConfig.all_heads`; what does not learn has none."""
    return [name for name, head in zip(_names(config), config.all_heads, strict=True) if head.learns]


def _names(config: ModelConfig) -> list[str]:
    return ["maskiou", *(loss_name(head) for head in config.heads)]


def _outputs(head: AnyHead, inputs: HeadInputs) -> Tensor:
    return head(inputs.pool(head.size), inputs.logits, inputs.masks, inputs.evidence)  # [N, K]


def _joined(targets: Sequence[MaskIoUTargets]) -> MaskIoUTargets:
    """Those of RoIs of several kinds in one list."""
    return MaskIoUTargets(
        torch.cat([t.values for t in targets]),
        torch.cat([t.trained for t in targets]),
        torch.cat([t.own for t in targets]),
    )
