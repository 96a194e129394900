"""A data set of twelve images in every form that COCO knows, and what its shards must hold."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from pipelines.manifest import read_manifest
from pipelines.parquet import open_parquet
from pipelines.schema import Category, ShardMeta
from pipelines.shard import ShardConfig

SIZE = (30, 40)  # height, width
META = ShardMeta("little", (Category(1, 3, "cat"), Category(2, 17, "dog")))


def encoded(kind: str, seed: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def segmentations() -> list[Any]:
    """One of each form: polygon, two parts, uncompressed, compressed."""
    mask = np.zeros(SIZE, np.uint8)
    mask[3:20, 5:33] = 1
    mask[8:12, 10:15] = 0  # a hole
    rle = mask_utils.encode(np.asfortranarray(mask))["counts"].decode()
    return [
        [[1.5, 2, 20.2, 2, 20, 15.7, 3, 18]],
        [[1, 1, 9, 1, 9, 9], [20, 20, 39, 20, 39, 29, 20, 29]],
        {"size": list(SIZE), "counts": [5, 100, 500, 30, 565]},
        {"size": list(SIZE), "counts": rle},
    ]


def make_little(tmp_path: Path) -> ShardConfig:
    """Twelve images, some in a subfolder, two categories with gaps in their ids; image 12 has no object."""
    images, annotations = [], []
    for image_id in range(1, 13):
        kind = "png" if image_id % 2 else "jpeg"
        name = f"{'sub/' if image_id % 3 == 0 else ''}{image_id}.{kind}"
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(kind, image_id))
        images.append({"id": image_id, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        if image_id == 12:
            continue
        for index, segmentation in enumerate(segmentations()):
            annotations.append(
                {
                    "id": 100 * image_id + index,
                    "image_id": image_id,
                    "category_id": 17 if index % 2 else 3,
                    "segmentation": segmentation,
                    "bbox": [0, 0, 1, 1],  # wrong, and not to be believed
                    "area": 1,
                    "iscrowd": int(index == 2),
                }
            )
    categories = [{"id": 17, "name": "dog"}, {"id": 3, "name": "cat"}]
    path = tmp_path / "little.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return ShardConfig(path, tmp_path / "images", tmp_path / "shards")


def edit(config: ShardConfig, change: Any) -> None:
    """Lets `change` alter the annotation file's content."""
    content = json.loads(config.annotations.read_text())
    change(content)
    config.annotations.write_text(json.dumps(content))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in read_manifest(folder).paths for row in open_parquet(path).read().to_pylist()]


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def check_rows(rows: list[dict[str, Any]], config: ShardConfig, believed: bool = False) -> int:
    """Compares every row with the images and with what pycocotools reads; returns the number of instances.

    Args:
        believed: whether the file's boxes and areas are right, and so are the rows'; else the masks' are, but for the
            areas of crowds, which nothing contradicts.
    """
    coco = COCO(str(config.annotations))
    numbers = {source_id: number for number, source_id in enumerate(sorted(coco.cats), start=1)}
    assert sorted(row["image_id"] for row in rows) == sorted(coco.imgs)
    instances = 0
    for row in rows:
        source = coco.imgs[row["image_id"]]
        assert [row[key] for key in ("file_name", "height", "width")] == [
            source[key] for key in ("file_name", "height", "width")
        ]
        assert row["image"] == (config.images / row["file_name"]).read_bytes()
        annotations = coco.imgToAnns[row["image_id"]]
        assert [i["annotation_id"] for i in row["instances"]] == [a["id"] for a in annotations]
        for instance, annotation in zip(row["instances"], annotations, strict=True):
            mask = mask_utils.decode({"size": [row["height"], row["width"]], "counts": instance["rle"]})
            np.testing.assert_array_equal(mask, coco.annToMask(annotation))
            ys, xs = np.nonzero(mask)
            box, area = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], mask.sum()
            if believed:
                x, y, box_width, box_height = annotation["bbox"]
                box = [x, y, x + box_width, y + box_height]
            if believed or annotation["iscrowd"]:
                area = annotation["area"]
            assert instance["bbox"] == pytest.approx(box, rel=1e-6)
            assert instance["area"] == pytest.approx(area, rel=1e-6)
            assert instance["category"] == numbers[annotation["category_id"]]
            assert instance["iscrowd"] == bool(annotation["iscrowd"])
            instances += 1
    return instances
