"""The box and mask heads and their losses against torchvision and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss, project_masks_on_boxes

from msrcnn.box_head import BoxHead, box_losses, class_scores
from msrcnn.mask_head import MaskHead, mask_loss, of_class
from tests.tiny import noise

CLASSES, CHANNELS = 4, 8


def rois_and_boxes(count: int) -> tuple[Tensor, Tensor]:
    low = noise(count, 2).abs() * 40
    rois = torch.cat([low, low + 10 + noise(count, 2, seed=1).abs() * 40], 1)
    return rois, rois + noise(count, 4, seed=2)


def test_box_head_equals_torchvision() -> None:
    head = BoxHead(CHANNELS, 16, CLASSES)
    body, predictor = TwoMLPHead(CHANNELS * 49, 16), FastRCNNPredictor(16, CLASSES + 1)
    for ours, theirs in ((head.fc1, body.fc6), (head.fc2, body.fc7), (head.score, predictor.cls_score),
                         (head.deltas, predictor.bbox_pred)):  # fmt: skip
        torch.nn.init.normal_(ours.weight, std=0.2)
        theirs.load_state_dict(ours.state_dict())
    features = noise(5, CHANNELS, 7, 7)
    logits, deltas = head(features)
    want_logits, want_deltas = predictor(body(features))
    torch.testing.assert_close(logits, want_logits)
    torch.testing.assert_close(deltas.flatten(1), want_deltas)
    assert deltas.shape == (5, CLASSES + 1, 4)


def test_box_losses_equal_torchvision() -> None:
    rois, boxes = rois_and_boxes(30)
    labels = torch.randint(0, CLASSES + 1, (30,), generator=torch.Generator().manual_seed(3))
    logits, deltas = noise(30, CLASSES + 1, seed=4), noise(30, CLASSES + 1, 4, seed=5)
    got = box_losses(logits, deltas, rois, labels, boxes, torch.ones(30, dtype=torch.bool))
    targets = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(boxes, rois)
    want = fastrcnn_loss(logits, deltas.flatten(1), [labels], [targets])
    torch.testing.assert_close(got["class"], want[0])
    torch.testing.assert_close(got["box"], want[1])


@pytest.mark.parametrize("content", [1e9, float("nan")])
def test_invalid_slots_never_contribute_to_the_box_losses(content: float) -> None:
    rois, boxes = rois_and_boxes(6)
    labels = torch.tensor([1, 0, 2, 0, 4, 3])
    valid = torch.tensor([True, True, True, False, False, True])
    logits, deltas = noise(6, CLASSES + 1, seed=4), noise(6, CLASSES + 1, 4, seed=5).requires_grad_()
    want = box_losses(logits[valid], deltas[valid], rois[valid], labels[valid], boxes[valid], valid[valid])
    spoiled_rois, spoiled_boxes = rois.clone(), boxes.clone()
    spoiled_rois[~valid] = spoiled_boxes[~valid] = content
    got = box_losses(logits, deltas, spoiled_rois, labels, spoiled_boxes, valid)
    assert got.keys() == want.keys() == {"class", "box"}
    for name in want:
        torch.testing.assert_close(got[name], want[name])
    got["box"].backward()
    assert deltas.grad is not None
    assert deltas.grad.isfinite().all()
    assert not deltas.grad[~valid].any()


def test_losses_of_no_roi_at_all_are_zero() -> None:
    none = torch.zeros(2, dtype=torch.bool)
    rois, boxes = rois_and_boxes(2)
    losses = box_losses(noise(2, 5), noise(2, 5, 4), rois, none.long(), boxes, none)
    assert losses["class"] == losses["box"] == 0
    assert mask_loss(noise(2, 28, 28), torch.ones(2, 28, 28), none) == 0


def test_class_scores_leave_the_background_out() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    assert torch.allclose(class_scores(logits), torch.softmax(logits, 1)[:, 1:])


def test_mask_head_equals_torchvision() -> None:
    head = MaskHead(CHANNELS, CLASSES)
    body = MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1)
    predictor = MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES)
    for i, conv in enumerate(head.convs):
        body[i][0].load_state_dict(conv.state_dict())
    predictor.conv5_mask.load_state_dict(head.deconv.state_dict())
    predictor.mask_fcn_logits.load_state_dict(head.logits.state_dict())
    features = noise(3, CHANNELS, 14, 14)
    got = head(features)
    assert got.shape == (3, CLASSES, 28, 28)
    torch.testing.assert_close(got, predictor(body(features)))


def test_mask_loss_equals_torchvision() -> None:
    """Given the targets that torchvision makes."""
    count = 6
    instances = (noise(count, 64, 64, seed=1) > 0).to(torch.uint8)
    rois, labels = rois_and_boxes(count)[0], torch.tensor([1, 2, 3, 4, 2, 1])
    matched = torch.tensor([0, 5, 2, 2, 1, 3])
    logits = noise(count, CLASSES, 28, 28, seed=3)
    with_background = torch.cat([noise(count, 1, 28, 28), logits], 1)  # torchvision's channel 0 is the background
    want = maskrcnn_loss(with_background, [rois], [instances], [labels], [matched])
    target = project_masks_on_boxes(instances, rois, matched, 28)
    chosen = labels[matched]
    got = mask_loss(of_class(logits, chosen), target, torch.ones(count, dtype=torch.bool))
    torch.testing.assert_close(got, want)


def test_mask_loss_counts_valid_slots_alone() -> None:
    logits, target = noise(4, 28, 28), (noise(4, 28, 28, seed=1) > 0).float()
    valid = torch.tensor([True, False, True, False])
    want = mask_loss(logits[valid], target[valid], valid[valid])
    spoiled = logits.clone()
    spoiled[~valid] = 1e6
    torch.testing.assert_close(mask_loss(spoiled, target, valid), want)


def test_of_class_reads_the_channel_before_the_label() -> None:
    masks = torch.arange(3.0).view(1, 3, 1, 1).expand(4, 3, 28, 28)
    assert of_class(masks, torch.tensor([1, 2, 3, 0]))[:, 0, 0].tolist() == [0, 1, 2, 0]
