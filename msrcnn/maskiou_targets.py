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

CANDIDATES = 2
"""Instances, the nearest of its class, that a detection's mask is compared with."""
MATCHED = 0.5
"""MaskIoU from which a detection can be an instance's match: the lowest of COCO's thresholds."""


@dataclass(frozen=True)
class MatchedRoIs:
    """RoIs of a batch in one list, each with the instance that it is matched to.

    The positive RoIs, or detections: these best class score first in each image, with their predicted class.
    """

    boxes: Tensor  # float [N, 4] in network pixels
    labels: Tensor  # int64 [N], 1..K; 0 in an unused slot
    instances: Tensor  # int64 [N], instance slot in the image; any for a detection that overlaps none of its class
    images: Tensor  # int64 [N], index of the image in the batch


@dataclass(frozen=True)
class MaskIoUTargets:
    """True MaskIoU of each class's own mask, and which of them train."""

    values: Tensor  # float [N, K], in [0, 1]; 0 for a class that is absent
    trained: Tensor  # bool [N, K]
    own: Tensor  # float [N], the value of the RoI's own class


@dataclass(frozen=True)
class TrueMaskIoUs:
    """What the targets of any number of MaskIoU heads are made of.

    A RoI's own class is that of its instance, of a detection the predicted one.
    """

    own: Tensor  # float [N], of its own class
    matched: Tensor  # bool [N], whether its instance is its alone: all RoIs but detections that `is_match` refuses
    others: Tensor  # float [N, K], of the classes that are not the RoI's own; 0 for a class that is absent
    present: Tensor  # bool [N, K], which of these appear in the RoI


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
        return TrueMaskIoUs(values[:, 0], rois.labels > 0, values, present)
    if others:  # the RoI's own class and instance take one place each
        rounds = min(logits.shape[1], truth.labels.shape[1]) - 1
        values, present = _other_classes(logits, rois, batch, truth, rounds)
    own = _maskiou(of_class(logits, rois.labels), coverage, rois, batch, truth)
    return TrueMaskIoUs(own, rois.labels > 0, values, present)


@torch.no_grad()
def true_maskious_of_detections(
    logits: Tensor, found: MatchedRoIs, batch: Batch, truth: Targets, others: bool
) -> TrueMaskIoUs:
    """The same of detections, whose own class is the predicted one; see `detection_maskious` and `is_match`.

    Args:
        logits: [N, K, M, M], mask logits of all classes.
        found: the detections; their instances are not read.
        batch, truth, others: as `true_maskious` takes them.
    """
    values = torch.zeros(logits.shape[:2], device=logits.device)  # [N, K]
    present = torch.zeros_like(values, dtype=torch.bool)
    own, instances = detection_maskious(of_class(logits, found.labels), found, batch, truth)
    if others and truth.labels.shape[1]:  # an instance of the own class need not be there
        rounds = min(logits.shape[1] - 1, truth.labels.shape[1])
        values, present = _other_classes(logits, found, batch, truth, rounds)
    return TrueMaskIoUs(own, is_match(own, found.images, instances), values, present)


