"""Parquet files behind paths and URLs: read, named where they cannot be, over the connections of their folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msrcnn.errors import InputError
from pipelines import storage
from pipelines.parquet import open_parquet, read_table
from pipelines.storage import StorageError, locate


def test_parquet_behind_a_path_and_a_url(tmp_path: Path) -> None:
    table = pa.table({"x": [1, 2]})
    pq.write_table(table, tmp_path / "a b.parquet")
    (locate(f"memory:/{tmp_path}") / "b").write((tmp_path / "a b.parquet").read_bytes())
    for url in (str(tmp_path / "a b.parquet"), f"memory:/{tmp_path}/b"):
        assert open_parquet(url).read() == table


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    place = tmp_path / "set" / "a.parquet"
    with pytest.raises(
        InputError, match=rf"{place.parent}: node \S+ does not see it; give a path that every node sees"
    ):
        read_table(place)
    place.mkdir(parents=True)
    with pytest.raises(StorageError, match=rf"{place}: cannot be read \(.*irectory.*\); put that right and give the"):
        read_table(place)
    with pytest.raises(StorageError, match=r"b\.parquet: cannot be read \(No such file or directory\)"):
        read_table(place.parent / "b.parquet")


def test_shards_of_a_folder_share_its_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*(f"shard-{i:05d}.parquet" for i in range(5)), "50% #1?.parquet"]
    for i, name in enumerate(names):
        pq.write_table(pa.table({"x": [i]}), tmp_path / name)
    resolved: list[str] = []
    resolve = storage._resolve
    monkeypatch.setattr(storage, "_resolve", lambda url: resolved.append(url) or resolve(url))
    urls = [(locate(f"file://{tmp_path}") / name).url for name in names]
    resolved.clear()
    for _ in range(2):
        assert [open_parquet(url).read()["x"].to_pylist() for url in urls] == [[i] for i in range(6)]
    assert resolved == [f"file://{tmp_path}", urls[-1], urls[-1]]  # the odd name by itself
