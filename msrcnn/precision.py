"""What layers compute in, wherever the detector is called."""

from __future__ import annotations

import torch

from msrcnn.config import Precision


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """For the block, layers on `device` compute in this; weights, scores, boxes and masks stay float32 (autocast)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
