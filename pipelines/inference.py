"""The inference stage: shard rows through the network to detection rows, on a pool of Ray Data actors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch

from msrcnn.data.batching import make_batch
from msrcnn.detection_rows import detection_rows
from msrcnn.errors import InputError
from msrcnn.rows import ImageTruth
from msrcnn.structures import Detections
from msrcnn.weights import load_model
from pipelines.ingest import truths_of
from pipelines.schema import DETECTION_ROW
from pipelines.storage import Location, locate, on_disk

ACTOR_CPUS = 0.8
"""What an inference process asks of a machine without GPUs: its readers and writers need the rest of each CPU."""
WRITER_CPUS = 0.1
RESERVED_CPUS = 0.4
"""Left to the readers and writers of a training and of an evaluation beside it."""
LEAST_CPUS = 0.1
"""With less for inference, an evaluation beside a training is refused."""


class Detector:
    """One inference process: a table of shard rows in, a table of detection rows out."""

    def __init__(self, weights: str, gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if gpu else "cpu")
        with on_disk(locate(weights)) as path:
            checkpoint = load_model(path)
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


@dataclass(frozen=True)
class Pool:
    """The processes of the inference stage."""

    actors: int
    threads: int
    cpus: float
    gpus: float

    @classmethod
    def of_cluster(cls, actors: int, gpu: bool) -> Pool:
        """All that the cluster has, at most `actors` processes.

        Raises:
            InputError: GPUs are asked for and there is none.
        """
        resources = ray.cluster_resources()
        available = int(resources.get("GPU" if gpu else "CPU", 0))
        if gpu and available == 0:
            raise InputError("--gpu: the Ray cluster has no GPU; leave it out or join another --address")
        actors = max(1, min(actors, available))
        if gpu:
            return cls(actors, 1, 1.0, 1.0)
        # As many threads as keep all cores of a node busy when fewer processes than cores were asked for.
        node = max(int(n["Resources"].get("CPU", 1)) for n in ray.nodes() if n["Alive"])
        threads = max(1, min(node, available // actors))
        return cls(actors, threads, ACTOR_CPUS * threads, 0.0)

    @classmethod
    def beside(cls, cpus: float, gpus: float) -> Pool | None:
        """What processes that reserve so much leave free of the cluster as it is now; None if that is nothing."""
        resources = ray.cluster_resources()
        left = resources.get("CPU", 0) - cpus - RESERVED_CPUS
        free = min(int(resources.get("GPU", 0) - gpus), int(left))
        if free > 0:
            return cls(free, 1, 1.0, 1.0)
        return cls(max(1, int(left / ACTOR_CPUS)), 1, min(ACTOR_CPUS, left), 0.0) if left >= LEAST_CPUS else None


def infer(rows: ray.data.Dataset, weights: str, batch: int, pool: Pool) -> ray.data.Dataset:
    """The detection rows of a data set of shard rows.

    Args:
        rows: shard rows.
        weights: a model file that every node sees, a local path or a URL.
        batch: images a step.
        pool: of processes.
    """
    share: dict[str, Any] = {"num_cpus": pool.cpus} | ({"num_gpus": pool.gpus} if pool.gpus else {})
    return rows.map_batches(
        Detector,
        fn_constructor_kwargs={"weights": weights, "gpu": pool.gpus > 0, "threads": pool.threads},
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        batch_size=batch,
        batch_format="pyarrow",
        **share,
    )


def store(rows: ray.data.Dataset, folder: Location) -> None:
    """Writes detection rows as Parquet files into `folder`."""
    rows.write_parquet(folder.path, filesystem=folder.filesystem, ray_remote_args={"num_cpus": WRITER_CPUS})
