"""The task that writes a shard: what it sets aside, what it leaves when it fails, on every kind of storage."""

from __future__ import annotations

import errno
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs

from msrcnn.data.coco import ImageRecord, read_coco
from msrcnn.data.corrections import Correction
from msrcnn.data.rejected import Reason
from msrcnn.errors import InputError
from msrcnn.metrics.coco_ap import METRICS, CocoAP
from pipelines import shard_job
from pipelines.part_records import parse_record
from pipelines.schema import Category, ShardMeta
from pipelines.shard_job import WriteJob, pack, write_shard
from pipelines.storage import Location, locate
from pipelines.stored_rows import truths_of
from tests.little import META, SIZE, encoded, files_of
from tests.reference import reference_scenes

POLYGON = [[1.5, 2, 20.2, 2, 20, 15.7, 3, 18]]


def job_in(tmp_path: Path, row_group: int = 64) -> WriteJob:
    (tmp_path / "images").mkdir()
    (tmp_path / "out").mkdir()
    return WriteJob(locate(tmp_path / "images"), locate(tmp_path / "out"), META, row_group, "plan")


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
    written = write_shard(3, pack(images), job)
    assert [(r.image_id, r.annotation_id, r.reason) for r in written.rejected] == [
        (0, 6, Reason.POLYGON),
        (1, None, Reason.IMAGE_TRUNCATED),
        (2, None, Reason.IMAGE_TRUNCATED),
        (3, None, Reason.IMAGE_UNDECODABLE),
        (4, None, Reason.IMAGE_TRUNCATED),
        (5, None, Reason.IMAGE_SIZE),
        (6, None, Reason.IMAGE_MISSING),
    ]
    assert written.rejected[5].detail == "turned.png: 30 x 40 pixels where 40 x 30 are stated (with 2 annotations)"
    assert parse_record((tmp_path / "out" / "shard-00003.json").read_bytes()) == written
    assert written.images == 7
    assert written.part is not None
    assert (written.part.file, written.part.rows, written.part.instances) == ("shard-00003.parquet", 1, 1)
    assert pq.read_table(tmp_path / "out" / written.part.file)["file_name"].to_pylist() == ["good.png"]


def test_task_without_a_good_image_writes_no_file(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    written = write_shard(0, pack([ImageRecord(1, "gone.png", *SIZE, ())]), job)
    assert written.part is None
    assert len(written.rejected) == 1
    assert files_of(tmp_path / "out") == ["shard-00000.json"]  # so that it is not tried again


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
        write_shard(0, pack(images), job)
    assert [name.startswith("shard-00000.parquet.tmp-") for name in seen[0]] == [True]  # it had begun, aside
    assert files_of(tmp_path / "out") == []


def test_task_repeated_gives_the_same_file_in_row_groups(tmp_path: Path) -> None:
    job = job_in(tmp_path, row_group=4)
    images = []
    for image_id in range(10):
        (tmp_path / "images" / f"{image_id}.png").write_bytes(encoded("png", image_id))
        images.append(ImageRecord(image_id, f"{image_id}.png", *SIZE, ()))
    first, second = (write_shard(0, pack(images), job) for _ in range(2))
    assert first == second
    assert files_of(tmp_path / "out") == ["shard-00000.json", "shard-00000.parquet"]
    metadata = pq.read_metadata(tmp_path / "out" / "shard-00000.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 2]
    columns = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)]
    codecs = {column.path_in_schema: column.compression for column in columns}
    assert codecs["image"] == "UNCOMPRESSED"
    assert {codec for path, codec in codecs.items() if path.startswith("instances.")} == {"ZSTD"}
    assert [c.path_in_schema for c in columns if c.is_stats_set] == ["image_id"]  # no pixels in the footer


