"""Matching against torchvision's Matcher; random subsets by their counts, their independence and their frequencies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from msrcnn.boxes import pairwise_iou
from msrcnn.sampling import MATCH_BLOCK, Matches, match, noise, subsample, take


def random_boxes(count: int, generator: torch.Generator, whole: bool = False) -> Tensor:
    """Boxes [count, 4]; on whole pixels of a tiny image many IoUs are equal."""
    if whole:
        low = torch.randint(0, 6, (count, 2), generator=generator).float()
        return torch.cat([low, low + torch.randint(1, 4, (count, 2), generator=generator)], 1)
    low = torch.rand(count, 2, generator=generator) * 60
    return torch.cat([low, low + 10 + torch.rand(count, 2, generator=generator) * 40], 1)


def some_matches(positive: int, negative: int, unused: int, images: int = 1) -> Matches:
    kind = torch.tensor([1] * positive + [-1] * negative + [0] * unused)
    kind = kind[torch.randperm(len(kind), generator=torch.Generator().manual_seed(5))].expand(images, -1)
    return Matches(torch.zeros_like(kind), kind > 0, kind < 0)


def random_draws(count: int, seed: int) -> Tensor:
    return torch.randint(0, 2**62, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("positive", "negative", "low_quality"), [(0.7, 0.3, True), (0.5, 0.5, False)])
@pytest.mark.parametrize("whole", [False, True])
def test_match_equals_torchvision(positive: float, negative: float, low_quality: bool, whole: bool) -> None:
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        boxes = torch.stack([random_boxes(120, generator, whole) for _ in range(2)])
        instances = torch.stack([random_boxes(7, generator, whole) for _ in range(2)])
        instances[:, 5] = instances[:, 0]  # twins
        valid = torch.ones(2, 7, dtype=torch.bool)
        valid[1, torch.randperm(7, generator=generator)[:3]] = False
        got = match(boxes, instances, valid, positive, negative, low_quality)
        for b in range(2):
            slots = valid[b].nonzero().squeeze(1)
            iou = box_iou(instances[b, slots], boxes[b])
            assert (iou.amax(1) > 0).all()  # the one case in which they differ has its own test
            want = Matcher(positive, negative, low_quality)(iou)
            assert torch.equal(got.positive[b], want >= 0)
            assert torch.equal(got.negative[b], want == -1)
            at = (want >= 0).nonzero().squeeze(1)
            chosen = got.instance[b, at]
            assert valid[b, chosen].all()
            torch.testing.assert_close(box_iou(instances[b], boxes[b])[chosen, at], iou[want[at], at])


def test_an_instance_that_no_box_overlaps_makes_none_positive() -> None:
    """torchvision's Matcher makes every box with IoU 0 positive there, since 0 is that instance's highest IoU."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]]])
    instances = torch.tensor([[[0.0, 0, 10, 9], [50, 50, 60, 60]]])
    got = match(boxes, instances, torch.ones(1, 2, dtype=torch.bool), 0.7, 0.3, True)
    assert got.positive.tolist() == [[True, False]]
    assert got.negative.tolist() == [[False, True]]


def match_at_once(
    boxes: Tensor, instances: Tensor, valid: Tensor, positive_iou: float, negative_iou: float, low_quality: bool
) -> Matches:
    """The definition, with every IoU in memory."""
    iou = pairwise_iou(boxes, instances).masked_fill(~valid[:, None, :], -1.0)
    best, instance = iou.max(dim=2)
    positive = best >= positive_iou
    if low_quality:
        highest = iou.amax(dim=1, keepdim=True)
        positive = positive | ((iou == highest) & (highest > 0)).any(dim=2)
    return Matches(instance, positive, (best < negative_iou) & ~positive)


