"""Which rows are read, in which order, by which task. The reading tasks import no torch: they start in a moment.

The order of training images is a pure function of (seed, epoch): Parquet row groups permuted, then rows permuted
inside windows of a few row groups. All epochs are one stream, so that no epoch waits for a pipeline to start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from pipelines.manifest import Manifest

WINDOW_GROUPS = 4
"""Row groups whose rows are shuffled among each other."""
READER_CPUS = 0.1
"""Readers wait for storage more than they compute; a whole CPU each would starve the workers on a small machine."""
CPUS_A_READER = 4
"""Readers at a time: one for so many CPUs of the cluster, but at least two. Many would start a process each."""


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


def read_rows(paths: Sequence[str], indices: Sequence[int]) -> pa.Table:
    """The rows of some row groups, one after the other."""
    pairs = zip(paths, indices, strict=True)
    return pa.concat_tables([pq.ParquetFile(path).read_row_group(index) for path, index in pairs])


def epoch_windows(groups: Sequence[RowGroup], seed: int, epoch: int) -> list[list[RowGroup]]:
    """The row groups of one epoch in their order, in windows."""
    order = np.random.default_rng([seed, epoch]).permutation(len(groups))
    shuffled = [groups[i] for i in order]
    return [shuffled[i : i + WINDOW_GROUPS] for i in range(0, len(shuffled), WINDOW_GROUPS)]


def window_order(rows: int, seed: int, epoch: int, window: int) -> np.ndarray:
    """The order of the rows of one window, int64 [rows]."""
    return np.random.default_rng([seed, epoch, window]).permutation(rows)


@dataclass(frozen=True)
class Window:
    """What one reading task is to do: read these row groups, permute their rows, emit the first `rows`."""

    seed: int
    epoch: int
    number: int
    rows: int
    groups: list[RowGroup]

    def columns(self) -> dict[str, Any]:
        """As one row that Arrow understands."""
        paths, indices = [g.path for g in self.groups], [g.index for g in self.groups]
        return {"seed": self.seed, "epoch": self.epoch, "number": self.number, "rows": self.rows,
                "paths": paths, "indices": indices}  # fmt: skip


def training_plan(groups: Sequence[RowGroup], seed: int, epochs: Sequence[int], rows_per_epoch: int) -> list[Window]:
    """The windows of the given epochs in order.

    An epoch emits its first `rows_per_epoch` rows (a whole number of steps), the remainder is left out of it.
    """
    plan = []
    for epoch in epochs:
        left = rows_per_epoch
        for number, window in enumerate(epoch_windows(groups, seed, epoch)):
            rows = min(left, sum(g.rows for g in window))
            if rows:
                plan.append(Window(seed, epoch, number, rows, window))
            left -= rows
    return plan


def _read_window(plan: pa.Table) -> Iterator[pa.Table]:
    for w in plan.to_pylist():
        table = read_rows(w["paths"], w["indices"])
        order = window_order(table.num_rows, w["seed"], w["epoch"], w["number"])[: w["rows"]]
        table = table.take(pa.array(order))
        yield table.append_column("epoch", pa.array(np.full(len(order), w["epoch"], dtype=np.int32)))


def training_rows(
    groups: Sequence[RowGroup], seed: int, epochs: Sequence[int], rows_per_epoch: int
) -> ray.data.Dataset:
    """A stream of shard rows with a column `epoch`, over all the given epochs."""
    return _tasks([w.columns() for w in training_plan(groups, seed, epochs, rows_per_epoch)], _read_window)


def _read_group(plan: pa.Table) -> Iterator[pa.Table]:
    for group in plan.to_pylist():
        yield read_rows([group["path"]], [group["index"]])


def evaluation_rows(groups: Sequence[RowGroup]) -> ray.data.Dataset:
    """Every shard row once."""
    return _tasks([{"path": g.path, "index": g.index} for g in groups], _read_group)


def _tasks(plan: list[dict[str, Any]], read: Callable[[pa.Table], Iterator[pa.Table]]) -> ray.data.Dataset:
    """A reading task for each row of the plan."""
    rows = ray.data.from_items(plan, override_num_blocks=len(plan))
    readers = max(2, int(ray.cluster_resources().get("CPU", 0)) // CPUS_A_READER)
    compute = ray.data.TaskPoolStrategy(size=readers)
    return rows.map_batches(read, batch_size=1, batch_format="pyarrow", compute=compute, num_cpus=READER_CPUS)
