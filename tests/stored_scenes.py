"""Images' truth and detections as shards and parts on disk, without pixels or a network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from msrcnn.rows import ImageDetections, ImageTruth
from pipelines.detection_parts import DETECTIONS, VERSION, Origin, StoredDetections, read_parts, write_part
from pipelines.manifest import Manifest, Part, read_manifest, write_manifest
from pipelines.reading import RowGroup, row_groups
from pipelines.schema import DETECTION_ROW, SHARD_ROW, Category, ShardMeta
from pipelines.storage import locate
from pipelines.stored_rows import truths_of

FAILED = "image {}: not a readable image"


def truth_row(truth: ImageTruth, image: bytes = b"") -> dict[str, Any]:
    """One image as a shard row."""
    names = ("annotation_id", "category", "bbox", "area", "iscrowd", "rle")
    columns = zip(
        truth.annotation_ids.tolist(), truth.categories.tolist(), truth.boxes.tolist(), truth.areas.tolist(),
        truth.crowd.tolist(), truth.rles, strict=True,
    )  # fmt: skip
    instances = [dict(zip(names, values, strict=True)) for values in columns]
    return {"image_id": truth.image_id, "file_name": f"{truth.image_id}.jpg", "height": truth.height,
            "width": truth.width, "image": image, "instances": instances}  # fmt: skip


def result_rows(truth: ImageTruth, found: ImageDetections | None) -> list[dict[str, Any]]:
    """The detections of one image as rows; None: it failed."""
    common = {"image_id": truth.image_id, "height": truth.height, "width": truth.width}
    if found is None:
        return [common | {"error": FAILED.format(truth.image_id)}]
    names = ("category", "bbox", "class_score", "maskiou", "worth", "maskious", "mask_score", "rle")
    none = [None] * len(found.rles)
    of_heads = none if found.head_maskious is None else found.head_maskious.tolist()
    worths = none if found.worths is None else found.worths
    columns = zip(
        found.categories.tolist(), found.boxes.tolist(), found.class_scores, found.maskious, worths, of_heads,
        found.mask_scores, found.rles, strict=True,
    )  # fmt: skip
    return [common | dict(zip(names, values, strict=True)) for values in columns] or [common]


def write_shards(
    folder: Path, truths: Sequence[ImageTruth], categories: Sequence[tuple[int, str]], files: int, row_group: int,
    images: dict[int, bytes] | None = None,
) -> Manifest:  # fmt: skip
    """A finished data set of `files` shards.

    Args:
        categories: source id and name of each.
        images: the encoded bytes of those that have any, by id.
    """
    folder.mkdir(parents=True)
    listed = tuple(Category(i, source, name) for i, (source, name) in enumerate(categories, start=1))
    schema = SHARD_ROW.with_metadata(ShardMeta("scenes", listed).to_metadata())
    rows = [truth_row(truth, (images or {}).get(truth.image_id, b"")) for truth in truths]
    parts = []
    for i in range(files):
        path = folder / f"shard-{i:05d}.parquet"
        mine = rows[len(rows) * i // files : len(rows) * (i + 1) // files]
        pq.write_table(pa.Table.from_pylist(mine, schema), path, row_group_size=row_group)
        content = path.read_bytes()
        instances = sum(len(row["instances"]) for row in mine)
        parts.append(Part(path.name, len(mine), instances, len(content), hashlib.sha256(content).hexdigest()))
    write_manifest(Manifest(folder, "scenes", listed, tuple(parts), {}, {}))
    return read_manifest(folder)


def write_detections(
    folder: str | Path, manifest: Manifest, found: dict[int, ImageDetections | None], model: str = "0" * 64,
    heads: Sequence[str] = (), inference: Mapping[str, Any] | None = None,
) -> tuple[list[RowGroup], StoredDetections]:  # fmt: skip
    """The parts of all row groups, in FOLDER/detections; images that are not in `found` have no row at all.

    Args:
        heads: names of the further MaskIoU heads whose predictions are in `found`.
        inference: in what the model detected otherwise than its file says.
    """
    place = locate(folder) / DETECTIONS
    place.make_folder()
    groups = row_groups(manifest)
    settings = {"rows": VERSION, "heads": list(heads)} | ({"inference": inference} if inference else {})
    origin = Origin(model, manifest.fingerprint, settings)
    for group in groups:
        truths = truths_of(pq.ParquetFile(group.path).read_row_group(group.index))
        rows = [row for t in truths if t.image_id in found for row in result_rows(t, found[t.image_id])]
        write_part(place, (group.shard, group.index), pa.Table.from_pylist(rows, DETECTION_ROW), origin)
    return groups, read_parts(place, manifest, groups)


def coco_of(truths: Sequence[ImageTruth], categories: Sequence[tuple[int, str]]) -> Any:
    """The truth as pycocotools takes it, under the categories' source ids."""
    from pycocotools.coco import COCO

    truth = COCO()
    truth.dataset = {
        "images": [{"id": t.image_id, "height": t.height, "width": t.width} for t in truths],
        "categories": [{"id": source, "name": name} for source, name in categories],
        "annotations": [
            {
                "id": len(truths) * int(t.annotation_ids[g]) + n + 1, "image_id": t.image_id,
                "category_id": categories[t.categories[g] - 1][0], "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(t.areas[g]), "iscrowd": int(t.crowd[g]),
                "segmentation": {"size": [t.height, t.width], "counts": t.rles[g]},
            }
            for n, t in enumerate(truths)
            for g, (x0, y0, x1, y1) in enumerate(t.boxes.tolist())
        ],
    }  # fmt: skip
    truth.createIndex()
    return truth


def official(truth: Any, results: Path, kind: str) -> list[float]:
    """pycocotools' 12 numbers for a results file, nan for its -1."""
    from pycocotools.cocoeval import COCOeval

    evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float("nan") if value == -1 else float(value) for value in evaluation.stats]