@pytest.mark.parametrize("slots", [1, MATCH_BLOCK, MATCH_BLOCK + 1, 3 * MATCH_BLOCK + 5])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_blocks_of_instances_change_nothing(slots: int, whole: bool, shared: bool) -> None:
    """Bit by bit, with ties within and between blocks, and blocks without an instance."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        boxes = torch.stack([random_boxes(200, generator, whole) for _ in range(1 if shared else 3)])
        instances = torch.stack([random_boxes(slots, generator, whole) for _ in range(3)])
        instances[0, slots // 2 :] = instances[0, : slots - slots // 2].clone()  # twins far from each other
        valid = torch.rand(3, slots, generator=generator) < 0.8
        valid[1, 2:] = False
        for thresholds in ((0.7, 0.3, True), (0.5, 0.5, False)):
            got, want = (f(boxes, instances, valid, *thresholds) for f in (match, match_at_once))
            for name in ("instance", "positive", "negative"):
                assert torch.equal(getattr(got, name), getattr(want, name)), (name, thresholds)


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_a_crowded_image_needs_no_more_memory_than_a_block() -> None:
    """On the worst batch of COCO, 384 slots for 268,569 anchors, every IoU at once is 6.6 GB for 16 images."""
    generator = torch.Generator().manual_seed(0)
    boxes, instances = random_boxes(2000, generator)[None], random_boxes(2 * 384, generator).view(2, 384, 4)
    with Largest() as largest:
        match(boxes, instances, torch.ones(2, 384, dtype=torch.bool), 0.7, 0.3, True)
    assert largest.numbers == 2 * 2000 * MATCH_BLOCK


@pytest.mark.parametrize("slots", [0, 3])
def test_without_instances_all_boxes_are_negative(slots: int) -> None:
    boxes = random_boxes(9, torch.Generator().manual_seed(0))[None]  # shared by both images
    valid = torch.zeros(2, slots, dtype=torch.bool)
    got = match(boxes, torch.zeros(2, slots, 4), valid, 0.7, 0.3, True)
    assert got.instance.shape == (2, 9)
    assert not got.positive.any()
    assert got.negative.all()


@pytest.mark.parametrize(
    ("positive", "negative", "unused"),
    [(200, 800, 50), (3, 800, 0), (0, 900, 7), (50, 10, 5), (1, 70, 0), (0, 20, 30), (30, 0, 0), (0, 0, 9)],
)
def test_subsample_counts(positive: int, negative: int, unused: int) -> None:
    samples, most = 64, 16
    matches = some_matches(positive, negative, unused, images=3)
    got = subsample(matches, random_draws(3, 1), samples, most, salt=1)
    boxes = positive + negative + unused
    assert got.index.shape == (3, min(samples, boxes))
    want_positive = min(positive, most)
    want_negative = min(negative, samples - want_positive)
    for b in range(3):
        assert int(got.positive[b].sum()) == want_positive
        assert int(got.valid[b].sum()) == want_positive + want_negative
        assert got.positive[b, :want_positive].all()  # they come first
        used = got.index[b, got.valid[b]]
        assert len(set(used.tolist())) == len(used)
        assert torch.equal(matches.positive[b, used], got.positive[b, got.valid[b]])
        assert torch.equal(matches.negative[b, used], ~got.positive[b, got.valid[b]])


def test_subsample_depends_on_the_image_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    kind = torch.randint(-1, 2, (6, 300), generator=generator)
    matches, draws = Matches(torch.zeros_like(kind), kind > 0, kind < 0), random_draws(6, 2)
    whole = subsample(matches, draws, 32, 8, salt=1)
    order = torch.tensor([4, 1, 5])
    part = subsample(
        Matches(matches.instance[order], matches.positive[order], matches.negative[order]), draws[order], 32, 8, 1
    )
    assert torch.equal(part.index, whole.index[order])
    assert torch.equal(part.valid, whole.valid[order])


def test_other_draw_or_salt_other_samples() -> None:
    matches = some_matches(30, 200, 0)
    one = subsample(matches, torch.tensor([7]), 32, 8, salt=1).index
    assert torch.equal(one, subsample(matches, torch.tensor([7]), 32, 8, salt=1).index)
    for draw, salt in ((8, 1), (7 + 2**40, 1), (7, 2)):
        assert set(one[0].tolist()) != set(subsample(matches, torch.tensor([draw]), 32, 8, salt).index[0].tolist())


@pytest.mark.parametrize("consecutive", [False, True])
def test_subsample_is_uniform(consecutive: bool) -> None:
    """Each box, and each pair of positive boxes, is drawn as often as it should be, to 5.5 standard deviations."""
    trials = 4000
    matches = some_matches(10, 25, 5, images=trials)
    draws = torch.arange(trials) if consecutive else random_draws(trials, 4)
    got = subsample(matches, draws, 12, 4, salt=1)
    drawn = torch.zeros(trials, 40).scatter(1, got.index, got.valid.float())  # [trials, 40]

    def close(share: Tensor, expected: float) -> bool:
        return bool(((share - expected).abs() < 5.5 * math.sqrt(expected * (1 - expected) / trials)).all())

    assert close(drawn[:, matches.positive[0]].mean(0), 4 / 10)
    assert close(drawn[:, matches.negative[0]].mean(0), 8 / 25)
    assert not drawn[:, ~(matches.positive | matches.negative)[0]].any()
    chosen = drawn[:, matches.positive[0]]  # [trials, 10]
    together = (chosen.T @ chosen / trials)[~torch.eye(10, dtype=torch.bool)]
    assert close(together, 4 / 10 * 3 / 9)


def test_few_positives_leave_every_negative_its_chance() -> None:
    """Slots for positives that stay empty must take no negative out of the draw."""
    matches = some_matches(1, 60, 0, images=2000)
    got = subsample(matches, random_draws(2000, 6), 30, 25, salt=1)
    drawn = torch.zeros(2000, 61).scatter(1, got.index, got.valid.float())
    share = drawn[:, matches.negative[0]].mean(0)
    expected = 29 / 60
    assert ((share - expected).abs() < 5.5 * math.sqrt(expected * (1 - expected) / 2000)).all()


def test_noise_is_uniform() -> None:
    values = noise(torch.arange(64), 1000, salt=3)
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values, bins=20, min=0, max=1)
    expected = values.numel() / 20
    assert ((counts - expected).square() / expected).sum() < 43.8  # chi square, 19 degrees of freedom, p = 0.001


def test_take_reads_rows() -> None:
    index = torch.tensor([[2, 0], [1, 1]])
    values = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(take(values, index), torch.stack([values[0, [2, 0]], values[1, [1, 1]]]))
    assert torch.equal(take(values[:1], index), torch.stack([values[0, [2, 0]], values[0, [1, 1]]]))
    assert torch.equal(take(values[..., 0], index), torch.tensor([[4.0, 0], [8, 8]]))
