"""A GPU whose memory is too small for what the network is given at a time, as a line that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from msrcnn.config import DataConfig
from msrcnn.errors import InputError
from pipelines.text_tables import counted


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
        remedy = "evaluate or predict with a smaller --batch" if images > 1 else "end what else uses it, or use another"
        raise InputError(f"the GPU's memory does not suffice for steps of {_given(images, data)}; {remedy}") from error


def too_little_to_train(images: int, data: DataConfig, device: torch.device) -> str:
    """The line for a training worker whose GPU's memory does not suffice.

    Args:
        images: that it computes at a time.
        data: how they are resized.
        device: that it computes on.
    """
    size = f" ({torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB)" if device.type == "cuda" else ""
    remedy = f"give the same command again with --images-at-once {images // 2}"
    if images == 1:
        remedy = (
            "end what else uses it, use another, or begin a run with smaller --data.short-side and --data.long-side"
        )
    return f"the GPU's memory{size} does not suffice to train on {_given(images, data)} at a time; {remedy}"


def too_little_to_serve(images: int, data: DataConfig) -> str:
    """The line for who runs a service whose GPU's memory does not suffice for so many images at a time."""
    remedy = "serve with a smaller --batch" if images > 1 else "end what else uses it, or use another"
    return f"the GPU's memory does not suffice to detect in {_given(images, data)} at a time; {remedy}"


def _given(images: int, data: DataConfig) -> str:
    short = max((data.short_side, *data.short_sides))
    return f"{counted(images, 'image')} of up to {short} x {data.long_side} pixels"
