"""Which rows are read, in which order, by which task. The reading tasks import no torch: they start in a moment.

The order of training images is a pure function of (seed, epoch) and the images of a step, the same for any number of
workers. An epoch is its Parquet row groups, permuted, and in each its rows, permuted. It is used in rounds of some
steps: a round's rows are cut into as many equal stretches as a step has images, and each step takes one row of every
stretch. So the images of a step come from as many places, a worker's images of a round lie in one piece of the epoch,
and each row group is read about once. A stream can begin at any step of any epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import ray
import ray.data

from pipelines.manifest import Manifest
from pipelines.one_row_blocks import one_row_blocks
from pipelines.parquet import open_parquet, read_table

ROUND_ROWS = 1024
"""Rows of a round, about: with 16 images a step its stretches are as long as a row group."""
ROUND_BYTES = 512 * 10**6
"""Bytes of a round, at most, if a step does not have more: the memory of a reading task, and of a worker's block."""
ROUND_STEPS = 64
"""Steps of a round, at most."""
FOOTERS = 16
"""Files whose footers are read at a time, when a data set is opened: each waits, for an object store perhaps 0.1 s."""
READER_CPUS = 0.1
"""Readers wait for storage more than they compute; a whole CPU each would starve the workers on a small machine."""
READERS = 2
"""Readers at a time, at least."""
CPUS_A_READER = 4
"""Beyond them, one for so many CPUs of the cluster. Many would start a process each."""


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group."""

    path: str
    index: int
    rows: int
    bytes: int
    shard: int = 0
    """the place of its file in the data set"""


def row_groups(manifest: Manifest) -> list[RowGroup]:
    """Every row group of a data set, in the order of its parts."""

    def groups(shard: int, path: str) -> list[RowGroup]:
        footer = open_parquet(path).metadata
        found = (footer.row_group(i) for i in range(footer.num_row_groups))
        return [RowGroup(path, i, group.num_rows, group.total_byte_size, shard) for i, group in enumerate(found)]

    with ThreadPoolExecutor(FOOTERS) as pool:
        return [group for found in pool.map(groups, range(len(manifest.parts)), manifest.paths) for group in found]


def read_rows(paths: Sequence[str], indices: Sequence[int]) -> pa.Table:
    """The rows of some row groups, one after the other.

    Raises:
        StorageError, InputError: as `read_table`.
    """
    return pa.concat_tables([read_table(path, index) for path, index in zip(paths, indices, strict=True)])


def epoch_groups(groups: Sequence[RowGroup], seed: int, epoch: int) -> list[RowGroup]:
    """The row groups of one epoch in their order."""
    return [groups[i] for i in np.random.default_rng([seed, epoch]).permutation(len(groups))]


def round_steps(groups: Sequence[RowGroup], batch: int, steps: int) -> int:
    """Steps of a round where a step has `batch` images and an epoch `steps` steps."""
    image = sum(g.bytes for g in groups) / sum(g.rows for g in groups)
    rows = min(ROUND_ROWS, int(ROUND_BYTES / max(image, 1)))
    return min(max(1, min(ROUND_STEPS, rows // batch)), steps)


@dataclass(frozen=True)
class Piece:
    """What one reading task is to do: a worker's images of a round of steps, or of its last steps.

    The rows of `groups`, permuted in each and joined, from `start` on are `stretches` stretches of `length` rows. Step
    by step, from step `skip` of the round on, one row of each is emitted, and empty rows up to `slots`: all workers
    are given equally many rows, whether or not a step's images can be divided by their number.
    """

    seed: int
    epoch: int
    step: int  # of the whole training, its first
    number: int  # of the first group in the epoch
    stretches: int
    slots: int
    length: int
    skip: int
    start: int
    groups: list[RowGroup]

    @property
    def rows(self) -> int:
        """Rows that it emits."""
        return self.slots * (self.length - self.skip)

    def order(self) -> np.ndarray:
        """Which rows of its joined groups, as they are read, it emits, in order, int64 [rows]; -1: an empty row."""
        permuted, begin = [], 0
        for number, group in enumerate(self.groups, start=self.number):
            generator = np.random.default_rng([self.seed, self.epoch, number])
            permuted.append(begin + generator.permutation(group.rows))
            begin += group.rows
        used = np.concatenate(permuted)[self.start : self.start + self.stretches * self.length]
        stretches = used.reshape(self.stretches, self.length)[:, self.skip :]  # [stretches * length] -> [.., steps]
        filled = np.pad(stretches, ((0, self.slots - self.stretches), (0, 0)), constant_values=-1)  # [slots, steps]
        return filled.T.reshape(-1)  # [slots, steps] -> [steps * slots]

    def steps(self) -> np.ndarray:
        """The training's step of each row that it emits, int64 [rows]."""
        return np.repeat(np.arange(self.length - self.skip) + self.step, self.slots)