@torch.no_grad()
def detection_maskious(logits: Tensor, found: MatchedRoIs, batch: Batch, truth: Targets) -> tuple[Tensor, Tensor]:
    """MaskIoU of each detection with the instance of its class that it fits best.

    That is the highest MaskIoU over the `CANDIDATES` instances of its class with the highest box IoU; 0 where none
    overlaps its box. Further ones are not looked at: their boxes fit worse than two others of the same class.
    A crowd region is no instance: a detection on one has 0.

    Args:
        logits: [N, M, M], mask logits of the predicted class.
        found: the detections; their instances are not read.
        batch, truth: the images' geometry and instances.

    Returns:
        MaskIoU float [N] and that instance's slot int64 [N].
    """
    best = torch.zeros(len(logits), device=logits.device)  # [N]
    instance = torch.zeros_like(found.labels)
    overlap = pairwise_iou(found.boxes[:, None], truth.boxes[found.images]).squeeze(1)  # [N, 1, G] -> [N, G]
    same = (truth.labels[found.images] == found.labels[:, None]) & (found.labels > 0)[:, None]  # [N, G]
    overlap, order = overlap.masked_fill(~same, 0).topk(min(CANDIDATES, overlap.shape[1]), dim=1)  # [N, C] each
    for near, slot in zip(overlap.unbind(1), order.unbind(1), strict=True):  # a number of turns that the host knows
        candidate = MatchedRoIs(found.boxes, found.labels, slot, found.images)
        coverage = sample_on_rois(truth.masks, batch, found.images, slot, found.boxes, logits.shape[-1])
        iou = _maskiou(logits, coverage, candidate, batch, truth).where(near > 0, 0)
        instance, best = slot.where(iou > best, instance), torch.maximum(best, iou)
    return best, instance


@torch.no_grad()
def is_match(maskious: Tensor, images: Tensor, instances: Tensor) -> Tensor:
    """Which detections are the one-to-one match of their instance: the first of those with MaskIoU 0.5 or more.

    COCO's way at IoU 0.5 but for one thing: a detection whose instance is taken does not look for a second one.

    Args:
        maskious: float [N] of `detection_maskious`, detections best class score first in each image.
        images, instances: int64 [N].

    Returns:
        bool [N].
    """
    place = torch.arange(len(maskious), device=maskious.device)
    same = (images[:, None] == images) & (instances[:, None] == instances)  # [N, N]
    fits = maskious >= MATCHED
    rivals = same & fits & (place < place[:, None])  # [N, N]: j comes before i
    return fits & ~rivals.any(1)


@torch.no_grad()
def targets_of(config: MaskIoUConfig, true: TrueMaskIoUs, rois: MatchedRoIs) -> MaskIoUTargets:
    """What a MaskIoU head learns of the RoIs.

    #1: the RoI's own class alone. #2: all classes, absent ones regress to 0. #3: all classes present in the RoI.

    Args:
        config: `target`, `tau` and `unmatched`; a RoI trains if the target of its *own* class is strictly above tau.
        true: with the other classes, if the target is not #1.
        rois: the RoIs.
    """
    channel = (rois.labels - 1).clamp(min=0)[:, None]  # [N, 1]
    own = true.own if config.unmatched == "best" else true.own.where(true.matched, 0)  # [N]
    values = torch.zeros_like(true.others) if config.target == 1 else true.others  # [N, K]
    trained = torch.zeros_like(true.present) if config.target == 1 else true.present
    values = values.scatter(1, channel, own[:, None])
    trained = torch.ones_like(trained) if config.target == 2 else trained.scatter(1, channel, True)
    retained = (rois.labels > 0) & (own > config.tau)  # [N]
    return MaskIoUTargets(values, trained & retained[:, None], own)


def _maskiou(logits: Tensor, coverage: Tensor, rois: MatchedRoIs, batch: Batch, truth: Targets) -> Tensor:
    """MaskIoU [N] of masks [N, M, M], cut at probability 0.5, with the whole instances of `rois`."""
    box_area = area(rois.boxes) / batch.scales[rois.images].prod(-1)  # [N], in image pixels
    instance_area = truth.areas[rois.images, rois.instances]
    return whole_instance_iou(logits > 0, coverage, instance_area, box_area)


def _other_classes(
    logits: Tensor, rois: MatchedRoIs, batch: Batch, truth: Targets, rounds: int
) -> tuple[Tensor, Tensor]:
    """True MaskIoU [N, K] and presence [N, K] of the classes that are not the RoI's own, `rounds` a RoI at most."""
    classes, size = logits.shape[1:3]
    overlap, instance = _nearest_of_each_class(rois, truth, classes)  # [N, K] each
    overlap = overlap.scatter(1, (rois.labels - 1).clamp(min=0)[:, None], 0.0)
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
