"""The region proposal network against torchvision's, given the same weights, logits and sampled anchors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.models.detection.rpn import RPNHead as TorchvisionHead

from msrcnn.config import ModelConfig, RPNConfig
from msrcnn.masks import pack_crops
from msrcnn.proposals import SALT, RegionProposals
from msrcnn.sampling import match, subsample
from msrcnn.structures import Batch, Targets

HEIGHT, WIDTH, CHANNELS = 128, 160, 8
SIZES = [(128, 160), (100, 131), (77, 160)]
FULL = torch.tensor([[128.0, 160]] * 3)
"""Sizes of images that fill the batch."""
STRIDES = [8, 16, 32]
ANCHOR_SIZES = ((16, 24), (32, 48), (64, 96))


def make_rpn(**options: float) -> RegionProposals:
    config = ModelConfig(
        levels=(3, 4, 5),
        anchor_sizes=ANCHOR_SIZES,
        channels=CHANNELS,
        rpn=RPNConfig(**options),  # type: ignore[arg-type]
    )
    return RegionProposals(config, config.channels, STRIDES)


def torchvision_rpn(ours: RegionProposals) -> RegionProposalNetwork:
    """torchvision's RPN with the same settings and the weights of `ours`."""
    c = ours.config
    head = TorchvisionHead(CHANNELS, 6)
    for name, layer in (("conv.0.0", ours.head.conv), ("cls_logits", ours.head.objectness),
                        ("bbox_pred", ours.head.deltas)):  # fmt: skip
        head.get_submodule(name).load_state_dict(layer.state_dict())
    counts = {"training": c.train_proposals, "testing": c.test_proposals}
    anchors = AnchorGenerator(ANCHOR_SIZES, ((0.5, 1.0, 2.0),) * 3)
    return RegionProposalNetwork(
        anchors, head, c.positive_iou, c.negative_iou, c.samples, 0.5, counts, counts, c.nms_iou
    )


