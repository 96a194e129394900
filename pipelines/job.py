"""What the workers of a training are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msrcnn.config import DataConfig, ModelConfig, SolverConfig


@dataclass(frozen=True)
class Job:
    """A training, as every worker knows it."""

    model: ModelConfig
    solver: SolverConfig
    data: DataConfig
    categories: tuple[tuple[int, int, str], ...]  # number (1..C), id in the source annotations, name
    rows: int
    """images of the data set"""
    steps_per_epoch: int
    total_steps: int
    images_at_once: int
    threads: int
    compile: bool
    checkpoint_seconds: float
    run: str
    """run directory, a local path or a URL"""
    initial: str | None
    """model file to begin with, a local path or a URL, if it is not random weights"""
    mailbox: Any = None
    """`pipelines.mailbox.Mailbox`, from where Ray has started"""
