"""Mask Scoring R-CNN: losses in training, detections in testing (the paper, Fig. 3)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from msrcnn.backbones import Backbone
from msrcnn.box_head import WEIGHTS, BoxHead, Res5BoxHead, box_losses, class_scores
from msrcnn.boxes import clip, compact, decode
from msrcnn.config import ModelConfig
from msrcnn.mask_head import MaskHead, Res5MaskHead, mask_loss, of_class
from msrcnn.maskiou_config import RoIKind
from msrcnn.maskiou_heads import AnyHead, HeadInputs, RoISet, head_losses, make_heads, maskious_of
from msrcnn.maskiou_targets import MatchedRoIs, true_maskious, true_maskious_of_detections
from msrcnn.masks import sample_on_rois
from msrcnn.pooling import PyramidPooler
from msrcnn.proposals import Proposals, RegionProposals
from msrcnn.sampling import match, subsample, take
from msrcnn.score_fusion import evidence_of, overlap_with_better
from msrcnn.soft_nms import Selected, soft_nms
from msrcnn.structures import Batch, Detections, Targets

SALT = 2
"""Tells the RoIs' random samples from the RPN's."""


def flat(values: Tensor) -> Tensor:
    """[B, S, ...] -> [B * S, ...]: a batch's RoIs in one list, as heads take them."""
    return values.flatten(0, 1)


def image_index(images: int, slots: int, device: torch.device) -> Tensor:
    """The batch index of each RoI in a flat list, int64 [images * slots]."""
    return torch.arange(images, device=device).repeat_interleave(slots, output_size=images * slots)


class SampledRoIs(NamedTuple):
    """RoIs that train the heads: S slots an image, the positive ones first."""

    boxes: Tensor  # float [B, S, 4]
    labels: Tensor  # int64 [B, S], 0: background
    instances: Tensor  # int64 [B, S], instance slot
    valid: Tensor  # bool [B, S]


class RoIFeatures(NamedTuple):
    """Features of N RoIs: as pooled, and as box and mask head read them, which is after res5 if the heads hold it."""

    pooled: Tensor  # [N, C, S, S]
    deep: Tensor  # [N, C', S', S']


class SharedFeatures(NamedTuple):
    """The box head's RoI features, for the mask head to use again."""

    features: RoIFeatures
    row: Tensor  # int64 [B * S]: where in them each RoI slot's are

    def of(self, slots: Tensor) -> RoIFeatures:
        """Those of `slots` [N]."""
        row = self.row[slots]
        return RoIFeatures(*(x[row] for x in self.features))


class MaskedRoIs(NamedTuple):
    """RoIs in one list, and what the mask head makes of them."""

    rois: MatchedRoIs
    features: RoIFeatures  # as the mask head reads them
    masks: Tensor  # [N, K, M, M], logits of all classes
    logits: Tensor  # [N, M, M], those of the RoI's own class


