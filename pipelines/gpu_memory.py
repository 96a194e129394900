"""A GPU whose memory is too small for a step of the network, as a line that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from msrcnn.config import DataConfig
from msrcnn.errors import InputError


@contextmanager
def stated_memory(images: int, data: DataConfig) -> Iterator[None]:
    """For a block that runs the network on a GPU.

    Args:
        images: the most of a step.
        data: how they are resized.

    Raises:
        InputError: the memory does not suffice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        step = f"{images} image{'s' * (images > 1)} of up to {data.short_side} x {data.long_side} pixels"
        remedy = "evaluate or predict with a smaller --batch" if images > 1 else "end what else uses it, or use another"
        raise InputError(f"the GPU's memory does not suffice for steps of {step}; {remedy}") from error
