"""The learning rate at steps worked out by hand, and what each parameter's group is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msrcnn.config import ModelConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.solver import learning_rate, make_optimizer, set_learning_rate

STEPS = 1000  # an epoch


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