def slots_of(batch: int, workers: int) -> int:
    """Rows that each of `workers` is given for a step of `batch` images, some of them empty if need be."""
    return -(-batch // workers)


class TrainingPlan(Sequence[Piece]):
    """The pieces from step `first_step` of the training on, in order; each is made when it is asked for.

    Ray Data gives each worker whole blocks, the next one to the worker that has had the fewest rows. So pieces come in
    rounds of one a worker, all of one size: every worker has its images of a round before any gets the next round's.
    An epoch emits `steps * batch` images; the rest, fewer than a step's, is left out.
    """

    def __init__(
        self, groups: Sequence[RowGroup], seed: int, epochs: int, steps: int, batch: int, workers: int,
        first_step: int = 0,
    ) -> None:  # fmt: skip
        """What is left to read of a training.

        Args:
            groups: the data set's row groups.
            seed: what the order follows from, with the number of the epoch.
            epochs: of the whole training.
            steps: an epoch's.
            batch: images of a step, over all workers.
            workers: training processes, at most `batch`.
            first_step: counted over all epochs.
        """
        self.groups, self.seed, self.steps, self.batch, self.workers = list(groups), seed, steps, batch, workers
        self.first_step = first_step
        self.length = round_steps(groups, batch, steps)
        self.rounds = -(-steps // self.length)  # of an epoch
        epoch, step = divmod(first_step, steps)
        self.begin = epoch * self.rounds + step // self.length  # the first round, of the whole training
        self.end = epochs * self.rounds
        self._latest: tuple[int, list[RowGroup], np.ndarray] | None = None

    def __len__(self) -> int:
        return max(self.end - self.begin, 0) * self.workers

    def __getitem__(self, number: int) -> Piece:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(number)
        turn, worker = divmod(number, self.workers)
        epoch, turn = divmod(self.begin + turn, self.rounds)
        ordered, ends = self._epoch(epoch)
        first = turn * self.length  # step of the epoch
        taken, skip = min(self.length, self.steps - first), max(self.first_step - epoch * self.steps - first, 0)
        share, next_share = (self.batch * w // self.workers for w in (worker, worker + 1))  # its images of a step
        position, stop = first * self.batch + share * taken, first * self.batch + next_share * taken
        low, high = np.searchsorted(ends, [position, stop - 1], side="right")
        start = position - int(ends[low] - ordered[low].rows)
        return Piece(self.seed, epoch, epoch * self.steps + first + skip, int(low), next_share - share,
                     slots_of(self.batch, self.workers), taken, skip, start, ordered[low : high + 1])  # fmt: skip

    def _epoch(self, epoch: int) -> tuple[list[RowGroup], np.ndarray]:
        """Its row groups in order, and how many rows there are up to the end of each."""
        latest = self._latest
        if latest is None or latest[0] != epoch:  # pieces are asked for in order
            ordered = epoch_groups(self.groups, self.seed, epoch)
            latest = self._latest = epoch, ordered, np.cumsum([g.rows for g in ordered])
        return latest[1], latest[2]


@lru_cache(maxsize=1)
def _stored(plan: ray.ObjectRef) -> TrainingPlan:
    """The plan, loaded once in a process that reads many of its pieces."""
    return ray.get(plan)


def _read_pieces(numbers: pa.Table, plan: ray.ObjectRef) -> Iterator[pa.Table]:
    for number in numbers["piece"].to_pylist():
        piece = _stored(plan)[number]
        rows = read_rows([g.path for g in piece.groups], [g.index for g in piece.groups])
        order = piece.order()
        rows = rows.take(pa.array(order, mask=order < 0))  # a null takes an empty row
        rows = rows.append_column("epoch", pa.array(np.full(rows.num_rows, piece.epoch, dtype=np.int32)))
        yield rows.append_column("step", pa.array(piece.steps()))


def training_rows(plan: TrainingPlan) -> ray.data.Dataset:
    """A stream of shard rows with columns `epoch` and `step`, a block a piece.

    What is stored for it grows neither with the epochs nor with the workers, but for a number a piece.
    """
    rows = _tasks(pa.table({"piece": np.arange(len(plan))}), partial(_read_pieces, plan=ray.put(plan)))
    rows.context.target_max_block_size = None  # a block that Ray Data cuts would be dealt to two workers
    return rows


def _read_group(plan: pa.Table) -> Iterator[pa.Table]:
    for group in plan.to_pylist():
        rows = read_rows([group["path"]], [group["index"]])
        for name in ("shard", "group", "group_rows"):
            rows = rows.append_column(name, pa.repeat(pa.scalar(group[name], pa.int32()), rows.num_rows))
        yield rows


def evaluation_rows(groups: Sequence[RowGroup]) -> ray.data.Dataset:
    """Every shard row once, a block a row group; columns `shard`, `group` and `group_rows` say which it is."""
    columns = [{"path": g.path, "index": g.index, "shard": g.shard, "group": g.index, "group_rows": g.rows}
               for g in groups]  # fmt: skip
    rows = _tasks(pa.Table.from_pylist(columns), _read_group)
    rows.context.target_max_block_size = None  # a row group stays in one piece
    return rows


def _tasks(plan: pa.Table, read: Callable[[pa.Table], Iterator[pa.Table]]) -> ray.data.Dataset:
    """A reading task for each row of the plan."""
    readers = max(READERS, int(ray.cluster_resources().get("CPU", 0)) // CPUS_A_READER)
    readers = min(readers, plan.num_rows)  # Ray Data warns of a limit that cannot be reached
    compute = ray.data.TaskPoolStrategy(size=readers)
    rows = one_row_blocks(plan)
    return rows.map_batches(read, batch_size=1, batch_format="pyarrow", compute=compute, num_cpus=READER_CPUS)