class MaskScoringRCNN(nn.Module):
    """The detector. Called with a batch in training mode it returns losses, in testing mode detections.

    Attributes:
        maskiou: the MaskIoU head, or the `NoHead` that stands for it; None where the configuration leaves it out, which
            makes this a Mask R-CNN.
        heads: the further MaskIoU heads of `ModelConfig.heads`. With any, no gradient of a MaskIoU head leaves it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        channels, classes = self.backbone.channels, config.num_classes
        self.rpn = RegionProposals(config, channels, self.backbone.strides)
        self.res5_in_heads = config.neck == "none"
        if self.res5_in_heads:
            deep = self.backbone.trunk.head_channels
            self.box: BoxHead | Res5BoxHead = Res5BoxHead(deep, classes)
            self.mask: MaskHead | Res5MaskHead = Res5MaskHead(deep, config.channels, classes)
        else:
            self.box = BoxHead(channels, config.hidden, classes)
            self.mask = MaskHead(channels, classes)
        self.maskiou: AnyHead | None = None
        self.heads = nn.ModuleList()
        if config.maskiou.enabled:  # the last parts, so that the same seed gives the others the same initial weights
            self.maskiou, *further = make_heads(config, channels, self.mask.mask_size)
            self.heads.extend(further)
        if config.trained == "maskiou":
            for part in self.finished():
                part.requires_grad_(False)

    def finished(self) -> list[nn.Module]:
        """The parts that are not trained at all: all but the MaskIoU heads where these are calibrated."""
        return [self.backbone, self.rpn, self.box, self.mask] if self.config.trained == "maskiou" else []

    def maskiou_heads(self) -> list[AnyHead]:
        """All MaskIoU heads, that of `ModelConfig.maskiou` first; none in a Mask R-CNN."""
        return [] if self.maskiou is None else [self.maskiou, *self.heads]

    def parts_apart(self) -> list[list[nn.Parameter]]:
        """The parameters in parts of which none gives another a gradient.

        All in one, or the trunk and each of several MaskIoU heads; and of each head the fusion, if it has one.
        """
        heads = self.maskiou_heads()
        fusions = [head.fusion for head in heads if head.fusion is not None]
        parts: list[list[nn.Parameter]] = []
        taken: set[int] = set()
        for module in (*fusions, *(heads if self.heads else ()), self):  # what lies inside another comes before it
            parts.append([parameter for parameter in module.parameters() if id(parameter) not in taken])
            taken |= {id(parameter) for parameter in parts[-1]}
        return parts[::-1]

    def train(self, mode: bool = True) -> MaskScoringRCNN:
        """Sets the mode; finished parts stay in testing mode."""
        super().train(mode)
        for part in self.finished():
            part.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor] | Detections:
        """Losses by name (scalars; their sum is what to minimise) in training mode, else the detections."""
        # In testing nothing is kept for a backward pass, whoever calls.
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            features = self.backbone(batch.images, batch.sizes)
            logits, deltas = self.rpn.head(features)
            anchors = self.rpn.anchors(features)
            limits = self.config.rpn
            limit = limits.train_proposals if self.rpn.training else limits.test_proposals
            proposals = tested = self.rpn.propose(logits, deltas, anchors, batch, limit)
            if self.rpn.training and "detections" in self.config.trained_on:  # those are found as in testing
                tested = self.rpn.propose(logits, deltas, anchors, batch, limits.test_proposals)
            levels = len(self.config.levels)  # the pooled last level serves the RPN alone
            pooler = PyramidPooler(features[:levels], self.backbone.strides[:levels])
        if not self.training:
            return self.detect(pooler, proposals, batch)
        assert batch.targets is not None, "training needs targets"
        rois = self.sample_rois(proposals, batch.targets, batch.draws)
        losses: dict[str, Tensor] = {}
        shared = None
        if self.config.trained == "all":  # else neither the RPN's losses nor the box head serve what trains
            losses = self.rpn.losses(logits, deltas, anchors, batch.targets, batch.sizes, batch.draws)
            of_boxes, shared = self.box_losses(pooler, batch.targets, rois)
            losses |= of_boxes
        # A pass without gradient comes last: what autocast keeps of the weights in the first serves the others.
        return losses | self.mask_losses(pooler, batch, batch.targets, tested, rois, shared)

    def roi_features(self, pooler: PyramidPooler, image: Tensor, boxes: Tensor, size: int) -> RoIFeatures:
        """RoI features of boxes [N, 4] in images `image` [N], `size` bins along each side."""
        pooled = pooler(image, boxes, size)
        return RoIFeatures(pooled, self.backbone.trunk.res5(pooled) if self.res5_in_heads else pooled)

    # Training

    @torch.no_grad()
    def sample_rois(self, proposals: Proposals, targets: Targets, draws: Tensor) -> SampledRoIs:
        """Draws `roi.samples` RoIs an image.

        Ground-truth boxes join the proposals, so that there are good RoIs from the first step on.
        """
        config = self.config.roi
        boxes = torch.cat([proposals.boxes, targets.boxes], 1)  # [B, P + G, 4]
        exists = torch.cat([proposals.valid, targets.valid], 1)
        matches = match(boxes, targets.boxes, targets.valid, config.positive_iou, config.positive_iou, False)
        matches.positive.logical_and_(exists)
        matches.negative.logical_and_(exists)
        samples = subsample(matches, draws, config.samples, config.positive_samples, SALT)
        instance = take(matches.instance, samples.index)
        if targets.labels.shape[1] == 0:
            labels = torch.zeros_like(samples.index)
        else:
            labels = take(targets.labels, instance).where(samples.positive, 0)
        return SampledRoIs(take(boxes, samples.index), labels, instance, samples.valid)

    def box_losses(
        self, pooler: PyramidPooler, targets: Targets, rois: SampledRoIs
    ) -> tuple[dict[str, Tensor], SharedFeatures | None]:
        """Losses of the box head; and its RoI features where res5, most of the work, comes first in both heads."""
        images, slots = rois.labels.shape
        boxes = take(targets.boxes, rois.instances) if targets.boxes.shape[1] else torch.zeros_like(rois.boxes)
        index = image_index(images, slots, boxes.device)
        where = torch.arange(images * slots, device=boxes.device)
        used, roi, label, box, image, where = compact(
            flat(rois.valid), flat(rois.boxes), flat(rois.labels), flat(boxes), index, where
        )
        features = self.roi_features(pooler, image, roi, self.box.size)
        logits, deltas = self.box(features.deep)
        losses = box_losses(logits, deltas, roi, label, box, used)
        if not self.res5_in_heads:
            return losses, None
        row = torch.zeros_like(index).index_copy(0, where, torch.arange(len(where), device=where.device))  # [B * S]
        return losses, SharedFeatures(features, row)

    def mask_losses(
        self, pooler: PyramidPooler, batch: Batch, targets: Targets, proposals: Proposals, rois: SampledRoIs,
        shared: SharedFeatures | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Losses of the mask head, unless it is finished, and of the MaskIoU heads."""
        kinds = self.config.trained_on
        losses: dict[str, Tensor] = {}
        sets: dict[RoIKind, RoISet] = {}
        others = any(head.learns and head.target != 1 for head in self.config.all_heads)
        if self.config.trained == "all" or "proposals" in kinds:
            found = self.positive_rois(pooler, rois, shared)
            coverage = self.coverage(found, batch, targets)
            if self.config.trained == "all":
                losses["mask"] = mask_loss(found.logits, (coverage >= 0.5).float(), found.rois.labels > 0)
            if "proposals" in kinds:
                scores = self.own_scores(pooler, found) if self.config.reads_evidence("proposals") else None
                true = true_maskious(found.masks, coverage, found.rois, batch, targets, others)
                sets["proposals"] = RoISet(self.head_inputs(pooler, found, scores, batch, False), found.rois, true)
        if "detections" in kinds:
            with torch.no_grad():
                selected = self.select(pooler, proposals, batch)
            with torch.no_grad() if self.heads else nullcontext():
                found, scores, _ = self.selected_rois(pooler, selected)
            true = true_maskious_of_detections(found.masks, found.rois, batch, targets, others)
            sets["detections"] = RoISet(self.head_inputs(pooler, found, scores, batch, True), found.rois, true)
        return losses | head_losses(self.config, self.maskiou_heads(), sets) if sets else losses

    def positive_rois(self, pooler: PyramidPooler, rois: SampledRoIs, shared: SharedFeatures | None) -> MaskedRoIs:
        """The positive RoIs, which fill the first slots of [B, S], in one list."""
        images, all_slots = rois.labels.shape
        slots = min(all_slots, self.config.roi.positive_samples)
        boxes, labels, instances, _ = (flat(x[:, :slots]) for x in rois)
        index = image_index(images, slots, boxes.device)
        where = torch.arange(images * all_slots, device=index.device).view(images, all_slots)  # [B, S]
        _, roi, label, slot, image, where = compact(labels > 0, boxes, labels, instances, index, flat(where[:, :slots]))
        features = self.roi_features(pooler, image, roi, self.mask.size) if shared is None else shared.of(where)
        return self.with_masks(MatchedRoIs(roi, label, slot, image), features)

    def coverage(self, found: MaskedRoIs, batch: Batch, targets: Targets) -> Tensor:
        """How much of each bin of the RoIs' masks their instances cover, float [N, M, M]."""
        if targets.labels.shape[1] == 0:  # not an instance in the whole batch
            return torch.zeros_like(found.logits)
        rois = found.rois
        return sample_on_rois(targets.masks, batch, rois.images, rois.instances, rois.boxes, self.mask.mask_size)

    @torch.no_grad()
    def own_scores(self, pooler: PyramidPooler, found: MaskedRoIs) -> Tensor:
        """The class score of each RoI's own class, float [N]."""
        rois, features = found.rois, found.features
        if self.box.size != self.mask.size:
            features = self.roi_features(pooler, rois.images, rois.boxes, self.box.size)
        scores = class_scores(self.box(features.deep)[0])  # [N, K]
        return scores.gather(1, (rois.labels - 1).clamp(min=0)[:, None]).squeeze(1)  # [N, 1] -> [N]

    # Both

    def with_masks(self, rois: MatchedRoIs, features: RoIFeatures) -> MaskedRoIs:
        """RoIs with their masks."""
        masks = self.mask(features.deep)  # logits [N, K, M, M]
        return MaskedRoIs(rois, features, masks, of_class(masks, rois.labels))

    def selected_rois(self, pooler: PyramidPooler, selected: Selected) -> tuple[MaskedRoIs, Tensor, Tensor]:
        """Selected detections [B, D] in one list with their masks, their class scores [N], and where in B * D each was.

        Best class score first in each image; label 0 in a slot that holds none.
        """
        images, slots = selected.labels.shape
        index = image_index(images, slots, selected.boxes.device)
        where = torch.arange(images * slots, device=index.device)
        used, roi, label, score, image, where = compact(
            flat(selected.valid), flat(selected.boxes), flat(selected.labels), flat(selected.scores), index, where
        )
        features = self.roi_features(pooler, image, roi, self.mask.size)
        rois = MatchedRoIs(roi, label.where(used, 0), torch.zeros_like(label), image)
        return self.with_masks(rois, features), score, where

    def head_inputs(
        self, pooler: PyramidPooler, found: MaskedRoIs, scores: Tensor | None, batch: Batch, detections: bool
    ) -> HeadInputs:
        """What the MaskIoU heads read of RoIs: the mask head's features, or pooled again for input (d).

        Args:
            pooler: as `roi_features` takes it.
            found: the RoIs.
            scores: [N], class scores; None if no head reads them.
            batch: the images' geometry.
            detections: whether they are such, best class score first in each image.
        """
        rois = found.rois

        def pool(size: int) -> Tensor:
            if size == self.mask.size:
                return found.features.pooled
            return pooler(rois.images, rois.boxes, size)  # [N, C, size, size]

        evidence = None
        if scores is not None and self.config.reads_evidence():
            better = (
                overlap_with_better(rois.boxes, rois.labels, rois.images) if detections else torch.zeros_like(scores)
            )
            evidence = evidence_of(found.logits, scores, rois.boxes, batch.sizes[rois.images], better)
        return HeadInputs(pool, found.logits, found.masks, evidence)

    # Testing

    @torch.no_grad()
    def detect(self, pooler: PyramidPooler, proposals: Proposals, batch: Batch) -> Detections:
        """Proposals to detections: box head, SoftNMS, then masks and their scores for what is left."""
        selected = self.select(pooler, proposals, batch)
        images, slots = selected.labels.shape
        found, scores, where = self.selected_rois(pooler, selected)
        probability = found.logits.float().sigmoid()  # [N, M, M]
        side = self.mask.mask_size
        masks = probability.new_zeros(images * slots, side, side).index_copy(0, where, probability)
        if self.maskiou is None:  # a mask score is then the class score
            said = torch.ones_like(selected.scores)[..., None].expand(-1, -1, 2)  # [B, D, 2]
        else:
            inputs = self.head_inputs(pooler, found, scores, batch, True)
            maskious, worths = maskious_of(self.config, self.maskiou_heads(), inputs, found.rois.labels)
            values = torch.cat([maskious[:, None], worths], dim=1)  # [N], [N, 1 + V] -> [N, 2 + V]
            said = values.new_zeros(images * slots, values.shape[1]).index_copy(0, where, values)
            said = said.view(images, slots, -1)  # [B * D, 2 + V] -> [B, D, 2 + V]
        return Detections(
            selected.boxes,
            selected.labels,
            selected.scores,
            said[..., 0],
            said[..., 1],
            said[..., 2:],
            masks.view(images, slots, side, side),  # [B * D, M, M] -> [B, D, M, M]
            selected.valid,
        )

    def select(self, pooler: PyramidPooler, proposals: Proposals, batch: Batch) -> Selected:
        """Class scores and refined boxes of every proposal, then SoftNMS to the top k."""
        images, count = proposals.valid.shape
        index = image_index(images, count, proposals.boxes.device)
        where = torch.arange(images * count, device=index.device)
        used, roi, image, where = compact(flat(proposals.valid), flat(proposals.boxes), index, where)
        logits, deltas = self.box(self.roi_features(pooler, image, roi, self.box.size).deep)
        scores = class_scores(logits).masked_fill(~used[:, None], 0)  # [N, K]
        boxes = decode(deltas[:, 1:].float(), roi[:, None], WEIGHTS)  # [N, K, 4]
        classes = scores.shape[1]
        all_scores = scores.new_zeros(images * count, classes).index_copy(0, where, scores)
        all_boxes = boxes.new_zeros(images * count, classes, 4).index_copy(0, where, boxes)
        all_boxes = clip(all_boxes.view(images, count, classes, 4), batch.sizes)  # [B * R, K, 4] -> [B, R, K, 4]
        all_scores = all_scores.view(images, count, classes)  # [B * R, K] -> [B, R, K]
        side = all_boxes[..., 2:] - all_boxes[..., :2]
        all_scores = all_scores.masked_fill((side < 1e-2).any(-1), 0)
        return soft_nms(all_boxes.transpose(1, 2).contiguous(), all_scores.transpose(1, 2).contiguous(),
                        self.config.selection)  # fmt: skip
