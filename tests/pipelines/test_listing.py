"""Sizes of files from listings, whatever their names."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.listing import sizes_in
from pipelines.storage import locate


def test_sizes_of_named_files_through_links_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one.png").write_bytes(b"1")
    (tmp_path / "three.png").write_bytes(b"333")
    os.symlink(tmp_path / "three.png", tmp_path / "a" / "link.png")
    os.symlink(tmp_path / "a" / "b", tmp_path / "folder")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.png")
    there = {
        "three.png": 3,
        "a/b/one.png": 1,
        "a/link.png": 3,
        "folder/one.png": 1,
        "./three.png": 3,
        "a/../three.png": 3,
    }
    absent = [
        "a/b",
        "a",
        "x.png",
        "x/y.png",
        "three.png/x",
        "dangling.png",
        "n" * 300,
        f"{'n' * 300}/x",
        "a\0/x",
        "a\0",
    ]
    assert sizes_in(locate(tmp_path), [*there, *absent]) == there
