"""What the MaskIoU head learns: of which classes of a RoI, and their true MaskIoU (the paper, section 4.3, Table 5).

There are 80 times as many (RoI, class) pairs as RoIs on COCO, yet jittered boxes show 2.3 classes on average, 8 at
most, in the images of COCO with the most categories. So the other classes of a RoI are ranked by their nearest
instance's box IoU and sampled round by round, each round one class of every RoI: exact, of fixed shape, and never more
than one [N, 84, 84] grid of sample points at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msrcnn.boxes import area, compact, pairwise_iou
from msrcnn.config import MaskIoUConfig
from msrcnn.mask_head import of_class
from msrcnn.masks import sample_on_rois, whole_instance_iou
from msrcnn.structures import Batch, Targets


@dataclass(frozen=True)
class MatchedRoIs:
    """A batch's positive RoIs in one list, each with the instance that it is matched to."""

    boxes: Tensor  # float [N, 4] in network pixels
    labels: Tensor  # int64 [N], 1..K; 0 in an unused slot
    instances: Tensor  # int64 [N], instance slot in the image
    images: Tensor  # int64 [N], index of the image in the batch


@dataclass(frozen=True)
class MaskIoUTargets:
    """True MaskIoU of each class's own mask, and which of them train."""

    values: Tensor  # float [N, K], in [0, 1]; 0 for a class that is absent
    trained: Tensor  # bool [N, K]


@dataclass(frozen=True)
class TrueMaskIoUs:
    """What the targets of any number of MaskIoU heads are made of."""

    own: Tensor  # float [N], of the ground-truth class
    others: Tensor  # float [N, K], of the classes that are not the RoI's own; 0 for a class that is absent
    present: Tensor  # bool [N, K], which of these appear in the RoI


@torch.no_grad()
def maskiou_targets(
    config: MaskIoUConfig, logits: Tensor, coverage: Tensor, rois: MatchedRoIs, batch: Batch, truth: Targets
) -> MaskIoUTargets:
    """Training targets of a MaskIoU head; see `true_maskious` and `targets_of`, which share out the work for several.

    Args:
        config: `target` and `tau`.
        logits, coverage, rois, batch, truth: as `true_maskious` takes them.
    """
    return targets_of(config, true_maskious(logits, coverage, rois, batch, truth, config.target != 1), rois)


@torch.no_grad()
def true_maskious(
    logits: Tensor, coverage: Tensor, rois: MatchedRoIs, batch: Batch, truth: Targets, others: bool
) -> TrueMaskIoUs:
    """True MaskIoU of the RoIs' masks.

    The ground-truth class is always present. When another class is, the paper leaves open but for the words "the
    category appears in the RoI region"; here: the instance of it with the highest box IoU with the RoI covers at
    least one bin of the mask grid by half. The boxes alone would count objects of which no pixel is in the RoI, and a
    box IoU from 0.5 on would want a number of its own and leave out most parts and neighbours, which do appear.
    Crowd regions are no instances: a class that is there as a crowd only is absent.

    Args:
        logits: [N, K, M, M], mask logits of all classes.
        coverage: float [N, M, M] of `sample_on_rois`, of each RoI's own instance.
        rois: the RoIs.
        batch, truth: the images' geometry and instances.
        others: whether the other classes are asked for, as targets #2 and #3 do; they are absent without.
    """
    values = torch.zeros(logits.shape[:2], device=logits.device)  # [N, K]
    present = torch.zeros_like(values, dtype=torch.bool)
    if truth.labels.shape[1] == 0:  # not an instance in the whole batch
        return TrueMaskIoUs(values[:, 0], values, present)
    if others:
        values, present = _other_classes(logits, rois, batch, truth)
    return TrueMaskIoUs(_maskiou(of_class(logits, rois.labels), coverage, rois, batch, truth), values, present)


