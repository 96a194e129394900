"""The inference stage: shards through the network to parts of detection rows, by a pool of Ray Data actors.

An actor gets a row group, runs it in batches, and writes its part itself; only a small row about it comes back. What
was killed goes on with the row groups that have no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import torch

from msrcnn.config import DataConfig, Precision
from msrcnn.data.batching import make_batch, one_canvas_batches
from msrcnn.detection_rows import detection_rows
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.inference_config import InferenceConfig
from msrcnn.precision import computing_in
from msrcnn.prediction import suited_batch
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
    ]
)
"""What an actor says of a part that it wrote: `PartInfo`."""
ImageRows = list[dict[str, Any]]
Rows = Callable[[], list[ImageRows]]
"""Pastes the masks of a batch that went through the network: the rows of each of its images."""
Step = tuple[list[int], Rows]
"""The places of a batch's images in the table, and their rows."""
T = TypeVar("T")


@dataclass(frozen=True)
class DetectJob:
    """What every actor needs.

    Attributes:
        weights: a model file that every node sees, a local path or a URL.
        folder: for the parts.
        origin: what they say that they were made from.
        batch: images a step of the network; 0: as many as suit the device.
        inference: how the model detects, where that is to be otherwise than its file says.
    """

    weights: str
    folder: Location
    origin: Origin
    batch: int
    inference: InferenceConfig = field(default_factory=InferenceConfig)


class Detector:
    """One inference process: a row group of shard rows in, its part written, a row about it out."""

    def __init__(self, job: DetectJob, gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.job = job
        self.device = torch.device("cuda" if gpu else "cpu")
        self.batch = job.batch or suited_batch(self.device)
        with on_disk(locate(job.weights)) as path:
            checkpoint = load_model(path, inference=job.inference)
        self.model, self.data = checkpoint.model.to(self.device), checkpoint.data
        self.precision = checkpoint.precision

    def __call__(self, table: pa.Table) -> pa.Table:
        shard, group, rows = (table[name][0].as_py() for name in ("shard", "group", "group_rows"))
        if len(table) != rows:  # a part that lacks images would count as done
            raise RuntimeError(f"{part_name((shard, group))}: a block of {len(table)} rows, the row group has {rows}")
        beside = self.device.type == "cuda"
        rows = detected_rows(self.model, self.data, self.device, self.batch, table, beside, self.precision)
        found = pa.Table.from_pylist(list(rows), schema=DETECTION_ROW)
        info = write_part(self.job.folder, (shard, group), found, self.job.origin)
        return pa.Table.from_pylist([asdict(info)], schema=DONE_ROW)


def detected_rows(
    model: MaskScoringRCNN, data: DataConfig, device: torch.device, batch: int, table: pa.Table, beside: bool = False,
    precision: Precision = "float32",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The detection rows of a table of shard rows, image by image; one that cannot be used has a row with its `error`.

    An image's detections do not depend on the others: only images of one canvas share a batch.

    Args:
        model: in testing mode, on the device.
        data: how images are resized.
        device: of the model.
        batch: images at a time, at most; the next ones are decoded meanwhile.
        table: shard rows.
        beside: whether the masks of a batch are pasted while the network is at the next one, in a thread of their own:
            a GPU would wait for it, a CPU is busy with either.
        precision: what the model's layers compute in.

    Raises:
        InputError: the GPU's memory does not suffice for a batch.
    """

    def batch_of(places: list[int]) -> Batch:
        ready = make_batch([images[i] for i in places], [truths[i] for i in places], data)
        return ready.pinned() if device.type == "cuda" else ready

    def decode(places: list[int]) -> Batch | None:
        try:
            return batch_of(places)
        except InputError:
            return None

    def detect(ready: Batch, places: list[int]) -> Step:
        with stated_memory(batch, data), computing_in(precision, device):
            found: Detections = model(ready.to(device, non_blocking=True))
        return places, partial(detection_rows, ready, found.to("cpu"), [truths[i] for i in places])

    def attempt(place: int) -> Step:
        truth = truths[place]
        try:
            ready = batch_of([place])
        except InputError as error:
            row = {"image_id": truth.image_id, "height": truth.height, "width": truth.width, "error": str(error)}
            return [place], lambda: [[row]]
        return detect(ready, [place])

    def detected(decoder: Executor) -> Iterator[Step]:
        following = [decoder.submit(decode, places) for places in parts[:1]]
        for i, places in enumerate(parts):
            ready = following.pop().result()
            following = [decoder.submit(decode, places) for places in parts[i + 1 : i + 2]]
            if ready is not None:
                yield detect(ready, places)
            else:  # one bad image must not cost the others of its batch
                yield from map(attempt, places)

    truths, images = truths_of(table), table["image"].to_pylist()
    parts = one_canvas_batches(truths, data, batch)
    with ThreadPoolExecutor(1) as decoder, ThreadPoolExecutor(1) as paster:
        steps = detected(decoder)
        for rows in in_order(ahead(paster, _rows, steps, 2) if beside else map(_rows, steps)):
            yield from rows


def _rows(step: Step) -> dict[int, ImageRows]:
    places, made = step
    return dict(zip(places, made(), strict=True))


def in_order(found: Iterable[Mapping[int, T]]) -> Iterator[T]:
    """What is found at the places 0, 1, 2, ..., each as soon as all before it are there."""
    waiting: dict[int, T] = {}
    place = 0
    for some in found:
        waiting |= some
        while place in waiting:
            yield waiting.pop(place)
            place += 1


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
        for row in job_rows(pool.map(evaluation_rows(missing), Detector, job)):
            info = PartInfo(**row)
            done[info.key] = info
            progress.add(info.images)
    return {key_of(group): done[key_of(group)] for group in groups}
