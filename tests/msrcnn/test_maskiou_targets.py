"""The training targets of Table 5 against full-resolution masks, RoI by RoI and class by class."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from msrcnn import maskiou_targets as module
from msrcnn.config import MaskIoUConfig, MaskIoUTarget
from msrcnn.maskiou_head import maskiou_loss
from msrcnn.masks import pack_crops
from msrcnn.structures import Targets
from tests.roi_scene import BINS, CLASSES, SIDE, Scene, logits_of, maskiou_targets, random_scene


@pytest.mark.parametrize(("target", "seed"), [*itertools.product([1, 2, 3], range(3))])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_equals_full_resolution(
    target: MaskIoUTarget, seed: int, fixed_shapes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the fixed shapes of a GPU, where `compact` drops nothing."""
    if fixed_shapes:
        monkeypatch.setattr(module, "compact", lambda valid, *tensors: (valid, *tensors))
    scene = random_scene(seed)
    logits = logits_of(scene)
    got = scene.targets(MaskIoUConfig(target=target), logits)
    values, present = scene.slow(logits)
    own = np.arange(1, CLASSES + 1) == scene.rois.labels[:, None].numpy()
    learnt = {1: own, 2: np.ones_like(own), 3: present}[target]
    want = np.where(own | (target != 1), values, 0)
    np.testing.assert_allclose(got.values.numpy(), want, atol=1e-6)
    retained = values[own] > 0
    assert np.array_equal(got.trained.numpy(), learnt & retained[:, None])
    others = present & ~own
    assert others.any(1).sum() > 5  # the scene does show several classes in a RoI, at most
    assert others.sum(1).max() > 1  # some even three,
    assert (values[others] > 0.1).any()  # and masks that are right in part


def square(x: int, y: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y:bottom, x:right] = True
    return mask


def side_by_side(*more: tuple[np.ndarray, int]) -> Scene:
    """A RoI at 30, 30 with class 1 in its left half and class 2 in its right half, half of which is outside."""
    found = [(square(30, 30, 44, 58), 1), (square(44, 30, 72, 58), 2), *more]
    return Scene([np.stack([m for m, _ in found])], [[label for _, label in found]], [[(30, 30)]])


def test_by_hand() -> None:
    scene = side_by_side()
    logits = torch.full((1, CLASSES, BINS, BINS), 5.0)  # each class's mask fills the RoI
    logits[:, 2:] = -5.0
    everything = scene.targets(MaskIoUConfig(target=2), logits)
    # class 1: 14 of 28 columns; class 2: 14 columns right, of 14 wrong and 14 missed
    torch.testing.assert_close(everything.values, torch.tensor([[1 / 2, 1 / 3, 0, 0, 0, 0]]))
    assert everything.trained.all()
    only = scene.targets(MaskIoUConfig(target=1), logits)
    torch.testing.assert_close(only.values, torch.tensor([[1 / 2, 0, 0, 0, 0, 0]]))
    assert only.trained.tolist() == [[True] + [False] * 5]
    assert scene.targets(MaskIoUConfig(target=3), logits).trained.tolist() == [[True, True] + [False] * 4]
    # Every class there is lies in the RoI: none is left out.
    got = scene.targets(MaskIoUConfig(target=3), logits[:, :2])
    assert got.trained.all()
    torch.testing.assert_close(got.values, torch.tensor([[1 / 2, 1 / 3]]))


def test_of_several_instances_the_nearest_box_counts() -> None:
    """A second object of class 2 that lies in the RoI as a sliver does not change class 2's target."""
    logits = torch.full((1, CLASSES, BINS, BINS), 5.0)
    config = MaskIoUConfig(target=3)
    sliver = side_by_side((square(30, 57, 36, 90), 2)).targets(config, logits)
    torch.testing.assert_close(sliver.values, side_by_side().targets(config, logits).values)


def test_an_object_whose_box_alone_reaches_into_the_roi_is_absent() -> None:
    """An L around the RoI: its box overlaps most of the RoI, none of its pixels does."""
    around = square(10, 10, 70, 29) | square(10, 10, 29, 70)
    scene = side_by_side((around, 3))
    logits = torch.full((1, CLASSES, BINS, BINS), 5.0)
    got = scene.targets(MaskIoUConfig(target=3), logits)
    assert got.trained.tolist() == [[True, True] + [False] * 4]
    assert got.values[0, 2] == 0


def gradient(scene: Scene, config: MaskIoUConfig, logits: Tensor) -> Tensor:
    """Which outputs of the head get one, bool [N, K]."""
    targets = scene.targets(config, logits)
    predicted = torch.full(logits.shape[:2], 3.0, requires_grad=True)
    maskiou_loss(predicted, targets.values, targets.trained).backward()
    assert predicted.grad is not None
    return predicted.grad != 0


def test_an_absent_class_gets_a_gradient_in_2_only() -> None:
    scene = side_by_side()
    logits = torch.full((1, CLASSES, BINS, BINS), 5.0)
    reached = {t: gradient(scene, MaskIoUConfig(target=t), logits)[0].tolist() for t in (1, 2, 3)}
    assert reached == {1: [True] + [False] * 5, 2: [True] * 6, 3: [True, True] + [False] * 4}


@pytest.mark.parametrize("target", [1, 2, 3])
def test_rois_at_or_below_tau_get_none(target: MaskIoUTarget) -> None:
    """Tau asks for the MaskIoU of the ground-truth class, whatever classes the RoI trains."""
    scene = random_scene(0)
    logits = logits_of(scene)
    own = scene.targets(MaskIoUConfig(), logits).values.amax(1)  # [N]
    tau = own.sort().values[len(own) // 2].item()  # one RoI lies on it
    reached = gradient(scene, MaskIoUConfig(target=target, tau=tau), logits).any(1)
    assert torch.equal(reached, own > tau)
    assert 5 < int(reached.sum()) < len(own) - 5
    logits[0] = -5.0  # no mask at all: MaskIoU 0, not above tau = 0
    assert not gradient(scene, MaskIoUConfig(target=target), logits)[0].any()


@pytest.mark.parametrize("target", [1, 2, 3])
def test_unused_slots_and_images_without_instances_train_nothing(target: MaskIoUTarget) -> None:
    scene = random_scene(1)
    logits, config = logits_of(scene), MaskIoUConfig(target=target)
    scene.rois.labels[3] = 0
    got = scene.targets(config, logits)
    assert not got.trained[3].any()
    assert got.trained.any(1).sum() > 10
    empty = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0), pack_crops([], 0))
    got = maskiou_targets(config, logits, scene.coverage() * 0, scene.rois, scene.batch, empty)
    assert not got.trained.any()
    assert got.values.shape == (len(logits), CLASSES)


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_iter(output) if isinstance(x, Tensor))])
        return output


def test_no_grid_of_all_rois_and_classes_at_once() -> None:
    """Sample points of one class of each RoI, 84 x 84, are the most there is."""
    scene = random_scene(0)
    logits = logits_of(scene).repeat(1, 20, 1, 1)  # 120 classes
    with Largest() as seen:
        scene.targets(MaskIoUConfig(target=2), logits)
    assert seen.elements <= len(scene.where) * (3 * BINS) ** 2 < logits.numel()
