"""Detections as rows while they are made (a part), and all parts as the files that `msrcnn predict` leaves.

detections.parquet   one row a detection: `PREDICTION_ROW`; written last
detections.json      COCO results, a list, best mask score first in each image
images.json          the images and categories that the results' ids mean, as a COCO annotation file without annotations
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.ahead import ahead
from pipelines.detection_parts import Origin, PartInfo, PartWriter, part_name
from pipelines.json_stream import ListWriter
from pipelines.parquet import open_parquet
from pipelines.predict_inputs import Source
from pipelines.schema import PREDICTION_ROW
from pipelines.storage import Location

if TYPE_CHECKING:
    from msrcnn.prediction import Prediction

DETECTIONS, RESULTS, IMAGES = "detections.parquet", "detections.json", "images.json"
PART_ROW = PREDICTION_ROW.append(pa.field("dataset", pa.string()))
"""In a part, image ids count from 0 in it."""
CHUNK_ROWS = 2048
"""Rows that become Python objects at a time."""
PART_GROUP_ROWS = 2**12
"""Rows of a part that are in memory at a time, and a row group of it, about."""
GROUP_ROWS = 2**15
"""Rows of a row group, about."""
PARTS_AHEAD = 16
"""Parts whose first rows are read ahead: each waits, for an object store perhaps 0.1 s."""
ERRORS_SHOWN = 10
META = b"msrcnn.predictions"
"""The key in the metadata of the rows' file: what they were made from, and how many there are."""


class Rows:
    """The rows of a part, which are written as they come: a long video's take little memory.

    Args:
        part: is open.
    """

    def __init__(self, part: PartWriter) -> None:
        self.images = 0
        self._part = part
        self._rows: list[dict[str, Any]] = []

    def add(self, source: Source, found: Prediction, frame: int | None = None, time: float | None = None) -> None:
        """An image, or a frame of a video at a time in seconds, with what is in it."""
        common = {**self._next(source), "frame": frame, "time": time, "height": found.height, "width": found.width}
        self._rows += [
            common | {
                "category_id": one.category_id, "category": one.category, "bbox": one.box,
                "class_score": one.class_score, "maskiou": one.maskiou, "worth": one.worth,
                "mask_score": one.mask_score, "rle": one.rle,
            }
            for one in found.detections()
        ] or [common]  # fmt: skip
        self._written(PART_GROUP_ROWS)

    def failed(self, source: Source, error: str) -> None:
        """An image, or a video from here on, that cannot be used."""
        self._rows.append({**self._next(source), "error": error})
        self._written(PART_GROUP_ROWS)

    def finish(self) -> None:
        """Writes the rest."""
        self._written(1)

    def _next(self, source: Source) -> dict[str, Any]:
        self.images += 1
        return {"image_id": self.images - 1, "file_name": source.name, "path": str(source.place)}

    def _written(self, least: int) -> None:
        """Writes what waits if that is so many rows."""
        if len(self._rows) >= least:
            self._part.add(pa.Table.from_pylist(self._rows, PART_ROW))
            self._rows = []


@dataclass
class Joined:
    """What is in all parts."""

    images: int = 0
    with_detections: int = 0
    detections: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    """the first ones"""


