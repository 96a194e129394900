"""Shards to training batches and evaluation rows, through Ray Data. Encoded bytes travel; decoding is late.

The order of training images is a pure function of (seed, epoch): Parquet row groups permuted, then rows permuted
inside windows of a few row groups. All epochs are one stream, so that no epoch waits for a pipeline to start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data.collate_fn import ArrowBatchCollateFn

from msrcnn.config import DataConfig
from msrcnn.data.batching import draw, make_batch
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch
from pipelines.manifest import Manifest

WINDOW_GROUPS = 4
"""Row groups whose rows are shuffled among each other."""
READER_CPUS = 0.1
"""Readers wait for storage more than they compute; a whole CPU each would starve the workers on a small machine."""


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group."""

    path: str
    index: int
    rows: int


def row_groups(manifest: Manifest) -> list[RowGroup]:
    """Every row group of a data set, in the order of its parts."""
    groups = []
    for path in manifest.paths:
        footer = pq.read_metadata(path)
        groups += [RowGroup(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
    return groups


def read_rows(window: Sequence[RowGroup]) -> pa.Table:
    """The rows of some row groups, one after the other."""
    return pa.concat_tables([pq.ParquetFile(g.path).read_row_group(g.index) for g in window])


def epoch_windows(groups: Sequence[RowGroup], seed: int, epoch: int) -> list[list[RowGroup]]:
    """The row groups of one epoch in their order, in windows."""
    order = np.random.default_rng([seed, epoch]).permutation(len(groups))
    shuffled = [groups[i] for i in order]
    return [shuffled[i : i + WINDOW_GROUPS] for i in range(0, len(shuffled), WINDOW_GROUPS)]


def window_order(rows: int, seed: int, epoch: int, window: int) -> np.ndarray:
    """The order of the rows of one window, int64 [rows]."""
    return np.random.default_rng([seed, epoch, window]).permutation(rows)


def training_plan(
    groups: Sequence[RowGroup], seed: int, epochs: Sequence[int], rows_per_epoch: int
) -> list[dict[str, object]]:
    """What reading tasks are to do, one dict a window: the row groups, and how many of the permuted rows to emit.

    An epoch emits its first `rows_per_epoch` rows (a whole number of steps), the remainder is left out of it.
    """
    plan: list[dict[str, object]] = []
    for epoch in epochs:
        left = rows_per_epoch
        for number, window in enumerate(epoch_windows(groups, seed, epoch)):
            rows = min(left, sum(g.rows for g in window))
            if rows:
                plan.append({"epoch": epoch, "window": number, "seed": seed, "rows": rows, "groups": window})
            left -= rows
    return plan


def _read_window(item: dict[str, np.ndarray]) -> Iterator[pa.Table]:
    for entry in item["item"]:
        table = read_rows(entry["groups"])
        order = window_order(table.num_rows, entry["seed"], entry["epoch"], entry["window"])[: entry["rows"]]
        table = table.take(pa.array(order))
        yield table.append_column("epoch", pa.array(np.full(len(order), entry["epoch"], dtype=np.int32)))


def training_rows(
    groups: Sequence[RowGroup], seed: int, epochs: Sequence[int], rows_per_epoch: int
) -> ray.data.Dataset:
    """A stream of shard rows with a column `epoch`, over all the given epochs."""
    plan = training_plan(groups, seed, epochs, rows_per_epoch)
    items = ray.data.from_items([{"item": entry} for entry in plan], override_num_blocks=len(plan))
    return items.map_batches(_read_window, batch_size=1, num_cpus=READER_CPUS)


def _read_group(item: dict[str, np.ndarray]) -> Iterator[pa.Table]:
    for group in item["item"]:
        yield read_rows([group])


def evaluation_rows(groups: Sequence[RowGroup]) -> ray.data.Dataset:
    """Every shard row once."""
    items = ray.data.from_items([{"item": group} for group in groups], override_num_blocks=len(groups))
    return items.map_batches(_read_group, batch_size=1, num_cpus=READER_CPUS)


def truths_of(table: pa.Table) -> list[ImageTruth]:
    """The ground truth in a table of shard rows, without the images."""
    truths = []
    for row in table.select(["image_id", "height", "width", "instances"]).to_pylist():
        instances = row["instances"]
        truths.append(
            ImageTruth(
                row["image_id"],
                row["height"],
                row["width"],
                np.array([i["annotation_id"] for i in instances], dtype=np.int64),
                np.array([i["category"] for i in instances], dtype=np.int32),
                np.array([i["bbox"] for i in instances], dtype=np.float32).reshape(-1, 4),
                np.array([i["area"] for i in instances], dtype=np.float32),
                np.array([i["iscrowd"] for i in instances], dtype=bool),
                [i["rle"] for i in instances],
            )
        )
    return truths


@dataclass(frozen=True)
class Fed:
    """A batch as it reaches a training step."""

    batch: Batch
    epoch: int  # of its first image


class TrainingCollate(ArrowBatchCollateFn):
    """Shard rows to a training batch; runs in several threads."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __call__(self, batch: pa.Table) -> Fed:  # type: ignore[override]  # Ray takes any object
        truths, epochs = truths_of(batch), batch["epoch"].to_pylist()
        draws = [draw(self.seed, e, t.image_id) for e, t in zip(epochs, truths, strict=True)]
        return Fed(make_batch(batch["image"].to_pylist(), truths, self.config, draws), epochs[0])
