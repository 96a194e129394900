"""The manifest comes back as written, and is refused when it or a shard is not whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from msrcnn.errors import InputError
from pipelines.manifest import Manifest, Part, read_manifest, write_manifest
from pipelines.schema import Category

CATEGORIES = (Category(1, 3, "cat"), Category(2, 17, "dog"))


def finished(folder: Path, content: bytes = b"rows") -> Path:
    """A data set of one part."""
    folder.mkdir(parents=True)
    (folder / "shard-00000.parquet").write_bytes(content)
    part = Part("shard-00000.parquet", 1, 0, len(content), hashlib.sha256(content).hexdigest())
    write_manifest(Manifest(folder, "little", CATEGORIES, (part,), {"reason": 2}, {"seed": 0}))
    return folder


def test_manifest_comes_back_and_fingerprint_follows_content(tmp_path: Path) -> None:
    folder = finished(tmp_path / "a")
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.categories, manifest.rows) == ("little", CATEGORIES, 1)
    assert manifest.paths == [str(folder / "shard-00000.parquet")]
    assert (manifest.rejected, manifest.source) == ({"reason": 2}, {"seed": 0})
    assert read_manifest(f"file://{folder}").paths == [f"file://{folder}/shard-00000.parquet"]
    assert manifest.fingerprint == read_manifest(finished(tmp_path / "b")).fingerprint
    assert manifest.fingerprint != read_manifest(finished(tmp_path / "c", b"other")).fingerprint


def test_manifests_without_corrections_are_read(tmp_path: Path) -> None:
    """As they were written before those were counted."""
    path = finished(tmp_path / "set") / "manifest.json"
    path.write_text(path.read_text().replace(' "corrected": {},\n', ""))
    assert read_manifest(path.parent).corrected == {}


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
        (text.replace('"version": 2', '"version": 99'), "shard version 99, this program reads 2"),
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
