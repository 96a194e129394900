"""What `scoring` scores, on disk: COCO's truth repeated under new ids, with perturbed masks as detections."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.images import CATEGORIES, data_folder, draw_sample, read_truth
from msrcnn.rle import decode_crop, encode_crops
from msrcnn.rows import ImageDetections, ImageTruth
from pipelines.detection_parts import VERSION, Origin, StoredDetections, key_of, read_parts, write_part
from pipelines.manifest import Manifest, Part, read_manifest, write_manifest
from pipelines.reading import RowGroup, row_groups
from pipelines.schema import DETECTION_ROW, SHARD_ROW, Category, ShardMeta
from pipelines.storage import locate

ROW_GROUP = 64
DRAWN = 64
"""Different images where there are no real ones."""
SHIFT, WRONG = 0.12, 0.2
"""Standard deviation of a mask's shift in parts of its sides; share of detections with a class at random."""

Scored = tuple[ImageTruth, ImageDetections]


@dataclass(frozen=True)
class Stored:
    """A data set on disk and its detections."""

    manifest: Manifest
    groups: list[RowGroup]
    detections: StoredDetections

    @property
    def categories(self) -> list[tuple[int, str]]:
        """Number and name of each."""
        return [(c.number, c.name) for c in self.manifest.categories]


def truths(seed: int) -> tuple[list[ImageTruth], str]:
    """Different images' truth, and where it is from."""
    folder = data_folder()
    if folder is None:
        return [draw_sample(i, seed)[1] for i in range(DRAWN)], "drawn (MSRCNN_DATA is not set)"
    from msrcnn.data.coco import read_coco

    found = []
    for split in ("train", "val"):
        dataset = read_coco(folder / "coco_sample" / "annotations" / f"instances_{split}2017.json")
        numbers = {category.source_id: i for i, category in enumerate(dataset.categories, start=1)}
        found += [read_truth(record, numbers) for record in dataset.images if record.annotations]
    return [t for t in found if len(t.rles)], "COCO train2017 and val2017 samples"


def perturbed(truth: ImageTruth, count: int, rng: np.random.Generator) -> ImageDetections:
    """`count` instances of the image, drawn with repetition and shifted; scores and some classes at random."""
    crops = [decode_crop(rle, truth.height) for rle in truth.rles]
    drawn, corners, boxes = [], [], []
    chosen = rng.integers(0, len(crops), count)
    for g in chosen:
        crop, (left, top, w, h) = crops[g]
        x = int(np.clip(round(left + rng.normal(0, SHIFT) * w), 0, truth.width - w))
        y = int(np.clip(round(top + rng.normal(0, SHIFT) * h), 0, truth.height - h))
        drawn.append(crop.astype(bool))
        corners.append((x, y))
        boxes.append((x, y, x + w, y + h))
    wrong = rng.random(count) < WRONG
    categories = np.where(wrong, rng.integers(1, CATEGORIES + 1, count), truth.categories[chosen])
    rles = encode_crops(drawn, corners, truth.height, truth.width)
    return ImageDetections(
        truth.image_id, categories.astype(np.int32), np.array(boxes, np.float32), np.zeros(count, np.float32),
        np.zeros(count, np.float32), rles,
    )  # fmt: skip


def scenes(images: int, detections: int, seed: int) -> tuple[list[Scored], str]:
    """`images` images: the different ones in turn, each time under another id and with other scores."""
    base, source = truths(seed)
    rng = np.random.default_rng(seed)
    found = [perturbed(truth, detections, rng) for truth in base[:images]]
    scored = []
    for i in range(images):
        truth, of_image = base[i % len(base)], found[i % len(base)]
        scores = rng.random((2, detections)).astype(np.float32)
        annotations = np.arange(len(truth.rles)) + 1000 * i + 1
        scored.append(
            (
                replace(truth, image_id=i + 1, annotation_ids=annotations),
                replace(of_image, image_id=i + 1, class_scores=scores[0], maskious=scores[1]),
            )
        )
    return scored, source


def truth_row(truth: ImageTruth) -> dict[str, object]:
    """A shard row without its image."""
    names = ("annotation_id", "category", "bbox", "area", "iscrowd", "rle")
    columns = zip(truth.annotation_ids.tolist(), truth.categories.tolist(), truth.boxes.tolist(), truth.areas.tolist(),
                  truth.crowd.tolist(), truth.rles, strict=True)  # fmt: skip
    instances = [dict(zip(names, values, strict=True)) for values in columns]
    return {"image_id": truth.image_id, "file_name": "", "height": truth.height, "width": truth.width, "image": b"",
            "instances": instances}  # fmt: skip


def detection_table(scored: Sequence[Scored]) -> pa.Table:
    """Detections as rows."""
    rows = []
    for truth, found in scored:
        common = {"image_id": truth.image_id, "height": truth.height, "width": truth.width}
        names = ("category", "bbox", "class_score", "maskiou", "mask_score", "rle")
        columns = zip(found.categories.tolist(), found.boxes.tolist(), found.class_scores.tolist(),
                      found.maskious.tolist(), found.mask_scores.tolist(), found.rles, strict=True)  # fmt: skip
        rows += [common | dict(zip(names, values, strict=True)) for values in columns]
    return pa.Table.from_pylist(rows, DETECTION_ROW)


def store(scored: Sequence[Scored], folder: Path) -> Stored:
    """Writes one shard and the parts of its row groups."""
    shards = folder / "shards"
    shards.mkdir(parents=True)
    categories = tuple(Category(i, i, str(i)) for i in range(1, CATEGORIES + 1))
    schema = SHARD_ROW.with_metadata(ShardMeta("repeated", categories).to_metadata())
    path = shards / "shard-00000.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, len(scored), ROW_GROUP):
            rows = [truth_row(truth) for truth, _ in scored[begin : begin + ROW_GROUP]]
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=ROW_GROUP)
    content = path.read_bytes()
    instances = sum(len(truth.rles) for truth, _ in scored)
    part = Part(path.name, len(scored), instances, len(content), hashlib.sha256(content).hexdigest())
    write_manifest(Manifest(shards, "repeated", categories, (part,), {}, {}))
    manifest = read_manifest(shards)
    groups, place = row_groups(manifest), locate(folder / "detections")
    place.make_folder()
    origin = Origin("0" * 64, manifest.fingerprint, {"rows": VERSION})
    for number, group in enumerate(groups):
        table = detection_table(scored[number * ROW_GROUP : (number + 1) * ROW_GROUP])
        write_part(place, key_of(group), table, origin)
    return Stored(manifest, groups, read_parts(place, manifest, groups))