def features(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, CHANNELS, HEIGHT // s, WIDTH // s, generator=generator) for s in STRIDES]


def spread(rpn: RegionProposals, seed: int) -> None:
    """Weights at which logits and deltas vary as in a trained network."""
    generator = torch.Generator().manual_seed(seed)
    for layer, std in ((rpn.head.conv, 0.2), (rpn.head.objectness, 0.6), (rpn.head.deltas, 0.15)):
        layer.weight.data.normal_(0, std, generator=generator)
        layer.get_parameter("bias").data.normal_(0, 0.1, generator=generator)


def some_targets(seed: int, slots: int = 5) -> Targets:
    """0, 2 and 5 instances; padded slots hold boxes that must not count."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(3, slots, 2, generator=generator) * torch.tensor([100.0, 70])
    boxes = torch.cat([low, low + 15 + 40 * torch.rand(3, slots, 2, generator=generator)], -1)
    labels = (torch.arange(slots) < torch.tensor([0, 2, 5])[:, None]).long()
    return Targets(boxes, labels, torch.ones(3, slots), pack_crops([[]] * 3, slots))


def some_batch() -> Batch:
    sizes = torch.tensor(SIZES, dtype=torch.float32)
    return Batch(
        torch.zeros(3, 3, HEIGHT, WIDTH, dtype=torch.uint8), sizes, sizes, torch.zeros(3, dtype=torch.bool),
        torch.arange(3), torch.tensor([11, 12, 13])
    )  # fmt: skip


def reference_anchors(rpn: RegionProposalNetwork, maps: list[Tensor]) -> list[Tensor]:
    return rpn.anchor_generator(ImageList(torch.zeros(3, 3, HEIGHT, WIDTH), SIZES), maps)


def test_anchors_equal_torchvision() -> None:
    ours, maps = make_rpn(), features(0)
    want = reference_anchors(torchvision_rpn(ours), maps)
    assert torch.equal(torch.cat(ours.anchors(maps)), want[0])


def test_head_equals_torchvision() -> None:
    """The order of logits and deltas is that of the anchors: rows, columns, ratios, sizes."""
    ours, maps = make_rpn(), features(1)
    spread(ours, 1)
    logits, deltas = ours.head(maps)
    want_logits, want_deltas = concat_box_prediction_layers(*torchvision_rpn(ours).head(maps))
    torch.testing.assert_close(torch.cat(logits, 1).flatten(), want_logits.flatten())
    torch.testing.assert_close(torch.cat(deltas, 1).flatten(0, 1), want_deltas)


@pytest.mark.parametrize("limit", [300, 120])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_proposals_equal_torchvision(seed: int, limit: int) -> None:
    """Three images of other sizes on one padded shape; fewer proposals kept than there are."""
    ours, maps, batch = make_rpn(test_proposals=limit), features(seed), some_batch()
    spread(ours, seed)
    theirs = torchvision_rpn(ours).eval()
    logits, deltas = ours.head(maps)
    got = ours.propose(logits, deltas, ours.anchors(maps), batch, limit)

    anchors = reference_anchors(theirs, maps)
    decoded = theirs.box_coder.decode(torch.cat(deltas, 1).flatten(0, 1).detach(), anchors).view(3, -1, 4)
    counts = [logit.shape[1] for logit in logits]
    want, _ = theirs.filter_proposals(decoded, torch.cat(logits, 1), SIZES, counts)
    for b in range(3):
        count = int(got.valid[b].sum())
        assert got.valid[b, :count].all()
        assert count == len(want[b])
        torch.testing.assert_close(got.boxes[b, :count], want[b], rtol=1e-5, atol=1e-3)
    assert not got.boxes.requires_grad


def test_boxes_without_area_are_no_proposals() -> None:
    ours, maps = make_rpn(), features(0)
    logits, deltas = ours.head(maps)
    deltas = [d.detach().clone() for d in deltas]
    for d in deltas:
        d[..., 0] = -1000.0  # far left of the image, so that clipping leaves nothing
    assert not ours.propose(logits, deltas, ours.anchors(maps), some_batch(), 300).valid.any()


@pytest.mark.parametrize("samples", [256, 40])
def test_losses_equal_torchvision(samples: int) -> None:
    """On images that fill the batch: torchvision takes negatives from the padding too."""
    ours, maps, targets, batch = make_rpn(samples=samples, positive_iou=0.5), features(3), some_targets(4), some_batch()
    spread(ours, 3)
    theirs = torchvision_rpn(ours)
    logits, deltas = ours.head(maps)
    anchors = ours.anchors(maps)
    got = ours.losses(logits, deltas, anchors, targets, FULL, batch.draws)

    truth = [{"boxes": b[v]} for b, v in zip(targets.boxes, targets.valid, strict=True)]
    labels, matched = theirs.assign_targets_to_anchors([torch.cat(anchors)] * 3, truth)
    assert sum(int((label == 1).sum()) for label in labels) > 20
    drawn = subsample(
        match(torch.cat(anchors)[None], targets.boxes, targets.valid, 0.5, 0.3, True), batch.draws, samples,
        samples // 2, SALT
    )  # fmt: skip
    chosen = torch.zeros(3, len(labels[0]), dtype=torch.bool).scatter(1, drawn.index, drawn.valid)

    def same_sample(of: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = list(zip(of, chosen, strict=True))
        return [(label == 1) & c for label, c in pairs], [(label == 0) & c for label, c in pairs]

    theirs.fg_bg_sampler = same_sample
    assert all(int(p.sum() + n.sum()) == samples for p, n in zip(*same_sample(labels), strict=True))
    regression = theirs.box_coder.encode(matched, [torch.cat(anchors)] * 3)
    flat_logits, flat_deltas = torch.cat(logits, 1).reshape(-1, 1), torch.cat(deltas, 1).flatten(0, 1)
    objectness, box = theirs.compute_loss(flat_logits, flat_deltas, labels, regression)
    torch.testing.assert_close(got["rpn_objectness"], objectness)
    torch.testing.assert_close(got["rpn_box"], box)
    assert box > 0


def test_no_negative_is_drawn_from_the_padding() -> None:
    """The gradient of the objectness shows which anchors were drawn, its sign what they were drawn as."""
    ours, maps, targets, batch = make_rpn(samples=64), features(6), some_targets(7), some_batch()
    anchors = ours.anchors(maps)

    def drawn(sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Which anchors were drawn as positive and as negative, bool [3, A]."""
        logits, deltas = ours.head(maps)
        loss = ours.losses(logits, deltas, anchors, targets, sizes, batch.draws)["rpn_objectness"]
        gradient = torch.cat(torch.autograd.grad(loss, logits), 1)
        return gradient < 0, gradient > 0

    sizes = torch.tensor([[128.0, 160], [64, 160], [100, 70]])
    x0, y0, x1, y1 = torch.cat(anchors).T[:, None]  # [1, A] each
    height, width = sizes[:, :1], sizes[:, 1:]  # [3, 1] each
    outside = (x0 >= width) | (y0 >= height)
    positive, negative = drawn(sizes)
    before = drawn(FULL)
    assert not outside[0].any()
    assert (before[1] & outside)[1:].sum(1).min() > 5
    assert not (negative & outside).any()
    assert (negative & ~outside & ((x1 > width) | (y1 > height))).sum(1).min() > 0  # across the border
    assert (positive | negative).sum(1).tolist() == [64] * 3
    assert torch.equal(positive, before[0])
    assert torch.equal(negative[0], before[1][0])


@pytest.mark.parametrize("slots", [0, 4])
def test_losses_without_any_instance(slots: int) -> None:
    ours, maps, batch = make_rpn(), features(5), some_batch()
    empty = Targets(
        torch.zeros(3, slots, 4), torch.zeros(3, slots, dtype=torch.int64), torch.zeros(3, slots),
        pack_crops([[]] * 3, slots)
    )  # fmt: skip
    logits, deltas = ours.head(maps)
    losses = ours.losses(logits, deltas, ours.anchors(maps), empty, batch.sizes, batch.draws)
    assert losses["rpn_box"] == 0
    assert 0 < losses["rpn_objectness"].item() < 2
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for name, p in ours.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
