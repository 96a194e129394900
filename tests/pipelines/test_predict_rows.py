"""Rows of detections, as they are written part by part and joined."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msrcnn import Prediction
from pipelines.detection_parts import Origin, PartInfo, PartWriter, read_info
from pipelines.predict_inputs import Source
from pipelines.predict_rows import PART_GROUP_ROWS, Rows, join
from pipelines.storage import locate
from tests.predicting import json_of, rows_of


def test_rows_of_a_part_are_written_as_they_come(tmp_path):
    """As of a long video: little is in memory when it is made, and when the parts are joined."""
    frames, each, masks = 150, 100, [b"x" * 1000 + bytes([65 + i % 26]) for i in range(100)]
    found = Prediction("", 10, 10, np.zeros((each, 4), np.float32), np.ones(each, np.int64), ("disk",) * each,
                       *(np.linspace(1, 0, each, dtype=np.float32) for _ in range(4)), tuple(masks))  # fmt: skip
    folder, origin = locate(tmp_path / "parts"), Origin("0" * 64, "1" * 64, {})
    folder.make_folder()
    held, base = [], pa.total_allocated_bytes()
    with PartWriter(folder, (0, 0), origin) as part:
        rows = Rows(part)
        for number in range(frames):
            rows.add(Source("/", "a.mp4", "a.mp4"), found, number, number / 10)
            held.append(pa.total_allocated_bytes() - base)
        rows.failed(Source("/", "a.mp4", "a.mp4"), "cut")
        rows.finish()
    assert read_info(folder / "part-00000-0000.parquet") == (origin, part.info)
    assert part.info == PartInfo(0, 0, frames + 1, frames * each, 1, "cut")
    whole = frames * each * 1000
    assert max(held) < whole / 5
    groups = pq.ParquetFile(tmp_path / "parts" / "part-00000-0000.parquet").metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert max(sizes) < PART_GROUP_ROWS + each
    assert len(sizes) == 4
    joined = join(locate(tmp_path), folder, [part.info], [(1, "disk")], origin)
    assert (joined.images, joined.detections, joined.failed) == (frames + 1, frames * each, 1)
    stored = rows_of(tmp_path)
    ids = [i for i in range(1, frames + 1) for _ in range(each)]
    assert [row["image_id"] for row in stored] == [*ids, frames + 1]
    assert [row["rle"] for row in stored[:-1]] == masks * frames
    assert len(json_of(tmp_path / "detections.json")) == frames * each
    assert [image["frame"] for image in json_of(tmp_path / "images.json")["images"]] == list(range(frames))