def join(
    out: Location, folder: Location, infos: Sequence[PartInfo], categories: Sequence[tuple[int, str]], origin: Origin
) -> Joined:
    """Writes the three files from the parts, of which only some row groups are in memory.

    Args:
        out: the folder of the files.
        folder: that of the parts.
        infos: of the parts, in the order of the images.
        categories: the model's, source id and name.
        origin: what the rows were made from.
    """
    joined = Joined()
    with (
        (out / DETECTIONS).writing() as rows_sink,
        (out / RESULTS).writing() as results_sink,
        (out / IMAGES).writing() as images_sink,
        pq.ParquetWriter(rows_sink, PREDICTION_ROW, compression="zstd") as parquet,
    ):
        results, images = ListWriter(results_sink), ListWriter(images_sink)
        images_sink.write(b'{"images": ')
        waiting: list[pa.Table] = []
        for table in _tables(folder, infos):
            _count(joined, table)
            last = None
            for row in _rows(table):
                if row["image_id"] != last:
                    images.add([_image(row)])
                    last = row["image_id"]
                if row["category"] is not None:
                    results.add([_result(row)])
            waiting.append(table)
            if sum(map(len, waiting)) >= GROUP_ROWS:
                parquet.write_table(pa.concat_tables(waiting).combine_chunks(), GROUP_ROWS)
                waiting = []
        parquet.write_table(pa.concat_tables([PREDICTION_ROW.empty_table(), *waiting]).combine_chunks())
        meta = {"origin": asdict(origin), "joined": asdict(joined)}
        parquet.add_key_value_metadata({META: json.dumps(meta).encode()})
        results.end()
        images.end()
        named = [{"id": category, "name": name} for category, name in categories]
        images_sink.write(f',"annotations": [],\n"categories": {json.dumps(named)}}}\n'.encode())
    return joined


def finished(out: Location) -> tuple[Origin, Joined] | None:
    """What the rows of a finished folder were made from and what is in them; None where they do not say."""
    try:
        meta = json.loads((open_parquet(out / DETECTIONS).metadata.metadata or {})[META])
        return Origin(**meta["origin"]), Joined(**meta["joined"])
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return None


def _tables(folder: Location, infos: Sequence[PartInfo]) -> Iterator[pa.Table]:
    """The parts' row groups in order, image ids counted from 1 over all of them."""

    def begun(info: PartInfo) -> tuple[pq.ParquetFile, pa.Table]:
        file = open_parquet(folder / part_name(info.key))
        return file, file.read_row_group(0)

    before = 1
    with ThreadPoolExecutor(PARTS_AHEAD) as readers:
        for info, (file, first) in zip(infos, ahead(readers, begun, infos, PARTS_AHEAD), strict=True):
            for table in chain([first], map(file.read_row_group, range(1, file.num_row_groups))):
                ids = pc.add(table["image_id"], before)
                yield table.set_column(0, "image_id", ids).select(PREDICTION_ROW.names).cast(PREDICTION_ROW)
            before += info.images


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of images that could be used, one after the other."""
    for batch in table.filter(table["error"].is_null()).to_batches(max_chunksize=CHUNK_ROWS):
        yield from batch.to_pylist()


def _count(joined: Joined, table: pa.Table) -> None:
    found = table.filter(table["category"].is_valid())
    errors = table["error"].drop_null()
    joined.images += pc.count_distinct(table["image_id"]).as_py()
    joined.with_detections += pc.count_distinct(found["image_id"]).as_py()
    joined.detections += len(found)
    joined.failed += len(errors)
    joined.errors += errors.slice(0, ERRORS_SHOWN - len(joined.errors)).to_pylist()


def _image(row: dict[str, Any]) -> dict[str, Any]:
    """As in an annotation file; a frame is named after its video, with its number and time."""
    image = {"id": row["image_id"], "file_name": row["file_name"], "height": row["height"], "width": row["width"]}
    if row["frame"] is None:
        return image
    return image | {"file_name": f"{row['file_name']}#{row['frame']}", "frame": row["frame"], "time": row["time"]}


def _result(row: dict[str, Any]) -> dict[str, Any]:
    x0, y0, x1, y1 = row["bbox"]
    return {
        "image_id": row["image_id"], "category_id": row["category_id"],
        "segmentation": {"size": [row["height"], row["width"]], "counts": row["rle"].decode("ascii")},
        "bbox": [x0, y0, x1 - x0, y1 - y0], "score": row["mask_score"], "class_score": row["class_score"],
        "maskiou": row["maskiou"], "worth": row["worth"],
    }  # fmt: skip