def test_task_counts_boxes_and_areas_that_masks_contradict(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    (tmp_path / "images" / "a.png").write_bytes(encoded("png", 0))
    right = {"id": 5, "image_id": 1, "category_id": 3, "segmentation": POLYGON, "bbox": [1.5, 2, 18.7, 16], "area": 250}
    wrong = [{**right, "id": 6, "bbox": [2, 1.5, 16, 90]}, {**right, "id": 7, "bbox": [0, 0, 1, 1], "area": 1}]
    silent = {name: right[name] for name in ("id", "image_id", "category_id", "segmentation")} | {"id": 8}
    written = write_shard(0, pack([ImageRecord(1, "a.png", *SIZE, (right, *wrong, silent))]), job)
    assert {kind: entry.count for kind, entry in written.corrected.items()} == {Correction.BOX: 2, Correction.AREA: 1}
    assert written.corrected[Correction.BOX].first.startswith(
        "image 1, annotation 6: [2, 1.5, 16, 90], its mask's is ["
    )
    assert written.part is not None
    (row,) = pq.read_table(tmp_path / "out" / written.part.file).to_pylist()
    first, *others = ((i["bbox"], i["area"]) for i in row["instances"])
    assert first == (pytest.approx([1.5, 2, 20.2, 18]), 250)
    of_mask = others[-1]
    assert others == [(of_mask[0], 250), of_mask, of_mask]
    assert of_mask[0] != first[0]
    assert len({i["rle"] for i in row["instances"]}) == 1


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_official_numbers_of_the_shards_of_an_annotation_file(tmp_path: Path, data_dir: Path, kind: str) -> None:
    """COCO's own evaluator computes with boxes and areas as annotated. Pictures do not matter."""
    dataset = read_coco(data_dir / "ap_reference" / "ground_truth.json")
    _, found, categories = reference_scenes(data_dir, kind)
    meta = ShardMeta("reference", tuple(Category(i, *c) for i, c in enumerate(categories, start=1)))
    job = replace(job_in(tmp_path), meta=meta)
    for record in dataset.images:
        blank = Image.new("RGB", (record.width, record.height))
        blank.save(tmp_path / "images" / record.file_name, "png")
    written = write_shard(0, pack(dataset.images), job)
    assert (written.rejected, written.corrected) == ((), {})
    ap = CocoAP([(i, name) for i, (_, name) in enumerate(categories, start=1)])
    ap.update(truths_of(pq.read_table(tmp_path / "out" / "shard-00000.parquet")), list(found.values()))
    report = ap.summarise(bootstrap=0)
    ours = report.box if kind == "bbox" else report.mask_by_class
    expected = json.loads((data_dir / "ap_reference" / "expected.json").read_text())[kind]
    np.testing.assert_allclose([ours[name] for name in METRICS], expected, rtol=0, atol=1e-12)


def remote(tmp_path: Path, kind: str) -> Location:
    """A folder that is no plain local path."""
    (tmp_path / "root").mkdir()
    return {
        "file": lambda: locate(f"file://{tmp_path}/root/set"),
        "memory": lambda: locate(f"memory:/{tmp_path}/set"),
        "subtree": lambda: Location(fs.SubTreeFileSystem(f"{tmp_path}/root", fs.LocalFileSystem()), "set", "sub://set"),
    }[kind]()


@pytest.mark.parametrize("kind", ["file", "memory", "subtree"])
def test_task_reads_and_writes_any_storage(tmp_path: Path, kind: str) -> None:
    base = remote(tmp_path, kind)
    for folder in (base / "images" / "sub", base / "out"):
        folder.make_folder()
    images = [ImageRecord(i, f"sub/{i} #%.png", *SIZE, ()) for i in range(3)]
    for i in range(2):
        (base / "images" / f"sub/{i} #%.png").write(encoded("png", i))
    written = write_shard(0, pack(images), WriteJob(base / "images", base / "out", META, 64, "plan"))
    assert [(r.reason, r.image_id) for r in written.rejected] == [(Reason.IMAGE_MISSING, 2)]
    assert written.part is not None
    assert sorted((base / "out").list()) == ["shard-00000.json", "shard-00000.parquet"]
    shard = (base / "out" / written.part.file).read()
    assert (len(shard), hashlib.sha256(shard).hexdigest()) == (written.part.bytes, written.part.sha256)
    table = pq.read_table(io.BytesIO(shard))
    assert table["image"].to_pylist() == [encoded("png", i) for i in range(2)]


class Full(fs.LocalFileSystem):
    """A disk that is full: what is opened for writing leads to the device on which every write fails."""

    def open_output_stream(self, path: str, **_: Any) -> Any:  # noqa: ARG002
        return super().open_output_stream("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    noise = encoded("png", 0, (300, 400))
    (tmp_path / "images" / "a.png").write_bytes(noise)
    full = WriteJob(job.images, Location(Full(), str(tmp_path / "out"), str(tmp_path / "out")), META, 64, "plan")
    with pytest.raises(
        InputError, match=r"shard-00000.parquet: cannot be written \(No space left on device\); put"
    ) as e:
        write_shard(0, pack([ImageRecord(1, "a.png", 300, 400, ())]), full)
    assert "\n" not in str(e.value)
    assert isinstance(e.value.__cause__, OSError)
    assert e.value.__cause__.errno == errno.ENOSPC


def test_storage_that_fails_while_reading_sets_nothing_aside(tmp_path: Path) -> None:
    """Otherwise a network that is away for a minute would cost a thousand images."""
    job = job_in(tmp_path)
    (tmp_path / "images" / "a.png").mkdir()  # reading it fails, and not because it is missing
    with pytest.raises(InputError, match=r"a.png: cannot be read \(.*irectory.*\); give the same command again"):
        write_shard(0, pack([ImageRecord(1, "a.png", *SIZE, ())]), job)
    assert files_of(tmp_path / "out") == []


def test_a_node_that_does_not_see_the_images_sets_nothing_aside(tmp_path: Path) -> None:
    """The plan has only images that the driver found; one node without the mount would cost all that it gets."""
    job = job_in(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"images: node \S+ does not see it; give a path that every node sees"):
        write_shard(0, pack([ImageRecord(1, "a.png", *SIZE, ())]), job)
    assert files_of(tmp_path / "out") == []
