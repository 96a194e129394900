"""Mask Scoring R-CNN: losses in training, detections in testing (the paper, Fig. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msrcnn import box_head, mask_head
from msrcnn.backbones import Backbone
from msrcnn.box_head import BoxHead, box_losses, class_scores
from msrcnn.boxes import clip, compact, decode
from msrcnn.config import ModelConfig
from msrcnn.mask_head import MaskHead, mask_loss, of_class
from msrcnn.maskiou_head import MaskIoUHead, maskiou_loss
from msrcnn.maskiou_targets import MatchedRoIs, maskiou_targets
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


class MaskScoringRCNN(nn.Module):
    """The detector. Called with a batch in training mode it returns losses, in testing mode detections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.rpn = RegionProposals(config, self.backbone.strides)
        self.box = BoxHead(config.channels, config.hidden, config.num_classes)
        self.mask = MaskHead(config.channels, config.num_classes)
        self.maskiou = MaskIoUHead(config.channels, config.hidden, config.num_classes, config.maskiou.input)

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
        losses = self.rpn.losses(logits, deltas, anchors, batch.targets, batch.draws)
        return losses | self.head_losses(pooler, proposals, batch, batch.targets)

    # Training

    def sample_rois(
        self, proposals: Proposals, targets: Targets, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """RoIs that train the heads: `roi.samples` slots an image, the positive ones first.

        Ground-truth boxes join the proposals, so that there are good RoIs from the first step on.

        Returns:
            RoIs [B, S, 4], labels int64 [B, S] (0: background), instance slots int64 [B, S], valid bool [B, S].
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
        return take(boxes, samples.index), labels, instance, samples.valid

    def head_losses(
        self, pooler: PyramidPooler, proposals: Proposals, batch: Batch, targets: Targets
    ) -> dict[str, Tensor]:
        """Losses of the box, mask and MaskIoU heads."""
        with torch.no_grad():
            rois, labels, instance, valid = self.sample_rois(proposals, targets, batch.draws)
            boxes = take(targets.boxes, instance) if targets.boxes.shape[1] else torch.zeros_like(rois)
        images, slots = labels.shape
        index = image_index(images, slots, rois.device)
        used, roi, label, box, image = compact(flat(valid), flat(rois), flat(labels), flat(boxes), index)
        logits, deltas = self.box(pooler(image, roi, box_head.SIZE))
        losses = box_losses(logits, deltas, roi, label, box, used)
        return losses | self.mask_losses(pooler, batch, targets, rois, labels, instance)

    def mask_losses(
        self,
        pooler: PyramidPooler,
        batch: Batch,
        targets: Targets,
        rois: Tensor,
        labels: Tensor,
        instance: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of the mask and MaskIoU heads over the positive RoIs, which fill the first slots of [B, S]."""
        images, slots = labels.shape[0], min(labels.shape[1], self.config.roi.positive_samples)
        rois, labels, instance = flat(rois[:, :slots]), flat(labels[:, :slots]), flat(instance[:, :slots])
        index = image_index(images, slots, rois.device)
        positive, roi, label, slot, image = compact(labels > 0, rois, labels, instance, index)

        features = pooler(image, roi, mask_head.SIZE)  # [N, C, 14, 14]
        masks = self.mask(features)  # logits [N, K, 28, 28]
        logits = of_class(masks, label)  # [N, 28, 28]
        if targets.labels.shape[1] == 0:  # not an instance in the whole batch
            coverage = torch.zeros_like(logits)
        else:
            coverage = sample_on_rois(targets.masks, batch, image, slot, roi, mask_head.MASK_SIZE)
        mask = mask_loss(logits, (coverage >= 0.5).float(), positive)

        config = self.config.maskiou
        matched = MatchedRoIs(roi, label, slot, image)
        target = maskiou_targets(config, masks, coverage, matched, batch, targets)
        # No stop-gradient: the loss reaches the features and the mask through the head's input (the paper, Fig. 3).
        predicted = self.maskiou(self.maskiou_features(pooler, features, image, roi), logits, masks)  # [N, K]
        maskiou = maskiou_loss(predicted, target.values, target.trained)
        return {"mask": mask, "maskiou": config.weight * maskiou}

    def maskiou_features(self, pooler: PyramidPooler, features: Tensor, image: Tensor, boxes: Tensor) -> Tensor:
        """The MaskIoU head's RoI features: the mask head's, or pooled again at a higher resolution (input (d))."""
        size = self.maskiou.size
        return features if size == mask_head.SIZE else pooler(image, boxes, size)  # [N, C, size, size]

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
        features = pooler(image, roi, mask_head.SIZE)
        all_masks = self.mask(features)  # logits [N, K, 28, 28]
        logits = of_class(all_masks, label)  # [N, 28, 28]
        iou = self.maskiou(self.maskiou_features(pooler, features, image, roi), logits, all_masks).float()  # [N, K]
        iou = iou.gather(1, (label - 1)[:, None]).squeeze(1)  # [N]
        probability = logits.float().sigmoid()  # [N, 28, 28]
        side = mask_head.MASK_SIZE
        masks = probability.new_zeros(images * slots, side, side).index_copy(0, where, probability)
        maskious = iou.new_zeros(images * slots).index_copy(0, where, iou)
        return Detections(
            selected.boxes,
            selected.labels,
            selected.scores,
            maskious.view(images, slots),  # [B * D] -> [B, D]
            masks.view(images, slots, side, side),  # [B * D, M, M] -> [B, D, M, M]
            selected.valid,
        )

    def select(self, pooler: PyramidPooler, proposals: Proposals, batch: Batch) -> Selected:
        """Class scores and refined boxes of every proposal, then SoftNMS to the top k."""
        images, count = proposals.valid.shape
        index = image_index(images, count, proposals.boxes.device)
        where = torch.arange(images * count, device=index.device)
        used, roi, image, where = compact(flat(proposals.valid), flat(proposals.boxes), index, where)
        logits, deltas = self.box(pooler(image, roi, box_head.SIZE))
        scores = class_scores(logits).masked_fill(~used[:, None], 0)  # [N, K]
        boxes = decode(deltas[:, 1:].float(), roi[:, None], box_head.WEIGHTS)  # [N, K, 4]
        classes = scores.shape[1]
        all_scores = scores.new_zeros(images * count, classes).index_copy(0, where, scores)
        all_boxes = boxes.new_zeros(images * count, classes, 4).index_copy(0, where, boxes)
        all_boxes = clip(all_boxes.view(images, count, classes, 4), batch.sizes)  # [B * R, K, 4] -> [B, R, K, 4]
        all_scores = all_scores.view(images, count, classes)  # [B * R, K] -> [B, R, K]
        side = all_boxes[..., 2:] - all_boxes[..., :2]
        all_scores = all_scores.masked_fill((side < 1e-2).any(-1), 0)
        return soft_nms(all_boxes.transpose(1, 2).contiguous(), all_scores.transpose(1, 2).contiguous(),
                        self.config.selection)  # fmt: skip
