"""Shard rows to batches. Encoded bytes travel; decoding is late, in the threads of the process that uses them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from ray.data.collate_fn import ArrowBatchCollateFn

from msrcnn.config import DataConfig
from msrcnn.data.batching import draw, make_batch
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch


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


class TrainingCollate(ArrowBatchCollateFn):
    """Shard rows to a training batch; runs in several threads."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __call__(self, batch: pa.Table) -> Batch:  # type: ignore[override]  # Ray takes any object
        truths, epochs = truths_of(batch), batch["epoch"].to_pylist()
        draws = [draw(self.seed, e, t.image_id) for e, t in zip(epochs, truths, strict=True)]
        return make_batch(batch["image"].to_pylist(), truths, self.config, draws)
