"""The inference stage: shard rows through the network to detection rows, on a pool of Ray Data actors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch

from msrcnn.data.batching import make_batch
from msrcnn.errors import InputError
from msrcnn.masks import paste_and_encode
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch, Detections
from msrcnn.weights import load_model
from pipelines.ingest import truths_of
from pipelines.schema import DETECTION_ROW

ACTOR_CPUS = 0.8
"""What an inference process asks of a machine without GPUs: its readers and writers need the rest of each CPU."""
WRITER_CPUS = 0.1


def detection_rows(batch: Batch, found: Detections, images: list[ImageTruth]) -> list[dict[str, Any]]:
    """Detections as rows of `DETECTION_ROW`, masks pasted and encoded at image resolution.

    An image without a detection gives one row whose category is null.
    """
    found = found.to("cpu")
    scores = found.mask_scores
    rows: list[dict[str, Any]] = []
    for b, truth in enumerate(images):
        common = {"image_id": truth.image_id, "height": truth.height, "width": truth.width}
        valid = found.valid[b]
        boxes = found.boxes[b, valid] / batch.scales[b].flip(0).repeat(2)  # [n, 4]: divided by x, y, x, y scale
        limit = torch.tensor([truth.width, truth.height] * 2)
        boxes = torch.minimum(boxes, limit)
        rles = paste_and_encode(found.masks[b, valid], boxes, truth.height, truth.width)
        columns = zip(
            found.labels[b, valid].tolist(), boxes.tolist(), found.class_scores[b, valid].tolist(),
            found.maskious[b, valid].tolist(), scores[b, valid].tolist(), rles, strict=True,
        )  # fmt: skip
        names = ("category", "bbox", "class_score", "maskiou", "mask_score", "rle")
        rows += [common | dict(zip(names, values, strict=True)) for values in columns] or [common]
    return rows


class Detector:
    """One inference process: a table of shard rows in, a table of detection rows out."""

    def __init__(self, weights: str, gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if gpu else "cpu")
        checkpoint = load_model(Path(weights))
        self.model, self.data = checkpoint.model.to(self.device), checkpoint.data

    def __call__(self, table: pa.Table) -> pa.Table:
        truths, images = truths_of(table), table["image"].to_pylist()
        try:
            rows = self.detect(images, truths)
        except InputError:  # one bad image must not cost the others of its batch
            rows = [row for image, truth in zip(images, truths, strict=True) for row in self.attempt(image, truth)]
        return pa.Table.from_pylist(rows, schema=DETECTION_ROW)

    def attempt(self, image: bytes, truth: ImageTruth) -> list[dict[str, Any]]:
        """The rows of one image, or one row that says why there are none."""
        try:
            return self.detect([image], [truth])
        except InputError as error:
            return [
                {
                    "image_id": truth.image_id,
                    "height": truth.height,
                    "width": truth.width,
                    "error": str(error),
                }
            ]

    def detect(self, images: list[bytes], truths: list[ImageTruth]) -> list[dict[str, Any]]:
        """The rows of a batch of images."""
        batch = make_batch(images, truths, self.data)
        found: Detections = self.model(batch.to(self.device, non_blocking=True))
        return detection_rows(batch, found, truths)


def infer(rows: ray.data.Dataset, weights: Path, *, batch: int, actors: int, gpu: bool) -> ray.data.Dataset:
    """The detection rows of a data set of shard rows.

    Args:
        rows: shard rows.
        weights: a model file that every node sees.
        batch: images a step.
        actors: inference processes, but no more than the cluster has GPUs or CPUs.
        gpu: one GPU each.
    """
    resources = ray.cluster_resources()
    available = int(resources.get("GPU" if gpu else "CPU", 0))
    if gpu and available == 0:
        raise InputError("--gpu: the Ray cluster has no GPU; leave it out or join another --address")
    actors = max(1, min(actors, available))
    # On CPUs, as many threads as keep all cores of a node busy when fewer processes than cores were asked for.
    node = max(int(n["Resources"].get("CPU", 1)) for n in ray.nodes() if n["Alive"])
    threads = 1 if gpu else max(1, min(node, available // actors))
    share = {"num_gpus": 1, "num_cpus": 1} if gpu else {"num_cpus": ACTOR_CPUS * threads}
    return rows.map_batches(
        Detector,
        fn_constructor_kwargs={"weights": str(weights), "gpu": gpu, "threads": threads},
        compute=ray.data.ActorPoolStrategy(size=actors),
        batch_size=batch,
        batch_format="pyarrow",
        **share,
    )


def store(rows: ray.data.Dataset, folder: Path) -> None:
    """Writes detection rows as Parquet files into `folder`."""
    rows.write_parquet(str(folder), ray_remote_args={"num_cpus": WRITER_CPUS})
