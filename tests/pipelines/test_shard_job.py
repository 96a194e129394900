"""The plan of shards, and the task that writes one: what it sets aside, and what it leaves when it fails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msrcnn.data.coco import ImageRecord
from msrcnn.data.rejected import Reason
from pipelines import shard_job
from pipelines.schema import Category, ShardMeta
from pipelines.shard_job import MIN_SHARDS, SPREAD_IMAGES, WriteJob, pack, plan_shards, unpack, write_shard

SIZE = (30, 40)  # height, width
META = ShardMeta("little", (Category(1, 3, "cat"), Category(2, 17, "dog")))
POLYGON = [[1.5, 2, 20.2, 2, 20, 15.7, 3, 18]]


def encoded(kind: str, seed: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


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
    annotation = {"id": 5, "image_id": 1, "category_id": 3, "segmentation": POLYGON}
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
    annotation = {"id": 5, "image_id": 2, "category_id": 3, "segmentation": POLYGON}
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
