"""Shards against the annotation file and images they came from, and every way sharding can fail."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from msrcnn.data.corrections import Correction
from msrcnn.errors import InputError
from pipelines.manifest import Manifest, read_manifest, write_manifest
from pipelines.options import VerifyConfig
from pipelines.part_records import begin
from pipelines.schema import SHARD_ROW, ShardMeta
from pipelines.shard import ShardConfig, shard
from pipelines.shard_plan import MIN_SHARDS, SPREAD_IMAGES, make_plan
from pipelines.storage import locate
from pipelines.verify import verify
from tests.little import META, check_rows, edit, files_of, rows_of


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
    assert check_rows(rows_of(config.out), config, believed=True) == instances