@torch.no_grad()
def targets_of(config: MaskIoUConfig, true: TrueMaskIoUs, rois: MatchedRoIs) -> MaskIoUTargets:
    """What a MaskIoU head learns of the RoIs.

    #1: the ground-truth class alone. #2: all classes, absent ones regress to 0. #3: all classes present in the RoI.

    Args:
        config: `target` and `tau`; a RoI trains if the MaskIoU of its *ground-truth* class is strictly above tau.
        true: with the other classes, if the target is not #1.
        rois: the RoIs.
    """
    channel = (rois.labels - 1).clamp(min=0)[:, None]  # [N, 1]
    values = torch.zeros_like(true.others) if config.target == 1 else true.others  # [N, K]
    trained = torch.zeros_like(true.present) if config.target == 1 else true.present
    values = values.scatter(1, channel, true.own[:, None])
    trained = torch.ones_like(trained) if config.target == 2 else trained.scatter(1, channel, True)
    retained = (rois.labels > 0) & (true.own > config.tau)  # [N]
    return MaskIoUTargets(values, trained & retained[:, None])


def _maskiou(logits: Tensor, coverage: Tensor, rois: MatchedRoIs, batch: Batch, truth: Targets) -> Tensor:
    """MaskIoU [N] of masks [N, M, M], cut at probability 0.5, with the whole instances of `rois`."""
    box_area = area(rois.boxes) / batch.scales[rois.images].prod(-1)  # [N], in image pixels
    instance_area = truth.areas[rois.images, rois.instances]
    return whole_instance_iou(logits > 0, coverage, instance_area, box_area)


def _other_classes(logits: Tensor, rois: MatchedRoIs, batch: Batch, truth: Targets) -> tuple[Tensor, Tensor]:
    """True MaskIoU [N, K] and presence [N, K] of the classes that are not the RoI's own."""
    classes, size = logits.shape[1:3]
    overlap, instance = _nearest_of_each_class(rois, truth, classes)  # [N, K] each
    overlap = overlap.scatter(1, (rois.labels - 1).clamp(min=0)[:, None], 0.0)
    # The RoI's own class and instance take one place each, so that no RoI has more other classes than this.
    rounds = min(classes, truth.labels.shape[1]) - 1
    overlap, order = overlap.topk(rounds, dim=1)  # [N, rounds]
    values = torch.zeros(logits.shape[:2], device=logits.device)  # [N, K]
    present = torch.zeros_like(values, dtype=torch.bool)
    rows = torch.arange(len(logits), device=logits.device)
    for k in range(rounds):
        near, row, channel = compact(overlap[:, k] > 0, rows, order[:, k])
        other = MatchedRoIs(rois.boxes[row], channel + 1, instance[row, channel], rois.images[row])
        coverage = sample_on_rois(truth.masks, batch, other.images, other.instances, other.boxes, size)
        inside = near & (coverage >= 0.5).flatten(1).any(1)  # [n]
        present[row, channel] = inside
        values[row, channel] = _maskiou(logits[row, channel], coverage, other, batch, truth).where(inside, 0)
    return values, present


def _nearest_of_each_class(rois: MatchedRoIs, truth: Targets, classes: int) -> tuple[Tensor, Tensor]:
    """Of each class the instance with the highest box IoU with each RoI: the IoU [N, K], 0 if none, and slot [N, K]."""
    slots = truth.labels.shape[1]
    labels = truth.labels[rois.images]  # [N, G]
    iou = pairwise_iou(rois.boxes[:, None], truth.boxes[rois.images]).squeeze(1)  # [N, 1, G] -> [N, G]
    iou, order = iou.masked_fill(labels == 0, 0).sort(dim=1, descending=True, stable=True)
    place = torch.arange(slots, device=iou.device).expand_as(order)  # [N, G]
    first = torch.full((len(iou), classes + 1), slots, device=iou.device)  # [N, K + 1]: where each class comes first
    first = first.scatter_reduce(1, labels.gather(1, order), place, "amin")[:, 1:]  # label 0: empty slots
    found, first = first < slots, first.clamp(max=slots - 1)
    return iou.gather(1, first).where(found, 0), order.gather(1, first)
