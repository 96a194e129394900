"""Which rows are read, in which order, by which task. The reading tasks import no torch: they start in a moment.

The order of training images is a pure function of (seed, epoch): Parquet row groups permuted, then rows permuted
inside windows of a few row groups. All epochs are one stream, so that no epoch waits for a pipeline to start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from pipelines.manifest import Manifest
from pipelines.storage import open_parquet

WINDOW_GROUPS = 4
"""Row groups whose rows are shuffled among each other."""
FOOTERS = 16
"""Files whose footers are read at a time, when a data set is opened: each waits, for an object store perhaps 0.1 s."""
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

    def groups(path: str) -> list[RowGroup]:
        footer = open_parquet(path).metadata
        return [RowGroup(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]

    with ThreadPoolExecutor(FOOTERS) as pool:
        return [group for found in pool.map(groups, manifest.paths) for group in found]


def read_rows(paths: Sequence[str], indices: Sequence[int]) -> pa.Table:
    """The rows of some row groups, one after the other."""
    pairs = zip(paths, indices, strict=True)
    return pa.concat_tables([open_parquet(path).read_row_group(index) for path, index in pairs])


def epoch_windows(groups: Sequence[RowGroup], seed: int, epoch: int) -> list[list[RowGroup]]:
    """The row groups of one epoch in their order, in windows."""
    order = np.random.default_rng([seed, epoch]).permutation(len(groups))
    shuffled = [groups[i] for i in order]
    return [shuffled[i : i + WINDOW_GROUPS] for i in range(0, len(shuffled), WINDOW_GROUPS)]


def window_order(rows: int, seed: int, epoch: int, window: int) -> np.ndarray:
    """The order of the rows of one window, int64 [rows]."""
    return np.random.default_rng([seed, epoch, window]).permutation(rows)


@dataclass(frozen=True)
class Piece:
    """What one reading task is to do: permute the rows of each window, join them, emit `rows` of them from `start`."""

    seed: int
    epoch: int
    start: int
    rows: int
    numbers: list[int]  # of the windows, in the epoch
    windows: list[list[RowGroup]]

    def columns(self) -> dict[str, Any]:
        """As one row that Arrow understands."""
        return {
            "seed": self.seed, "epoch": self.epoch, "start": self.start, "rows": self.rows, "numbers": self.numbers,
            "paths": [[g.path for g in w] for w in self.windows],
            "indices": [[g.index for g in w] for w in self.windows],
        }  # fmt: skip


def training_plan(
    groups: Sequence[RowGroup], seed: int, epochs: Sequence[int], steps: int, workers: int, share: int
) -> list[Piece]:
    """The pieces of the given epochs in order.

    Ray Data gives each worker whole blocks, the next one to the worker that has had the fewest rows. So pieces come in
    rounds of one a worker, all of one size and a multiple of a worker's images a step: every worker has its part of an
    epoch before any gets the next one's. An epoch emits `steps * workers * share` rows, the remainder is left out.

    Args:
        groups: the data set's row groups.
        seed, epochs: what the order follows from.
        steps: an epoch's.
        workers: training processes.
        share: images a worker takes in a step.
    """
    plan: list[Piece] = []
    for epoch in epochs:
        windows = epoch_windows(groups, seed, epoch)
        sizes = [sum(g.rows for g in w) for w in windows]
        ends = np.cumsum(sizes)
        most = max(sizes[0] // share, 1) * share
        done, total = 0, steps * workers * share
        while done < total:
            rows = min(most, (total - done) // workers)
            for begin in range(done, done + rows * workers, rows):
                first, last = np.searchsorted(ends, [begin, begin + rows - 1], side="right")
                numbers = list(range(int(first), int(last) + 1))
                start = begin - int(ends[first] - sizes[first])
                plan.append(Piece(seed, epoch, start, rows, numbers, [windows[n] for n in numbers]))
            done += rows * workers
    return plan


def _read_piece(plan: pa.Table) -> Iterator[pa.Table]:
    for piece in plan.to_pylist():
        tables = []
        for number, paths, indices in zip(piece["numbers"], piece["paths"], piece["indices"], strict=True):
            table = read_rows(paths, indices)
            tables.append(table.take(pa.array(window_order(table.num_rows, piece["seed"], piece["epoch"], number))))
        rows = pa.concat_tables(tables).slice(piece["start"], piece["rows"])
        yield rows.append_column("epoch", pa.array(np.full(piece["rows"], piece["epoch"], dtype=np.int32)))


def training_rows(plan: Sequence[Piece]) -> ray.data.Dataset:
    """A stream of shard rows with a column `epoch`, a block a piece."""
    return _tasks([piece.columns() for piece in plan], _read_piece)


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
