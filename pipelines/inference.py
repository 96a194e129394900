"""The inference stage: shards through the network to parts of detection rows, by a pool of Ray Data actors.

An actor gets a row group, runs it in batches, and writes its part itself; only a small row about it comes back. What
was killed goes on with the row groups that have no part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
import torch

from msrcnn.config import DataConfig
from msrcnn.data.batching import make_batch
from msrcnn.detection_rows import detection_rows
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.prediction import suited_batch
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch, Detections
from msrcnn.weights import load_model
from pipelines.ahead import ahead
from pipelines.detection_parts import Key, Origin, PartInfo, key_of, part_name, prepare, write_part
from pipelines.gpu_memory import stated_memory
from pipelines.job_rows import job_rows
from pipelines.pool import Pool
from pipelines.progress import Progress
from pipelines.reading import RowGroup, evaluation_rows
from pipelines.schema import DETECTION_ROW
from pipelines.storage import Location, locate, on_disk
from pipelines.stored_rows import truths_of

DONE_ROW = pa.schema(
    [
        *((name, pa.int64()) for name in ("shard", "group", "images", "detections", "errors")),
        ("first_error", pa.string()),
        ("seconds", pa.float64()),
    ]
)
"""What an actor says of a part that it wrote: `PartInfo`, and how long it took."""
Rows = Callable[[], list[dict[str, Any]]]
"""Pastes the masks of a batch that went through the network."""


@dataclass(frozen=True)
class DetectJob:
    """What every actor needs.

    Attributes:
        weights: a model file that every node sees, a local path or a URL.
        folder: for the parts.
        origin: what they say that they were made from.
        batch: images a step of the network; 0: as many as suit the device.
    """

    weights: str
    folder: Location
    origin: Origin
    batch: int


class Detector:
    """One inference process: a row group of shard rows in, its part written, a row about it out."""

    def __init__(self, job: DetectJob, gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.job = job
        self.device = torch.device("cuda" if gpu else "cpu")
        self.batch = job.batch or suited_batch(self.device)
        with on_disk(locate(job.weights)) as path:
            checkpoint = load_model(path)
        self.model, self.data = checkpoint.model.to(self.device), checkpoint.data

    def __call__(self, table: pa.Table) -> pa.Table:
        began = time.monotonic()
        shard, group, rows = (table[name][0].as_py() for name in ("shard", "group", "group_rows"))
        if len(table) != rows:  # a part that lacks images would count as done
            raise RuntimeError(f"{part_name((shard, group))}: a block of {len(table)} rows, the row group has {rows}")
        rows = detected_rows(self.model, self.data, self.device, self.batch, table, self.device.type == "cuda")
        found = pa.Table.from_pylist(list(rows), schema=DETECTION_ROW)
        info = write_part(self.job.folder, (shard, group), found, self.job.origin)
        return pa.Table.from_pylist([{**asdict(info), "seconds": time.monotonic() - began}], schema=DONE_ROW)


def detected_rows(
    model: MaskScoringRCNN, data: DataConfig, device: torch.device, batch: int, table: pa.Table, beside: bool = False
) -> Iterator[dict[str, Any]]:
    """The detection rows of a table of shard rows; an image that cannot be used has one row with its `error`.

    Args:
        model: in testing mode, on the device.
        data: how images are resized.
        device: of the model.
        batch: images at a time; the next ones are decoded meanwhile.
        table: shard rows.
        beside: whether the masks of a batch are pasted while the network is at the next one, in a thread of their own:
            a GPU would wait for it, a CPU is busy with either.

    Raises:
        InputError: the GPU's memory does not suffice for a batch.
    """

    def batch_of(part: slice) -> Batch:
        ready = make_batch(images[part], truths[part], data)
        return ready.pinned() if device.type == "cuda" else ready

    def decode(part: slice) -> Batch | None:
        try:
            return batch_of(part)
        except InputError:
            return None

    def detect(ready: Batch, of: list[ImageTruth]) -> Rows:
        with stated_memory(batch, data):
            found: Detections = model(ready.to(device, non_blocking=True))
        return partial(detection_rows, ready, found.to("cpu"), of)

    def attempt(number: int) -> Rows:
        truth, alone = truths[number], slice(number, number + 1)
        try:
            ready = batch_of(alone)
        except InputError as error:
            row = {"image_id": truth.image_id, "height": truth.height, "width": truth.width, "error": str(error)}
            return lambda: [row]
        return detect(ready, [truth])

    def detected(decoder: Executor) -> Iterator[Rows]:
        following = [decoder.submit(decode, part) for part in parts[:1]]
        for i, part in enumerate(parts):
            ready = following.pop().result()
            following = [decoder.submit(decode, part) for part in parts[i + 1 : i + 2]]
            if ready is not None:
                yield detect(ready, truths[part])
            else:  # one bad image must not cost the others of its batch
                yield from map(attempt, range(part.start, part.stop))

    truths, images = truths_of(table), table["image"].to_pylist()
    parts = [slice(start, min(start + batch, len(truths))) for start in range(0, len(truths), batch)]
    with ThreadPoolExecutor(1) as decoder, ThreadPoolExecutor(1) as paster:
        steps = detected(decoder)
        for rows in ahead(paster, _rows, steps, 2) if beside else map(_rows, steps):
            yield from rows


def _rows(made: Rows) -> list[dict[str, Any]]:
    return made()


def infer(groups: Sequence[RowGroup], job: DetectJob, pool: Pool) -> ray.data.Dataset:
    """A job that writes the parts of these row groups; a row of `PartInfo` and `seconds` for each as it is there."""
    share: dict[str, Any] = {"num_cpus": pool.cpus} | ({"num_gpus": pool.gpus} if pool.gpus else {})
    if pool.avoids_gpus:  # Ray Data's own, SPREAD, would take nodes with GPUs as any others
        share["scheduling_strategy"] = "DEFAULT"
    return evaluation_rows(groups).map_batches(
        Detector,
        fn_constructor_kwargs={"job": job, "gpu": pool.gpus > 0, "threads": pool.threads},
        compute=pool.strategy,
        batch_size=None,
        batch_format="pyarrow",
        **share,
    )


def detect(groups: Sequence[RowGroup], job: DetectJob, pool: Pool, log: Callable[[str], None]) -> dict[Key, PartInfo]:
    """Runs the inference stage on the row groups that have no part yet.

    Returns:
        what is in the parts, in the order of the row groups.

    Raises:
        InputError: the folder cannot be written or holds something else, or a process was lost again and again.
    """
    done = prepare(job.folder, job.origin)
    missing = [group for group in groups if key_of(group) not in done]
    if done:
        log(f"{len(groups) - len(missing)} of {len(groups)} parts are there already")
    if missing:
        progress = Progress(sum(group.rows for group in missing), log)
        for row in job_rows(infer(missing, job, pool)):
            row.pop("seconds")
            info = PartInfo(**row)
            done[info.key] = info
            progress.add(info.images)
    return {key_of(group): done[key_of(group)] for group in groups}
