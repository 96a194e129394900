"""Shards against the annotation file and images they came from, and every way sharding can fail."""

from __future__ import annotations

import io
import json
import shutil
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

from msrcnn.data.corrections import Correction
from msrcnn.data.rejected import Reason
from msrcnn.errors import InputError
from pipelines.manifest import Manifest, read_manifest, write_manifest
from pipelines.options import VerifyConfig
from pipelines.part_records import begin
from pipelines.schema import SHARD_ROW, Category, ShardMeta
from pipelines.shard import ShardConfig, shard
from pipelines.shard_plan import MIN_SHARDS, SPREAD_IMAGES, make_plan
from pipelines.storage import locate, open_parquet
from pipelines.verify import verify

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
    return [row for path in read_manifest(folder).paths for row in open_parquet(path).read().to_pylist()]


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
        ({"shard_mb": 0}, "--shard-mb = 0 is not accepted; it must be at least 1"),
        ({"row_group": -1}, "--row-group = -1 is not accepted"),
        ({"seed": -1}, "--seed = -1 is not accepted; it must be 0 or more"),
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
    lines: list[str] = []
    report = shard(little, log=lines.append)
    assert (report.rows, report.instances, report.shards, report.rejected) == (12, 44, 1, {})
    assert report.corrected == {Correction.BOX: 44, Correction.AREA: 33}  # crowds' areas are not compared
    assert "corrected: 44 x box does not match the mask, now the mask's (first: image " in "\n".join(lines)
    assert any(line.startswith("12/12 images, ") for line in lines)
    assert files_of(little.out) == ["manifest.json", "shard-00000.parquet"]
    assert check_rows(rows_of(little.out), little) == 44
    manifest = read_manifest(little.out)
    assert (manifest.name, manifest.categories) == ("little", META.categories)
    assert manifest.corrected == report.corrected
    lines.clear()
    assert replace(shard(little, log=lines.append), seconds=0) == replace(report, seconds=0)
    assert lines == [f"{little.out}: already sharded, nothing to do"]
    with pytest.raises(InputError, match=r"already holds data set 'little'; .* \(seed 0, now 1\)$"):
        shard(replace(little, seed=1), log=lines.append)
    verify(VerifyConfig(little.out), lines.append)
    schema = pq.read_schema(manifest.paths[0])
    assert schema.equals(SHARD_ROW)
    assert ShardMeta.from_metadata(schema.metadata, "shard") == META

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
        Reason.CATEGORY_ZERO: 1,
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
        (1, 100, Reason.CATEGORY_ZERO),
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
        InputError, match=r"none of its 12 images can be used \(for example image undecodable: .*\.(png|jpeg)"
    ):
        shard(little, log=lambda _: None)
    assert files_of(little.out) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_every_kind_of_dirt_once_and_the_good_rows_intact(little: ShardConfig) -> None:
    """Each image or annotation that is spoiled here is set aside for one reason; everything else is as it was."""

    def spoil(content: dict[str, Any]) -> None:
        images, annotations = content["images"], {a["id"]: a for a in content["annotations"]}
        images += [{**images[0], "id": 50, "file_name": "gone.png"}, dict(images[1])]
        images += [{**images[0], "id": 51, "height": "30"}, {**images[0], "id": 52, "file_name": "sub/../1.png"}]
        square = annotations[400]
        content["annotations"] += [
            {**square, "id": 9901, "image_id": 77}, {**square, "id": 9902, "category_id": 5}, dict(square),
            {**square, "id": 9903, "category_id": 0}, "an annotation",
        ]  # fmt: skip
        size = list(SIZE)
        for annotation_id, segmentation in {
            400: [[1, 1, 9, 9]],
            401: [[1, 1, float("nan"), 1, 9, 9]],
            402: [[1, 1, float("inf"), 1, 9, 9]],
            403: [[-20, -20, -10, -20, -10, -10]],
            500: [[1, 1, 9e9, 1, 9, 9]],
            501: {"size": SIZE[::-1], "counts": [1200]},
            502: {"size": size, "counts": "0"},
            503: {"size": size, "counts": [1200]},
            600: {"size": size, "counts": [100, 50]},
            601: None,
        }.items():
            annotations[annotation_id]["segmentation"] = segmentation

    def write(name: str, content: bytes) -> None:
        (little.images / name).write_bytes(content)

    edit(little, spoil)
    write("2.jpeg", b"<html>404 not found</html>")
    write("7.png", encoded("png", 7)[:900])
    write("8.jpeg", b"")
    write("10.jpeg", encoded("jpeg", 10, SIZE[::-1]))
    report = shard(little, log=lambda _: None)
    spoiled = {
        Reason.IMAGE_RECORD: [51], Reason.DUPLICATE_IMAGE: [2], Reason.IMAGE_MISSING: [50],
        Reason.IMAGE_UNDECODABLE: [2], Reason.IMAGE_TRUNCATED: [7, 8], Reason.IMAGE_SIZE: [10],
        Reason.ANNOTATION_RECORD: [None, 601], Reason.DUPLICATE_ANNOTATION: [400], Reason.UNKNOWN_IMAGE: [9901],
        Reason.UNKNOWN_CATEGORY: [9902], Reason.CATEGORY_ZERO: [9903], Reason.POLYGON: [400, 401, 402, 500],
        Reason.RLE: [501, 502, 600], Reason.EMPTY_MASK: [403, 503],
    }  # fmt: skip
    assert set(spoiled) == set(Reason)
    assert report.rejected == {reason: len(ids) for reason, ids in spoiled.items()}
    listed: dict[str, list[int]] = {}
    for row in pq.read_table(little.out / "rejected.parquet").to_pylist():
        of_image = row["reason"].startswith("image") or row["reason"] == Reason.DUPLICATE_IMAGE
        listed.setdefault(row["reason"], []).append(row["image_id" if of_image else "annotation_id"])
    assert {k: sorted(v, key=str) for k, v in listed.items()} == {k: sorted(v, key=str) for k, v in spoiled.items()}

    def without_spoiled(content: dict[str, Any]) -> None:
        seen = {0}
        content["images"] = [
            i for i in content["images"]
            if i["id"] not in {2, 7, 8, 10, 50, 51} and not (i["id"] in seen or seen.add(i["id"]))
        ]  # fmt: skip
        bad = {400, 401, 402, 403, 500, 501, 502, 503, 600, 601, 9901, 9902, 9903}
        content["annotations"] = [
            a for a in content["annotations"]
            if isinstance(a, dict) and a["id"] not in bad and a["image_id"] in {i["id"] for i in content["images"]}
        ]  # fmt: skip

    edit(little, without_spoiled)
    assert check_rows(rows_of(little.out), little) == report.instances == 44 - 4 * 4 - 10
    assert report.rows == 12 - 4 + 1
    verify(VerifyConfig(little.out), lambda _: None)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_strict_fails_instead_and_leaves_nothing(little: ShardConfig) -> None:
    strict = replace(little, strict=True)
    (little.images / "2.jpeg").write_bytes(b"broken")
    (little.images / "4.jpeg").write_bytes(encoded("jpeg", 4)[:300])
    told = r"1 x image truncated, 1 x image undecodable \(first: image \d: .*\); nothing was kept, because of --strict$"
    with pytest.raises(InputError, match=rf"little.json: {told}"):
        shard(strict, log=lambda _: None)
    assert files_of(little.out) == []
    edit(little, lambda content: content["annotations"][0].update(category_id=0))
    told = r"annotation of category 0, which does not exist \(first: image 1, annotation 100: annotations\[0\]: .*\)"
    with pytest.raises(InputError, match=rf"1 x {told}; nothing was written, because of --strict$"):
        shard(replace(strict, out=little.out / "new"), log=lambda _: None)
    assert files_of(little.out) == []
    edit(little, lambda content: content["annotations"][0].update(category_id=3))
    for name in ("2.jpeg", "4.jpeg"):
        (little.images / name).write_bytes(encoded("jpeg", int(name[0])))
    assert shard(strict, log=lambda _: None).rejected == {}  # what is only corrected is no failure


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_test_set_without_annotations(little: ShardConfig) -> None:
    edit(little, lambda content: content.pop("annotations"))
    report = shard(little, log=lambda _: None)
    assert (report.rows, report.instances, report.rejected, report.corrected) == (12, 0, {}, {})
    assert {tuple(row["instances"]) for row in rows_of(little.out)} == {()}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_urls_in_and_out(little: ShardConfig) -> None:
    plain = shard(little, log=lambda _: None)
    config = replace(little, annotations=f"file://{little.annotations}", images=f"file://{little.images}",
                     out=f"file://{little.out}-2")  # fmt: skip
    report = shard(config, log=lambda _: None)
    manifest = read_manifest(config.out)
    assert manifest.paths == [f"file://{little.out}-2/shard-00000.parquet"]
    assert manifest.fingerprint == read_manifest(little.out).fingerprint
    assert (report.rows, report.corrected) == (plain.rows, plain.corrected)
    verify(VerifyConfig(config.out), lambda _: None)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_error_of_a_task_reaches_the_user_as_one_line(little: ShardConfig) -> None:
    """A folder of the shard's name, so that the shard cannot be put in place."""

    def block(line: str) -> None:
        if "shards in" in line:
            begin(locate(little.out), make_plan(little, locate(little.annotations), locate(little.images)).source)
            (little.out / "shard-00000.parquet" / "x").mkdir(parents=True)

    with pytest.raises(
        InputError, match=r"shard-00000.parquet: cannot be written \(Is a directory\); put that right"
    ) as e:
        shard(little, log=block)
    assert "\n" not in str(e.value)
    shutil.rmtree(little.out / "shard-00000.parquet")
    assert files_of(little.out) == [".unfinished"]
    assert shard(little, log=lambda _: None).rows == 12


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
    assert (report.rows, report.instances, report.rejected, report.corrected) == (rows, instances, {}, {})
    assert report.shards == (MIN_SHARDS if rows >= SPREAD_IMAGES else 1)
    assert check_rows(rows_of(config.out), config) == instances
