"""A model, pictures and videos for the tests of `msrcnn predict`, and what it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from msrcnn import Prediction
from msrcnn.weights import save_model
from pipelines.predict import predict
from pipelines.predict_options import PredictConfig
from tests.tiny import DATA, SIDE, make_model, shape_image

CATEGORIES = ((1, 5, "disk"), (2, 7, "ring"), (3, 9, "star"))
EVERYTHING = -1e9
"""A mask score that all detections have."""


def write_model(path: Path) -> Path:
    """A detector that finds something, if nothing sensible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, make_model(sure=True), DATA, CATEGORIES)
    return path


def pixels(index: int, height: int = SIDE) -> np.ndarray:
    """An image of shapes, [height, SIDE, 3]."""
    return np.asarray(Image.open(io.BytesIO(shape_image(index)[0])).convert("RGB"))[:height]


def write_image(path: Path, index: int, height: int = SIDE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(index, height)).save(path)
    return path


def write_video(
    path: Path, times: list[int], size: tuple[int, int] = (SIDE, SIDE), rotation: int = 0, **options: str
) -> Path:
    """A video of shapes; `times` of its frames in 1/1000 s, `size` as height, width, `options` of the container."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(10), options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(times):
            picture = np.resize(pixels(number % 3)[: size[0]], (*size, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "detections.parquet").to_pylist()


def of_file(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["file_name"] == name]


def assert_same(rows: list[dict[str, Any]], found: Prediction) -> None:
    """The rows of an image are what `msrcnn.predict` gives, to the last bit."""
    assert {(row["height"], row["width"]) for row in rows} == {(found.height, found.width)}
    assert {row["error"] for row in rows} == {None}
    if len(found) == 0:
        assert [row["category"] for row in rows] == [None]
        return
    for name, values in (
        ("category_id", found.category_ids.tolist()), ("category", list(found.names)),
        ("class_score", found.class_scores.tolist()), ("maskiou", found.maskious.tolist()),
        ("worth", found.worths.tolist()), ("mask_score", found.mask_scores.tolist()),
        ("bbox", found.boxes.tolist()), ("rle", list(found.rles)),
    ):  # fmt: skip
        assert [row[name] for row in rows] == values, name


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def json_of(path: Path) -> Any:
    return json.loads(path.read_text())


def predicting(run: Path, *images: str | Path, **options) -> tuple[int, list[str]]:
    """The exit code, and what was printed."""
    lines: list[str] = []
    return predict(PredictConfig(run, images, **{"min_score": EVERYTHING, **options}), lines.append), lines


@contextlib.contextmanager
def preserved(path: Path) -> Iterator[os.stat_result]:
    """A file is after the block what it was before."""
    content, state = path.read_bytes(), path.stat()
    yield state
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
