"""Optimiser, learning rate (the paper, section 4.1), and steps that can be left out without asking the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msrcnn.config import SolverConfig
from msrcnn.detector import MaskScoringRCNN

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
    """SGD with momentum over the trainable parameters; biases at twice the rate and without decay.

    It is torch's fused one, which `guarded_step` needs, with its momentum at zero. The model must be on its device.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    weights = [p for name, p in trained if not name.endswith("bias")]
    biases = [p for name, p in trained if name.endswith("bias")]
    groups = [
        {"params": weights, "lr_factor": 1.0, "weight_decay": config.weight_decay},
        {"params": biases, "lr_factor": BIAS_LR_FACTOR, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.momentum:
        # Left to torch, the first step's buffers are memory that nobody has written to until a step is taken.
        # A first step from zeros is torch's own: 0.9 * 0 + gradient.
        for p in (*weights, *biases):
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def guarded_step(optimizer: torch.optim.SGD, ok: Tensor) -> None:
    """A step where `ok` holds; where it does not, weights and momentum stay the same to the last bit.

    The host learns nothing of it and waits for nothing: fused optimisers read on the device whether gradients were
    found to be infinite (as `torch.amp.GradScaler` tells them) and then write nothing.

    Args:
        optimizer: one of `make_optimizer`.
        ok: bool scalar on the parameters' device.
    """
    optimizer.found_inf = ok.logical_not().float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]  # else it would guard steps that others take


def clip_gradients(model: MaskScoringRCNN, limit: float) -> Tensor:
    """Scales the gradient down to a norm of at most `limit`; each part that trains apart, by a norm of its own.

    So a MaskIoU head among several learns what it would alone. The host waits for nothing.

    Args:
        model: with gradients.
        limit: largest norm; 0 does not clip.

    Returns:
        The norm of the whole gradient before, float [].
    """
    norms = [
        nn.utils.clip_grad_norm_(part, limit or float("inf"))
        for part in model.parts_apart()
        if any(parameter.requires_grad for parameter in part)
    ]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of each parameter group to its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
