"""Images a second from encoded bytes to a training batch: shards through Ray Data against PyTorch's DataLoader.

ours: Parquet shards stream through Ray Data; bytes travel, and threads of the process that uses them decode, resize,
mirror and pad; masks stay run lengths until they are ragged crops. torchvision: a DataLoader with the transforms of
torchvision's detection reference (polygons to dense masks, mirroring, float pixels) and the resizing and padding that
its Mask R-CNN begins with. same decode: a DataLoader whose processes run our own decoding on rows of the same shards.

All sides have the same cores. A rate counts from the moment the pipeline runs, not from its start. Then a consumer at
half of our rate says how long it waits for data. Needs MSRCNN_DATA.
"""

from __future__ import annotations

import io
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as F

from benchmarks.images import data_folder
from benchmarks.measuring import half_quartile_distance, parser_of, print_result, print_settings
from cluster.session import connect
from msrcnn.backbones import IMAGE_MEAN, IMAGE_STD
from msrcnn.config import DataConfig
from pipelines.ingest import StepImages, TrainingCollate
from pipelines.manifest import Manifest, read_manifest
from pipelines.reading import TrainingPlan, read_rows, row_groups, training_rows
from pipelines.shard import ShardConfig, shard
from pipelines.train_loop import PREFETCH

RAMP = 0.25
"""Share of a side's batches that come before its rate counts: until queues are as full as they stay."""


@dataclass(frozen=True)
class Settings:
    """What each side is given."""

    data: DataConfig
    batch: int
    epochs: int
    workers: int
    seed: int


def reference_masks(segmentation: Any, height: int, width: int) -> np.ndarray:
    """One instance's dense mask, uint8 [height, width], as torchvision's reference makes it of polygons."""
    if isinstance(segmentation, list):
        decoded = coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width))  # [height, width, parts]
        return decoded.any(axis=2).astype(np.uint8)
    return coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width))


class ReferenceDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """torchvision's `CocoDetection` behind `ConvertCocoPolysToMask`, `RandomHorizontalFlip` and `ToDtype`."""

    def __init__(self, coco: COCO, images: Path, epochs: int) -> None:
        self.coco, self.images = coco, images
        self.ids = sorted(coco.imgs) * epochs

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        entry = self.coco.imgs[self.ids[index]]
        height, width = entry["height"], entry["width"]
        image = Image.open(io.BytesIO((self.images / entry["file_name"]).read_bytes())).convert("RGB")
        found = [a for a in self.coco.imgToAnns[entry["id"]] if not a["iscrowd"]]
        masks = [torch.from_numpy(reference_masks(a["segmentation"], height, width)) for a in found]
        target = {
            "boxes": torch.tensor([a["bbox"] for a in found], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([a["category_id"] for a in found], dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8),
        }
        target["boxes"][:, 2:] += target["boxes"][:, :2]
        pixels = F.pil_to_tensor(image)
        if random.random() < 0.5:
            pixels, target["masks"] = pixels.flip(-1), target["masks"].flip(-1)
            target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
        return F.to_dtype(pixels, torch.float32, scale=True), target


class ReferenceCollate:
    """The part of torchvision's Mask R-CNN that makes a batch: normalise, resize images and masks, pad."""

    def __init__(self, data: DataConfig) -> None:
        self.transform = GeneralizedRCNNTransform(data.short_side, data.long_side, list(IMAGE_MEAN), list(IMAGE_STD))

    def __call__(self, samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, Any]:
        images, targets = self.transform([image for image, _ in samples], [target for _, target in samples])
        return images.tensors, targets


class RowDataset(Dataset[dict[str, Any]]):
    """Shard rows, each read where it lies, for a DataLoader that decodes as we do."""

    def __init__(self, manifest: Manifest, epochs: int) -> None:
        groups = row_groups(manifest)
        self.places = [(g.path, g.index, i) for _ in range(epochs) for g in groups for i in range(g.rows)]
        self.last: tuple[str, int] | None = None
        self.table: Any = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        path, group, row = self.places[index]
        if self.last != (path, group):
            self.last, self.table = (path, group), read_rows([path], [group])
        return self.table.slice(row, 1)


class RowCollate:
    """Rows of one image each to our batch."""

    def __init__(self, data: DataConfig, seed: int) -> None:
        self.collate = TrainingCollate(data, seed)

    def __call__(self, rows: list[Any]) -> StepImages:
        import pyarrow as pa

        table = pa.concat_tables(rows)
        zeros = pa.array([0] * len(rows), pa.int32())
        return self.collate(table.append_column("epoch", zeros).append_column("step", zeros))


def one_thread(_: int) -> None:
    """Loader processes compute with one thread each, as many processes as cores."""
    torch.set_num_threads(1)


def loader(dataset: Dataset[Any], collate: Callable[[list[Any]], Any], settings: Settings) -> Iterable[Any]:
    """A DataLoader with a process a core; in order, as ours is shuffled by whole row groups."""
    return DataLoader(
        dataset, batch_size=settings.batch, num_workers=settings.workers, collate_fn=collate, drop_last=True,
        worker_init_fn=one_thread, prefetch_factor=4,
    )  # fmt: skip


def ours(manifest: Manifest, settings: Settings) -> Iterable[Any]:
    """The stream that a training worker reads, through the splitter that Ray Train puts before its workers."""
    steps = manifest.rows // settings.batch
    plan = TrainingPlan(row_groups(manifest), settings.seed, settings.epochs, steps, settings.batch, 1)
    rows = training_rows(plan)
    rows.context.execution_options.preserve_order = True
    (feed,) = rows.streaming_split(1, equal=True)
    collate = TrainingCollate(settings.data, settings.seed)
    return feed.iter_torch_batches(
        batch_size=settings.batch, collate_fn=collate, prefetch_batches=PREFETCH, drop_last=True
    )


def rate_of(batches: Iterable[Any], batch: int) -> float:
    """Images a second over all but the first batches."""
    arrivals = [time.perf_counter() for _ in batches]
    first = int(RAMP * len(arrivals))
    return batch * (len(arrivals) - 1 - first) / (arrivals[-1] - arrivals[first])


def waiting_share(batches: Iterable[Any], batch: int, rate: float) -> float:
    """Share of its time that a consumer of `rate` images a second waits for data once the pipeline runs."""
    waits, spent, asked = [], [], time.perf_counter()
    for _ in batches:
        arrived = time.perf_counter()
        waits.append(arrived - asked)
        time.sleep(batch / rate)
        asked = time.perf_counter()
        spent.append(asked - arrived)
    first = max(1, int(RAMP * len(waits)))
    return sum(waits[first:]) / (sum(waits[first:]) + sum(spent[first:]))


def measure(root: Path, settings: Settings, rounds: int, folder: Path) -> None:
    """Shards the images, lets the sides run in turn, prints."""
    annotations = root / "annotations" / "instances_train2017.json"
    shard(ShardConfig(annotations, root / "train2017", folder / "shards"), log=lambda _: None)
    manifest = read_manifest(folder / "shards")
    coco = COCO(str(annotations))
    sides: dict[str, Callable[[], Iterable[Any]]] = {
        "ours": lambda: ours(manifest, settings),
        "torchvision": lambda: loader(
            ReferenceDataset(coco, root / "train2017", settings.epochs), ReferenceCollate(settings.data), settings
        ),
        "same_decode": lambda: loader(
            RowDataset(manifest, settings.epochs), RowCollate(settings.data, settings.seed), settings
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, start in sides.items():
            rates[name].append(rate_of(start(), settings.batch))
            print(f"round {number + 1}, {name}: {rates[name][-1]:.1f} images/s", flush=True)
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    share = waiting_share(ours(manifest, settings), settings.batch, medians["ours"] / 2)
    print(f"a consumer of {medians['ours'] / 2:.1f} images/s waits {share:.2%} of its time")
    print_result(
        "ingest",
        torch.device("cpu"),
        ratio=float(np.median(np.divide(rates["ours"], rates["torchvision"]))),
        ratio_to_same_decode=float(np.median(np.divide(rates["ours"], rates["same_decode"]))),
        waiting_share_at_half_rate=share,
        **{f"{name}_images_per_second": value for name, value in medians.items()},
        **{f"{name}_spread": half_quartile_distance(values) for name, values in rates.items()},
    )


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__ or "")
    parser.add_argument("--batch", type=int, default=4, help="images a step (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the images a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    arguments = parser.parse_args()
    root = data_folder()
    if root is None:
        print("ingest: set MSRCNN_DATA to the folder that holds coco_sample/", file=sys.stderr)
        sys.exit(2)
    quick = arguments.quick
    data = DataConfig(short_side=200, long_side=333) if quick else DataConfig(short_side=600, long_side=1000)
    settings = Settings(data, arguments.batch, 1 if quick else arguments.epochs, os.cpu_count() or 1, arguments.seed)
    rounds = 1 if quick else arguments.rounds
    print_settings("ingest", torch.device("cpu"), images="COCO train2017 sample", resized_to=data, batch=settings.batch,
                   epochs_a_round=settings.epochs, rounds=rounds, loader_processes=settings.workers)  # fmt: skip
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    with tempfile.TemporaryDirectory() as folder, connect("local"):
        measure(root / "coco_sample", settings, rounds, Path(folder))


if __name__ == "__main__":
    main()
