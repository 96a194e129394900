"""Shard rows to batches. Encoded bytes travel; decoding is late, in the threads of the process that uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.collate_fn import ArrowBatchCollateFn

from msrcnn.config import DataConfig
from msrcnn.data.batching import draw, make_batch, own_canvas
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


def parts_of(canvases: Sequence[tuple[int, int]], at_once: int, mixed: bool) -> list[list[int]]:
    """Which images of a worker's share of a step are computed together, by their places.

    Ordered by canvas, landscape ones first, those of the same as they came. A part that mixed landscape and portrait
    images would have the square canvas, nearly twice the pixels; apart, they are at most one part more.

    Args:
        canvases: (height, width) that each image has alone.
        at_once: the most of a part; 0: any number.
        mixed: whether a part may hold both, so that their number follows from that of the images alone.
    """
    order = sorted(range(len(canvases)), key=lambda place: (canvases[place][0] > canvases[place][1], canvases[place]))
    portrait = 0 if mixed else sum(height > width for height, width in canvases)
    kinds = [order[: len(order) - portrait], order[len(order) - portrait :]]
    return [kind[part] for kind in kinds if kind for part in split(len(kind), at_once)]


class TrainingCollate(ArrowBatchCollateFn):
    """Shard rows of one step to a training batch, or to several that are computed one after the other.

    Runs in several threads. Empty rows, which fill up a worker's share of a step, are dropped.

    Args:
        config: how images are resized and mirrored.
        seed: of the draws.
        at_once, mixed: as in `parts_of`.
    """

    def __init__(self, config: DataConfig, seed: int, at_once: int = 0, mixed: bool = False) -> None:
        self.config, self.seed, self.at_once, self.mixed = config, seed, at_once, mixed

    def __call__(self, batch: pa.Table) -> StepImages:  # type: ignore[override]  # Ray takes any object
        batch = batch.filter(pc.is_valid(batch["image_id"]))
        truths, images = truths_of(batch), batch["image"].to_pylist()
        epoch, step = batch["epoch"][0].as_py(), batch["step"][0].as_py()
        draws = [draw(self.seed, epoch, t.image_id) for t in truths]

        def part(places: list[int]) -> Batch:
            chosen = [truths[i] for i in places]
            return make_batch([images[i] for i in places], chosen, self.config, [draws[i] for i in places])

        canvases = [own_canvas(t, self.config, d) for t, d in zip(truths, draws, strict=True)]
        parts = parts_of(canvases, self.at_once, self.mixed)
        return StepImages(epoch, step, tuple(map(part, parts)))
