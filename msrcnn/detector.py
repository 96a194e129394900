"""Mask Scoring R-CNN: losses in training, detections in testing (the paper, Fig. 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from msrcnn.backbones import Backbone
from msrcnn.box_head import WEIGHTS, BoxHead, Res5BoxHead, box_losses, class_scores
from msrcnn.boxes import clip, compact, decode
from msrcnn.config import ModelConfig
from msrcnn.mask_head import MaskHead, Res5MaskHead, mask_loss, of_class
from msrcnn.maskiou_head import MaskIoUHead
from msrcnn.maskiou_heads import head_losses, loss_names, make_heads, predictions
from msrcnn.maskiou_targets import MatchedRoIs, true_maskious
from msrcnn.masks import sample_on_rois
from msrcnn.pooling import PyramidPooler
from msrcnn.proposals import Proposals, RegionProposals
from msrcnn.sampling import match, subsample, take
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


class MaskScoringRCNN(nn.Module):
    """The detector. Called with a batch in training mode it returns losses, in testing mode detections.

    Attributes:
        maskiou: the MaskIoU head; None where the configuration leaves it out, which makes this a Mask R-CNN.
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
        self.maskiou: MaskIoUHead | None = None
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

    def maskiou_heads(self) -> list[MaskIoUHead]:
        """All MaskIoU heads, that of `ModelConfig.maskiou` first; none in a Mask R-CNN."""
        return [] if self.maskiou is None else [self.maskiou, *self.heads]

    def parts_apart(self) -> list[list[nn.Parameter]]:
        """The parameters in parts of which none gives another a gradient: all in one, or trunk and MaskIoU heads."""
        if not self.heads:
            return [list(self.parameters())]
        heads = [list(head.parameters()) for head in self.maskiou_heads()]
        own = {id(parameter) for part in heads for parameter in part}
        return [[parameter for parameter in self.parameters() if id(parameter) not in own], *heads]

    def train(self, mode: bool = True) -> MaskScoringRCNN:
        """Sets the mode; finished parts stay in testing mode."""
        super().train(mode)
        for part in self.finished():
            part.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor] | Detections:
        """Losses by name (scalars; their sum is what to minimise) in training mode, else the detections."""
        features = self.backbone(batch.images, batch.sizes)
        logits, deltas = self.rpn.head(features)
        anchors = self.rpn.anchors(features)
        proposals = self.rpn.propose(logits, deltas, anchors, batch)
        levels = len(self.config.levels)  # the pooled last level serves the RPN alone
        pooler = PyramidPooler(features[:levels], self.backbone.strides[:levels])
        if not self.training:
            return self.detect(pooler, proposals, batch)
        assert batch.targets is not None, "training needs targets"
        rois = self.sample_rois(proposals, batch.targets, batch.draws)
        if self.config.trained == "maskiou":  # neither the RPN's losses nor the box head serve what trains
            found = self.mask_losses(pooler, batch, batch.targets, rois, None)
            return {name: found[name] for name in loss_names(self.config)}
        losses = self.rpn.losses(logits, deltas, anchors, batch.targets, batch.draws)
        box_losses, shared = self.box_losses(pooler, batch.targets, rois)
        return losses | box_losses | self.mask_losses(pooler, batch, batch.targets, rois, shared)

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
        self, pooler: PyramidPooler, batch: Batch, targets: Targets, rois: SampledRoIs, shared: SharedFeatures | None
    ) -> dict[str, Tensor]:
        """Losses of the mask and MaskIoU heads over the positive RoIs, which fill the first slots of [B, S].

        Without a MaskIoU head that of the mask head alone.
        """
        images, all_slots = rois.labels.shape
        slots = min(all_slots, self.config.roi.positive_samples)
        boxes, labels, instances, _ = (flat(x[:, :slots]) for x in rois)
        index = image_index(images, slots, boxes.device)
        where = torch.arange(images * all_slots, device=index.device).view(images, all_slots)  # [B, S]
        positive, roi, label, slot, image, where = compact(
            labels > 0, boxes, labels, instances, index, flat(where[:, :slots])
        )
        if shared is None:
            features = self.roi_features(pooler, image, roi, self.mask.size)
        else:
            features = shared.of(where)
        masks = self.mask(features.deep)  # logits [N, K, M, M]
        logits = of_class(masks, label)  # [N, M, M]
        if targets.labels.shape[1] == 0:  # not an instance in the whole batch
            coverage = torch.zeros_like(logits)
        else:
            coverage = sample_on_rois(targets.masks, batch, image, slot, roi, self.mask.mask_size)
        losses = {"mask": mask_loss(logits, (coverage >= 0.5).float(), positive)}
        if self.maskiou is None:
            return losses
        matched = MatchedRoIs(roi, label, slot, image)
        others = any(head.target != 1 for head in self.config.all_heads)
        true = true_maskious(masks, coverage, matched, batch, targets, others)
        # No stop-gradient: the loss of a single head reaches features and mask through its input (the paper, Fig. 3).
        predicted = self.predicted_maskious(pooler, features, image, roi, logits, masks)
        return losses | head_losses(self.config, predicted, true, matched)

    def predicted_maskious(
        self, pooler: PyramidPooler, features: RoIFeatures, image: Tensor, boxes: Tensor, logits: Tensor, masks: Tensor
    ) -> list[Tensor]:
        """What each MaskIoU head predicts for RoIs, [N, K] each.

        It reads the mask head's features, or pooled again at a higher resolution (input (d)).

        Args:
            pooler, image, boxes: as `roi_features` takes them.
            features: the mask head's.
            logits: [N, M, M], mask logits of the target class.
            masks: [N, K, M, M], those of all classes.
        """

        def pool(size: int) -> Tensor:
            return features.pooled if size == self.mask.size else pooler(image, boxes, size)  # [N, C, size, size]

        return predictions(self.maskiou_heads(), pool, logits, masks)

    # Testing

    @torch.no_grad()
    def detect(self, pooler: PyramidPooler, proposals: Proposals, batch: Batch) -> Detections:
        """Proposals to detections: box head, SoftNMS, then masks and their scores for what is left."""
        selected = self.select(pooler, proposals, batch)
        images, slots = selected.labels.shape
        index = image_index(images, slots, selected.boxes.device)
        where = torch.arange(images * slots, device=index.device)
        _, roi, label, image, where = compact(
            flat(selected.valid), flat(selected.boxes), flat(selected.labels), index, where
        )
        features = self.roi_features(pooler, image, roi, self.mask.size)
        all_masks = self.mask(features.deep)  # logits [N, K, M, M]
        logits = of_class(all_masks, label)  # [N, M, M]
        probability = logits.float().sigmoid()  # [N, M, M]
        side = self.mask.mask_size
        masks = probability.new_zeros(images * slots, side, side).index_copy(0, where, probability)
        if self.maskiou is None:  # a mask score is then the class score
            maskious = torch.ones_like(selected.scores)[..., None]  # [B, D, 1]
        else:
            found = self.predicted_maskious(pooler, features, image, roi, logits, all_masks)
            of_label = (label - 1)[:, None]  # [N, 1]
            iou = torch.cat([values.float().gather(1, of_label) for values in found], 1)  # [N, 1 + V]
            maskious = iou.new_zeros(images * slots, len(found)).index_copy(0, where, iou)
            maskious = maskious.view(images, slots, -1)  # [B * D, 1 + V] -> [B, D, 1 + V]
        return Detections(
            selected.boxes,
            selected.labels,
            selected.scores,
            maskious[..., 0],
            maskious[..., 1:],
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
