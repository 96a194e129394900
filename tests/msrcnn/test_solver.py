"""The learning rate at every step of the paper's schedule, parameter groups, and steps that must not happen."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from msrcnn.config import ModelConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.solver import guarded_step, learning_rate, make_optimizer, set_learning_rate

STEPS = 1000  # an epoch

COCO_STEPS = 7329
"""Steps of 16 images in 117,266, COCO train2017's images with an instance."""
PAPERS_SCHEDULE = [
    (0, 499, 0.0066666666666667, 0.0199733333333333),  # the warm-up: from a third of 0.02 to a 500th of the way short
    (500, 102_605, 0.02, 0.02),
    (102_606, 124_592, 0.002, 0.002),  # after 14 epochs
    (124_593, 131_921, 0.0002, 0.0002),  # after 17, to the end of the 18th
]
"""First and last step of a stretch (steps from 0), learning rate at the one and at the other; a line between them."""


@pytest.mark.parametrize("batch", [16, 8])
def test_every_step_of_the_papers_schedule(batch: int) -> None:
    """Scaled linearly for other batches: from 0.02 to 0.01 for 8 images a step. Biases learn twice as fast."""
    config = SolverConfig(batch=batch)
    optimizer = make_optimizer(nn.Linear(1, 1), config)
    weights, biases = optimizer.param_groups
    want = np.concatenate([np.linspace(low, high, last - first + 1) for first, last, low, high in PAPERS_SCHEDULE])
    assert len(want) == config.epochs * COCO_STEPS == 131_922
    want = want if batch == 16 else want / 2
    found = np.zeros((len(want), 2))
    for step in range(len(want)):
        set_learning_rate(optimizer, learning_rate(config, step, COCO_STEPS))
        found[step] = weights["lr"], biases["lr"]
    np.testing.assert_allclose(found[:, 0], want, rtol=1e-12)
    np.testing.assert_allclose(found[:, 1], 2 * want, rtol=1e-12)


@pytest.mark.parametrize(
    ("step", "want"),
    [
        (0, 0.02 / 3),
        (250, 0.02 * 2 / 3),
        (499, 0.02 * (1 - 2 / 3 / 500)),
        (500, 0.02),
        (14 * STEPS - 1, 0.02),
        (14 * STEPS, 0.002),
        (17 * STEPS - 1, 0.002),
        (17 * STEPS, 0.0002),
        (18 * STEPS - 1, 0.0002),
    ],
)
def test_the_papers_schedule(step: int, want: float) -> None:
    assert learning_rate(SolverConfig(), step, STEPS) == pytest.approx(want, rel=1e-9)
    assert learning_rate(SolverConfig(batch=8), step, STEPS) == pytest.approx(want / 2, rel=1e-9)


def test_warmup_goes_on_through_a_decay_and_can_be_left_out() -> None:
    short = SolverConfig(decay_epochs=(1,))
    assert learning_rate(short, 250, 100) == pytest.approx(0.002 * 2 / 3)
    assert learning_rate(SolverConfig(warmup_steps=0), 0, STEPS) == pytest.approx(0.02)
    assert learning_rate(SolverConfig(decay_epochs=()), 18 * STEPS, STEPS) == pytest.approx(0.02)


@pytest.mark.parametrize(("norm", "frozen"), [("frozen_bn", 2), ("group_norm", 0)])
def test_parameter_groups(norm: str, frozen: int) -> None:
    config = ModelConfig(norm=norm, frozen_stages=frozen, channels=32, hidden=16, num_classes=2)  # type: ignore[arg-type]
    model = MaskScoringRCNN(config)
    optimizer = make_optimizer(model, SolverConfig())
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(group_of)  # none twice
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trained.values()} == set(group_of)
    set_learning_rate(optimizer, 0.005)
    for name, p in trained.items():
        group = group_of[id(p)]
        bias = name.endswith(".bias")
        assert group["lr"] == pytest.approx(0.01 if bias else 0.005), name
        assert group["weight_decay"] == (0.0 if bias else 1e-4), name
        assert group["momentum"] == 0.9


