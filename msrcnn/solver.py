"""Optimiser and learning rate (the paper, section 4.1)."""

from __future__ import annotations

import torch
from torch import nn

from msrcnn.config import SolverConfig

REFERENCE_BATCH = 16
"""Images a step for which `SolverConfig.lr` is meant."""
BIAS_LR_FACTOR = 2.0
DECAY = 0.1


def learning_rate(config: SolverConfig, step: int, steps_per_epoch: int) -> float:
    """The rate of step `step` (from 0): scaled by the batch, linear warm-up, a tenth after each decay epoch."""
    lr = config.lr * config.batch / REFERENCE_BATCH
    lr *= DECAY ** sum(step >= epoch * steps_per_epoch for epoch in config.decay_epochs)
    if step < config.warmup_steps:
        done = step / config.warmup_steps
        lr *= config.warmup_factor * (1 - done) + done
    return lr


def make_optimizer(model: nn.Module, config: SolverConfig) -> torch.optim.SGD:
    """SGD with momentum over the trainable parameters; biases at twice the rate and without decay."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    weights = [p for name, p in trained if not name.endswith("bias")]
    biases = [p for name, p in trained if name.endswith("bias")]
    groups = [
        {"params": weights, "lr_factor": 1.0, "weight_decay": config.weight_decay},
        {"params": biases, "lr_factor": BIAS_LR_FACTOR, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of each parameter group to its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
