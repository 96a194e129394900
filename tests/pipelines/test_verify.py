"""`msrcnn shard --verify` tells every way in which a finished data set can have been damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msrcnn.errors import InputError
from pipelines.manifest import Manifest, Part, load_manifest, write_manifest
from pipelines.options import VerifyConfig
from pipelines.schema import SHARD_ROW, Category, ShardMeta
from pipelines.verify import verify

CATEGORIES = (Category(1, 3, "cat"), Category(2, 17, "dog"))
META = ShardMeta("little", CATEGORIES)


def part_of(path: Path, rows: int, schema: pa.Schema) -> Part:
    row = {"image_id": 1, "file_name": "1.png", "height": 3, "width": 4, "image": b"123456789", "instances": []}
    pq.write_table(pa.Table.from_pylist([row] * rows, schema=schema), path)
    content = path.read_bytes()
    return Part(path.name, rows, 0, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of three shards."""
    schema = SHARD_ROW.with_metadata(META.to_metadata())
    parts = tuple(part_of(tmp_path / f"shard-0000{i}.parquet", 5 + i, schema) for i in range(3))
    write_manifest(Manifest(tmp_path, "little", CATEGORIES, parts, {}, {}))
    return tmp_path


def outcome(folder: Path) -> tuple[list[str], str]:
    """The lines, and the error."""
    lines: list[str] = []
    try:
        verify(VerifyConfig(folder), lines.append)
    except InputError as error:
        return lines, str(error)
    return lines, ""


def test_whole_data_set_is_counted(folder: Path) -> None:
    (line,), error = outcome(folder)
    assert error == ""
    assert line.startswith(f"{folder}: data set 'little' is whole: 3 shards, 18 images, 0 instances, ")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (Path.unlink, "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "bytes, the manifest says"),
        (flip, "its SHA-256 is not the manifest's"),
    ],
)
def test_damaged_shards_are_told_one_by_one(folder: Path, damage: Callable[[Path], None], problem: str) -> None:
    for i in (0, 2):
        damage(folder / f"shard-0000{i}.parquet")
    lines, error = outcome(folder)
    assert [line[:27] for line in lines] == ["broken: shard-00000.parquet", "broken: shard-00002.parquet"]
    assert all(problem in line for line in lines)
    assert error.startswith(f"{folder}: 2 of 3 shards are broken; copy them again, or delete the folder")


@pytest.mark.parametrize(
    ("schema", "rows", "problem"),
    [
        (SHARD_ROW.with_metadata(META.to_metadata()), 9, "9 rows, the manifest says 7"),
        (SHARD_ROW, 7, "no 'msrcnn.shard' metadata"),
        (SHARD_ROW.remove(1).with_metadata(META.to_metadata()), 7, "its columns are not those of a shard"),
        (SHARD_ROW.with_metadata(ShardMeta("other", CATEGORIES).to_metadata()), 7, "categories are not the manifest's"),
    ],
)
def test_shards_of_something_else(folder: Path, schema: pa.Schema, rows: int, problem: str) -> None:
    """Their checksums are right: somebody made the manifest for other files."""
    manifest = load_manifest(folder)
    part = part_of(folder / manifest.parts[2].file, rows, schema)
    write_manifest(replace(manifest, parts=(*manifest.parts[:2], replace(part, rows=7))))
    (line,), error = outcome(folder)
    assert problem in line
    assert "1 of 3 shards are broken" in error


def test_shard_that_is_no_parquet(folder: Path) -> None:
    manifest = load_manifest(folder)
    (folder / manifest.parts[2].file).write_bytes(b"text")
    part = replace(manifest.parts[2], bytes=4, sha256=hashlib.sha256(b"text").hexdigest())
    write_manifest(replace(manifest, parts=(*manifest.parts[:2], part)))
    (line,), _ = outcome(folder)
    assert "not a Parquet file" in line


def test_folder_without_a_data_set(tmp_path: Path) -> None:
    assert outcome(tmp_path) == ([], f"{tmp_path}: no manifest.json; make shards with `msrcnn shard`")
