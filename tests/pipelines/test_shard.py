"""Shards against the annotation file and images they came from, and every way sharding can fail."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from msrcnn.data.rejected import Reason
from msrcnn.errors import InputError
from pipelines.manifest import Manifest, read_manifest, write_manifest
from pipelines.schema import SHARD_ROW, Category, ShardMeta
from pipelines.shard import ShardConfig, shard
from pipelines.shard_job import MIN_SHARDS, SPREAD_IMAGES

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


@pytest.fixture
def little(tmp_path: Path) -> ShardConfig:
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
    return [row for path in read_manifest(folder).paths for row in pq.read_table(path).to_pylist()]


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def check_rows(rows: list[dict[str, Any]], config: ShardConfig) -> int:
    """Compares every row with the images and with what pycocotools reads; returns the number of instances."""
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
            assert instance["bbox"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert instance["area"] == mask.sum()
            assert instance["category"] == numbers[annotation["category_id"]]
            assert instance["iscrowd"] == bool(annotation["iscrowd"])
            instances += 1
    return instances


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_mb": 0}, "shard_mb is 0; expected a whole number from 1 on"),
        ({"row_group": -1}, "row_group is -1; expected"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 on"),
    ],
)
def test_options_out_of_range(little: ShardConfig, changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(little, **changes)


def test_unusable_input_is_refused_before_anything_is_made(little: ShardConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        "absent.json: no such file": replace(little, annotations=tmp_path / "absent.json"),
        "nowhere: no such folder; give --images": replace(little, images=tmp_path / "nowhere"),
        f"none of its 12 images is in .*, for example {tmp_path}/empty/1.png does not": replace(
            little, images=tmp_path / "empty"
        ),
        "little.json: is a file; choose a folder": replace(little, out=little.annotations),
    }
    for message, config in cases.items():
        with pytest.raises(InputError, match=message):
            shard(config)
    assert not little.out.exists()


def test_folder_with_something_else_in_it_is_refused(little: ShardConfig) -> None:
    little.out.mkdir()
    (little.out / "shard-00007.parquet").write_text("somebody's")
    with pytest.raises(InputError, match="shards: is not empty; choose another --out"):
        shard(little)
    assert files_of(little.out) == ["shard-00007.parquet"]


def test_finished_data_set_is_not_overwritten(little: ShardConfig) -> None:
    little.out.mkdir()
    write_manifest(Manifest(little.out, "mine", (), (), {}, {}))
    before = (little.out / "manifest.json").read_text()
    with pytest.raises(InputError, match="already holds data set 'mine'; choose another --out or delete it"):
        shard(little)
    assert (little.out / "manifest.json").read_text() == before
    (little.out / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"already holds an unreadable manifest.json"):
        shard(little)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_little_data_set(little: ShardConfig) -> None:
    little.out.mkdir()
    for leftover in (
        "shard-00007.parquet",
        "shard-00000.parquet.tmp-0123456789ab",
        "rejected.parquet",
        "notes.txt",
        ".unfinished",
    ):
        (little.out / leftover).write_text("from an attempt that was cut off")
    lines: list[str] = []
    report = shard(little, log=lines.append)
    assert (report.rows, report.instances, report.shards, report.rejected) == (12, 44, 1, {})
    assert files_of(little.out) == ["manifest.json", "notes.txt", "shard-00000.parquet"]
    assert check_rows(rows_of(little.out), little) == 44
    manifest = read_manifest(little.out)
    assert (manifest.name, manifest.categories) == ("little", META.categories)
    schema = pq.read_schema(manifest.paths[0])
    assert schema.equals(SHARD_ROW)
    assert ShardMeta.from_metadata(schema.metadata, "shard") == META
    assert any(line.startswith("12/12 images, ") for line in lines)

    again = shard(replace(little, out=little.out.with_name("again")), log=lines.append)
    assert read_manifest(again.out).fingerprint == manifest.fingerprint
    other = shard(replace(little, out=little.out.with_name("other"), seed=1, name="mine"), log=lines.append)
    assert [r["image_id"] for r in rows_of(other.out)] != [r["image_id"] for r in rows_of(little.out)]
    assert read_manifest(other.out).name == "mine"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_is_wrong_is_set_aside_counted_and_told(little: ShardConfig) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["images"].append({**content["images"][0], "id": 50, "file_name": "gone.png"})
        content["images"].append(dict(content["images"][1]))
        content["annotations"][0]["category_id"] = 0
        content["annotations"][1]["segmentation"] = [[1, 1, 2, 2]]
        content["annotations"].append({**content["annotations"][2], "image_id": 77, "id": 78})

    edit(little, spoil)
    (little.images / "2.jpeg").write_bytes(b"broken")
    lines: list[str] = []
    report = shard(little, log=lines.append)
    assert report.rejected == {
        Reason.UNKNOWN_CATEGORY: 1,
        Reason.UNKNOWN_IMAGE: 1,
        Reason.POLYGON: 1,
        Reason.DUPLICATE_IMAGE: 1,
        Reason.IMAGE_MISSING: 1,
        Reason.IMAGE_UNDECODABLE: 1,
    }
    assert read_manifest(little.out).rejected == report.rejected
    rows = {row["image_id"]: row for row in rows_of(little.out)}
    assert sorted(rows) == [1, *range(3, 13)]
    assert [i["annotation_id"] for i in rows[1]["instances"]] == [102, 103]
    assert report.instances == 44 - 2 - 4
    listed = pq.read_table(little.out / "rejected.parquet")
    assert listed.schema.equals(
        pa.schema(
            {
                "image_id": pa.int64(),
                "annotation_id": pa.int64(),
                "reason": pa.string(),
                "detail": pa.string(),
            }
        )
    )
    found = {(row["image_id"], row["annotation_id"], row["reason"]) for row in listed.to_pylist()}
    assert found == {
        (1, 100, Reason.UNKNOWN_CATEGORY),
        (77, 78, Reason.UNKNOWN_IMAGE),
        (1, 101, Reason.POLYGON),
        (2, None, Reason.DUPLICATE_IMAGE),
        (50, None, Reason.IMAGE_MISSING),
        (2, None, Reason.IMAGE_UNDECODABLE),
    }
    told = [line for line in lines if line.startswith("set aside: ")]
    assert len(told) == 6
    assert "set aside: 1 x image undecodable (first: image 2: " in "\n".join(told)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_no_usable_image_leaves_nothing(little: ShardConfig) -> None:
    for path in little.images.rglob("*.*"):
        path.write_bytes(b"broken")
    with pytest.raises(
        InputError, match=r"none of its 12 images can be used \(first: image undecodable: .*\.(png|jpeg)"
    ):
        shard(little, log=lambda _: None)
    assert files_of(little.out) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_stopping_before_the_manifest_leaves_nothing(little: ShardConfig) -> None:
    seen: list[list[str]] = []

    def stop(line: str) -> None:
        if line.startswith("12/12 images"):
            seen.append(files_of(little.out))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard(little, log=stop)
    assert seen == [[".unfinished", "shard-00000.parquet"]]
    assert files_of(little.out) == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("annotations", "images", "rows", "instances"),
    [
        ("coco_sample/annotations/instances_train2017.json", "coco_sample/train2017", 369, 3204),
        ("coco_sample/annotations/instances_val2017.json", "coco_sample/val2017", 165, 1313),
        ("nuclei/annotations/instances_train.json", "nuclei/train", 431, 18972),
        ("nuclei/annotations/instances_val.json", "nuclei/val", 101, 4469),
    ],
)
def test_real_data(
    data_dir: Path,
    tmp_path: Path,
    annotations: str,
    images: str,
    rows: int,
    instances: int,
) -> None:
    config = ShardConfig(data_dir / annotations, data_dir / images, tmp_path / "shards")
    report = shard(config)
    assert (report.rows, report.instances, report.rejected) == (rows, instances, {})
    assert report.shards == (MIN_SHARDS if rows >= SPREAD_IMAGES else 1)
    assert check_rows(rows_of(report.out), config) == instances
