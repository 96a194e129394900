"""Shard rows to batches. Encoded bytes travel; decoding is late, in the threads of the process that uses them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.collate_fn import ArrowBatchCollateFn

from msrcnn.config import DataConfig
from msrcnn.data.batching import draw, make_batch
from msrcnn.structures import Batch
from pipelines.stored_rows import truths_of


@dataclass(frozen=True)
class StepImages:
    """A worker's images of one step of the training."""

    epoch: int
    step: int
    """counted over the whole training, from 0"""
    parts: tuple[Batch, ...]
    """what the worker computes at a time; their gradients are added up"""


def split(images: int, at_once: int) -> list[slice]:
    """`images` in as few parts of at most `at_once` (0: any number) as there can be, in sizes that differ by one."""
    parts = -(-images // at_once) if at_once else 1
    ends = [images * part // parts for part in range(parts + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]


class TrainingCollate(ArrowBatchCollateFn):
    """Shard rows of one step to a training batch, or to several that are computed one after the other.

    Runs in several threads. Empty rows, which fill up a worker's share of a step, are dropped.
    """

    def __init__(self, config: DataConfig, seed: int, at_once: int = 0) -> None:
        self.config = config
        self.seed = seed
        self.at_once = at_once

    def __call__(self, batch: pa.Table) -> StepImages:  # type: ignore[override]  # Ray takes any object
        batch = batch.filter(pc.is_valid(batch["image_id"]))
        truths, images = truths_of(batch), batch["image"].to_pylist()
        epoch, step = batch["epoch"][0].as_py(), batch["step"][0].as_py()
        draws = [draw(self.seed, epoch, t.image_id) for t in truths]
        parts = split(len(truths), self.at_once)
        return StepImages(epoch, step, tuple(make_batch(images[p], truths[p], self.config, draws[p]) for p in parts))
