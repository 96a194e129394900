"""Shards against the annotation file and the images they came from, and every way in which sharding can fail."""

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

from msrcnn.data.coco import ImageRecord
from msrcnn.data.rejected import Reason
from msrcnn.errors import InputError
from pipelines import shard_job
from pipelines.manifest import read_manifest
from pipelines.schema import SHARD_ROW, Category, ShardMeta
from pipelines.shard import ShardConfig, shard
from pipelines.shard_job import MIN_SHARDS, SPREAD_IMAGES, WriteJob, pack, plan_shards, unpack, write_shard

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


def records(sizes: list[int]) -> list[tuple[ImageRecord, int]]:
    return [(ImageRecord(i, f"{i}.png", *SIZE, ()), size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("count", "size", "shards"),
    [
        (1, 10, 1),
        (SPREAD_IMAGES - 1, 10, 1),
        (SPREAD_IMAGES, 10, MIN_SHARDS),
        (600, 1000, MIN_SHARDS),
        (600, 10**5, 30),  # 60 MB at 2 MB a shard
        (3, 10**7, 3),  # images larger than a shard: one each
        (5, 0, 1),  # empty files: rejected later, but planned
    ],
)
def test_plan_holds_every_image_once_in_shards_of_equal_size(count: int, size: int, shards: int) -> None:
    found = records([size] * count)
    plan = plan_shards(found, shard_mb=2, seed=0)
    assert len(plan) == shards
    assert sorted(r.image_id for part in plan for r in part) == list(range(count))
    assert max(map(len, plan)) - min(map(len, plan)) <= 1


def test_plan_balances_bytes() -> None:
    sizes = np.random.default_rng(0).integers(10_000, 400_000, 500).tolist()
    plan = plan_shards(records(sizes), shard_mb=10, seed=0)
    totals = [sum(sizes[r.image_id] for r in part) for part in plan]
    assert len(plan) == -(-sum(sizes) // 10**7)
    assert max(totals) - min(totals) <= 2 * max(sizes)


def test_plan_is_a_function_of_images_and_seed() -> None:
    found = records([1000] * 300)

    def order(seed: int, images: list[tuple[ImageRecord, int]]) -> list[int]:
        return [r.image_id for part in plan_shards(images, shard_mb=64, seed=seed) for r in part]

    assert order(0, found) == order(0, found[::-1])
    assert order(0, found) != order(1, found)
    assert order(0, found) != sorted(order(0, found))


def job_in(tmp_path: Path, row_group: int = 64) -> WriteJob:
    (tmp_path / "images").mkdir()
    (tmp_path / "out").mkdir()
    return WriteJob(str(tmp_path / "images"), str(tmp_path / "out"), META, row_group)


def test_task_sets_bad_images_aside(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    whole = encoded("png", 0, (300, 400))
    contents = {
        "good.png": encoded("png", 0),
        "truncated.jpg": encoded("jpeg", 0)[:-300],
        "truncated.png": whole[: len(whole) // 2],
        "text.jpg": b"not an image",
        "empty.jpg": b"",
        "turned.png": encoded("png", 0, SIZE[::-1]),
    }
    for name, content in contents.items():
        (tmp_path / "images" / name).write_bytes(content)
    names = [*contents, "gone.jpg"]
    sizes = {"truncated.png": (300, 400)}
    annotation = {"id": 5, "image_id": 1, "category_id": 3, "segmentation": segmentations()[0]}
    bad = {**annotation, "id": 6, "segmentation": [[1, 1, 2]]}
    images = [ImageRecord(i, name, *sizes.get(name, SIZE), (annotation, bad)) for i, name in enumerate(names)]
    written = unpack(write_shard(pack(3, images), job))
    assert [(r.image_id, r.annotation_id, r.reason) for r in written.rejected] == [
        (0, 6, Reason.POLYGON),
        (1, None, Reason.IMAGE_UNDECODABLE),
        (2, None, Reason.IMAGE_UNDECODABLE),
        (3, None, Reason.IMAGE_UNDECODABLE),
        (4, None, Reason.IMAGE_UNDECODABLE),
        (5, None, Reason.IMAGE_SIZE),
        (6, None, Reason.IMAGE_MISSING),
    ]
    assert "30x40 pixels, the annotation file says 40x30 (with 2 annotations)" in written.rejected[5].detail
    assert written.images == 7
    assert written.part is not None
    assert (written.part.file, written.part.rows, written.part.instances) == ("shard-00003.parquet", 1, 1)
    assert pq.read_table(tmp_path / "out" / written.part.file)["file_name"].to_pylist() == ["good.png"]


def test_task_without_a_good_image_writes_no_file(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    written = unpack(write_shard(pack(0, [ImageRecord(1, "gone.png", *SIZE, ())]), job))
    assert written.part is None
    assert len(written.rejected) == 1
    assert files_of(tmp_path / "out") == []


def test_task_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_in(tmp_path, row_group=1)
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_bytes(encoded("png", 0))
    annotation = {"id": 5, "image_id": 2, "category_id": 3, "segmentation": segmentations()[0]}
    images = [ImageRecord(1, "a.png", *SIZE, ()), ImageRecord(2, "b.png", *SIZE, (annotation,))]
    seen: list[list[str]] = []

    def fail(*_: Any) -> None:
        seen.append(files_of(tmp_path / "out"))
        raise RuntimeError("power cut")

    monkeypatch.setattr(shard_job, "read_instance", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(pack(0, images), job)
    assert [name.startswith("shard-00000.parquet.tmp-") for name in seen[0]] == [True]  # it had begun, aside
    assert files_of(tmp_path / "out") == []


def test_task_repeated_gives_the_same_file_in_row_groups(tmp_path: Path) -> None:
    job = job_in(tmp_path, row_group=4)
    images = []
    for image_id in range(10):
        (tmp_path / "images" / f"{image_id}.png").write_bytes(encoded("png", image_id))
        images.append(ImageRecord(image_id, f"{image_id}.png", *SIZE, ()))
    first, second = (unpack(write_shard(pack(0, images), job)).part for _ in range(2))
    assert first == second
    assert files_of(tmp_path / "out") == ["shard-00000.parquet"]
    metadata = pq.read_metadata(tmp_path / "out" / "shard-00000.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 2]
    columns = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)]
    codecs = {column.path_in_schema: column.compression for column in columns}
    assert codecs["image"] == "UNCOMPRESSED"
    assert {codec for path, codec in codecs.items() if path.startswith("instances.")} == {"ZSTD"}
    assert [c.path_in_schema for c in columns if c.is_stats_set] == ["image_id"]  # no pixels in the footer


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
        "no cluster answers there": replace(little, address="127.0.0.1:1"),
    }
    for message, config in cases.items():
        with pytest.raises(InputError, match=message):
            shard(config)
    assert not little.out.exists()


def finished(folder: Path) -> Path:
    """A data set of one shard, made without Ray."""
    from pipelines.manifest import Manifest, write_manifest

    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(encoded("png", 0))
    job = WriteJob(str(folder / "images"), str(folder), META, 64)
    part = unpack(write_shard(pack(0, [ImageRecord(1, "a.png", *SIZE, ())]), job)).part
    assert part is not None
    write_manifest(Manifest(folder, META.name, META.categories, (part,), {"reason": 2}, {"seed": 0}))
    return folder


def test_manifest_comes_back_and_fingerprint_follows_content(tmp_path: Path) -> None:
    folder = finished(tmp_path / "a")
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.categories, manifest.rows) == ("little", META.categories, 1)
    assert manifest.paths == [str(folder / "shard-00000.parquet")]
    assert (manifest.rejected, manifest.source) == ({"reason": 2}, {"seed": 0})
    assert manifest.fingerprint == read_manifest(finished(tmp_path / "b")).fingerprint
    other = replace(manifest, parts=(replace(manifest.parts[0], sha256="0" * 64),))
    assert other.fingerprint != manifest.fingerprint


def test_broken_manifests(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest.json; make shards with `msrcnn shard`"):
        read_manifest(tmp_path)
    folder = finished(tmp_path / "set")
    path = folder / "manifest.json"
    text = path.read_text()
    for content, message in [
        (text[:50], "not a manifest of shards"),
        ("[]", "not a manifest of shards"),
        (text.replace('"parts"', '"pieces"'), "the key 'parts' is missing"),
        (text.replace('"version": 1', '"version": 99'), "shard version 99, this program reads 1"),
    ]:
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_manifest(folder)
    path.write_text(text)
    part = folder / "shard-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"shard-00000.parquet: \d+ bytes, the manifest says \d+"):
        read_manifest(folder)
    part.unlink()
    with pytest.raises(InputError, match=r"shard-00000.parquet: missing"):
        read_manifest(folder)


def test_finished_data_set_is_not_overwritten(little: ShardConfig) -> None:
    finished(little.out)
    before = (little.out / "manifest.json").read_text()
    with pytest.raises(InputError, match="already holds data set 'little'; choose another --out or delete it"):
        shard(little)
    assert (little.out / "manifest.json").read_text() == before
    (little.out / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"already holds an unreadable manifest.json"):
        shard(little)


@pytest.mark.ray
def test_little_data_set(little: ShardConfig, ray_session: None) -> None:
    little.out.mkdir()
    for leftover in ("shard-00007.parquet", "shard-00000.parquet.tmp-0123456789ab", "rejected.parquet", "notes.txt"):
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
def test_what_is_wrong_is_set_aside_counted_and_told(little: ShardConfig, ray_session: None) -> None:
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
            {"image_id": pa.int64(), "annotation_id": pa.int64(), "reason": pa.string(), "detail": pa.string()}
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
def test_no_usable_image_leaves_nothing(little: ShardConfig, ray_session: None) -> None:
    for path in little.images.rglob("*.*"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"none of its 12 images can be used \(first: image undecodable: .*\.(png|jpeg)"):
        shard(little, log=lambda _: None)
    assert files_of(little.out) == []


@pytest.mark.ray
def test_stopping_before_the_manifest_leaves_nothing(little: ShardConfig, ray_session: None) -> None:
    seen: list[list[str]] = []

    def stop(line: str) -> None:
        if line.startswith("12/12 images"):
            seen.append(files_of(little.out))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard(little, log=stop)
    assert seen == [["shard-00000.parquet"]]
    assert files_of(little.out) == []


@pytest.mark.slow
@pytest.mark.ray
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
    data_dir: Path, ray_session: None, tmp_path: Path, annotations: str, images: str, rows: int, instances: int
) -> None:
    config = ShardConfig(data_dir / annotations, data_dir / images, tmp_path / "shards")
    report = shard(config)
    assert (report.rows, report.instances, report.rejected) == (rows, instances, {})
    assert report.shards == (MIN_SHARDS if rows >= SPREAD_IMAGES else 1)
    assert check_rows(rows_of(report.out), config) == instances