def test_two_steps_by_hand() -> None:
    """v = 0.9 v + g (+ 1e-4 w for weights); w -= lr v, the bias at twice the rate."""
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 3.0)
    optimizer = make_optimizer(model, SolverConfig())
    set_learning_rate(optimizer, 0.1)
    weight, bias, speed, bias_speed = 2.0, 3.0, 0.0, 0.0
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([[5.0]])).sum().backward()  # gradients 5 and 1
        optimizer.step()
        speed = 0.9 * speed + 5 + 1e-4 * weight
        bias_speed = 0.9 * bias_speed + 1
        weight, bias = weight - 0.1 * speed, bias - 0.2 * bias_speed
    assert model.weight.item() == pytest.approx(weight, rel=1e-6)
    assert model.bias.item() == pytest.approx(bias, rel=1e-6)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 6 * 6, 4))


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of weights and momentum."""
    parameters = list(model.parameters())
    momentum = [optimizer.state[p]["momentum_buffer"] for p in parameters if optimizer.state[p]]
    return [t.detach().clone() for t in (*parameters, *momentum)]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_guarded_steps_are_those_of_plain_sgd(momentum: float) -> None:
    """Against torch's unfused SGD, which has no momentum before its first step."""
    config = SolverConfig(momentum=momentum, weight_decay=0.01)
    model, reference = network(), network()
    optimizer = make_optimizer(model, config)
    theirs = torch.optim.SGD(
        [{"params": [p for n, p in reference.named_parameters() if n.endswith("bias") == bias], "lr": lr,
          "weight_decay": decay} for bias, lr, decay in ((False, 0.1, 0.01), (True, 0.2, 0.0))],
        momentum=momentum, fused=False, foreach=False,
    )  # fmt: skip
    set_learning_rate(optimizer, 0.1)
    for step in range(5):
        for part in (model, reference):
            set_gradients(part, step)
        guarded_step(optimizer, torch.tensor(True))
        theirs.step()
        for got, want in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)
    assert not torch.equal(next(model.parameters()), next(network().parameters()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("earlier", [0, 1, 3])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_step_that_is_not_ok_changes_nothing(momentum: float, earlier: int, bad: float) -> None:
    """Not a bit of weights and momentum, in the very first step too; and the next one goes on as if it had not been."""
    model, reference = network(), network()
    optimizer, theirs = (make_optimizer(part, SolverConfig(momentum=momentum)) for part in (model, reference))
    for step in range(earlier):
        for part, sgd in ((model, optimizer), (reference, theirs)):
            set_gradients(part, step)
            guarded_step(sgd, torch.tensor(True))
    before = everything(model, optimizer)
    assert len(before) == 4 * (2 if momentum else 1)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.full_like(p, bad)
        guarded_step(optimizer, torch.tensor(False))
        assert same_bits(everything(model, optimizer), before)
    for part, sgd in ((model, optimizer), (reference, theirs)):
        set_gradients(part, 9)
        guarded_step(sgd, torch.tensor(True))
    after = everything(model, optimizer)
    assert same_bits(after, everything(reference, theirs))
    assert not any(torch.equal(x, y) for x, y in zip(after, before, strict=True))


def test_what_is_guarded_once_is_not_guarded_for_ever() -> None:
    model = network()
    optimizer, before = make_optimizer(model, SolverConfig()), network()
    set_gradients(model, 0)
    guarded_step(optimizer, torch.tensor(False))
    optimizer.step()
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    assert not any(torch.equal(x, y) for x, y in pairs)


def test_momentum_is_restored_with_the_optimizer() -> None:
    model, other = network(), network()
    optimizer, restored = make_optimizer(model, SolverConfig()), make_optimizer(other, SolverConfig())
    for step in range(3):
        set_gradients(model, step)
        guarded_step(optimizer, torch.tensor(True))
    other.load_state_dict(model.state_dict())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # else they would share their momentum
    for part, sgd in ((model, optimizer), (other, restored)):
        set_gradients(part, 3)
        guarded_step(sgd, torch.tensor(True))
    assert same_bits(everything(model, optimizer), everything(other, restored))


class FusedKernel(TorchDispatchMode):
    """Stands in for the fused kernel, which has no fake of its own, and notes what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.found_inf: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._fused_sgd_.default:
            self.found_inf.append(kwargs["found_inf"])
            return None
        return func(*args, **(kwargs or {}))


def test_a_gpu_is_not_asked_whether_the_step_is_ok() -> None:
    """Whatever asks a tensor without content for a value raises; the fused kernel is handed it on the device."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = network()
        optimizer = make_optimizer(model, SolverConfig())
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with FusedKernel() as kernel:
            guarded_step(optimizer, norm.isfinite())
            with pytest.raises(DataDependentOutputException):
                bool(norm.isfinite())
    assert len(kernel.found_inf) == 2  # weights and biases
    assert {(f.device.type, f.shape, f.dtype) for f in kernel.found_inf} == {("cuda", (), torch.float32)}
