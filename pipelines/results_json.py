"""COCO results of any detector, a JSON file, as detection rows in parts like our own.

The file may be large and in any order. It is read item by item; rows are put aside in runs, each sorted by row group,
and a part is joined from all runs. The driver needs RUN_ROWS rows and about 250 bytes an image of the shards.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hotcoco import mask as coco_mask

from msrcnn.errors import InputError
from msrcnn.rle import counts_of
from pipelines.detection_parts import VERSION, Key, Origin, StoredDetections, key_of, prepare, write_part
from pipelines.json_stream import read_list
from pipelines.manifest import Manifest
from pipelines.parquet import open_parquet
from pipelines.reading import RowGroup
from pipelines.schema import DETECTION_ROW
from pipelines.storage import Location, explained, sha256_of

RUN_ROWS = 50_000
"""Rows put aside at a time."""
EXACT = ("class_score", "maskiou", "worth", "mask_score")
"""Scores that our own rows hold as float32."""


def _row_schema() -> pa.Schema:
    """A detection row whose scores and boxes keep what a JSON file says, float64."""
    schema = DETECTION_ROW
    for name in EXACT:
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.float64()))
    return schema.set(schema.get_field_index("bbox"), pa.field("bbox", pa.list_(pa.float64())))


RESULT_ROW = _row_schema()


@dataclass(frozen=True)
class ShardImage:
    """Where an image is, and its size in pixels."""

    group: int
    height: int
    width: int


def shard_images(groups: Sequence[RowGroup]) -> dict[int, ShardImage]:
    """Every image of the shards by id; `group` counts the row groups."""
    found: dict[int, ShardImage] = {}
    for number, group in enumerate(groups):
        table = open_parquet(group.path).read_row_group(group.index, columns=["image_id", "height", "width"])
        columns = (table[name].to_pylist() for name in ("image_id", "height", "width"))
        found |= {i: ShardImage(number, height, width) for i, height, width in zip(*columns, strict=True)}
    return found


def import_results(
    results: Location, manifest: Manifest, groups: Sequence[RowGroup], folder: Location, log: Callable[[str], None]
) -> StoredDetections:
    """Writes the parts of a results file; what is there of the same file already stays.

    Boxes of results without `bbox` are those of their masks. A result without `maskiou` has MaskIoU 1, so that its mask
    score is its score. In what `msrcnn predict` writes `score` is the mask score, and `class_score`, `maskiou` and
    `worth` stand beside it. An image without a result counts as one without detections.

    Args:
        results: a JSON list of {image_id, category_id, segmentation, score} with the annotation file's category ids and
            compressed run lengths.
        manifest: of the shards.
        groups: all their row groups.
        folder: for the parts.
        log: takes lines.

    Raises:
        InputError: the file cannot be used, or the folder holds parts of something else.
    """
    origin = origin_of_results(results, manifest)
    done = prepare(folder, origin)
    if len(done) < len(groups):
        images = shard_images(groups)
        with tempfile.TemporaryDirectory() as temporary:
            runs = Runs(Path(temporary), len(groups))
            for row in checked_rows(results, manifest, images):
                runs.add(images[row["image_id"]].group, row)
            log(f"{results}: {runs.rows} results")
            members: list[list[int]] = [[] for _ in groups]
            for image_id, image in images.items():
                members[image.group].append(image_id)
            for number, group in enumerate(groups):
                done[key_of(group)] = _write(folder, key_of(group), runs.of(number), members[number], images, origin)
    return StoredDetections(folder, origin, tuple(done[key_of(group)] for group in groups))


def checked_rows(results: Location, manifest: Manifest, images: dict[int, ShardImage]) -> Iterator[dict[str, Any]]:
    """The items of a results file as rows of `RESULT_ROW`.

    Raises:
        InputError: naming the first item that cannot be used.
    """
    numbers = {category.source_id: category.number for category in manifest.categories}
    for index, item in enumerate(read_list(results)):
        where = f"{results}: result {index}"
        if not isinstance(item, dict):
            raise InputError(f"{where} is a JSON {type(item).__name__}, expected "
                             "{image_id, category_id, segmentation, score}")  # fmt: skip
        image_id, category = item.get("image_id"), item.get("category_id")
        if type(image_id) is not int or image_id not in images:
            raise InputError(f"{where}: image_id {image_id!r} is no image of {manifest.folder}; give the shards of the "
                             "images that were detected on")  # fmt: skip
        if type(category) is not int or category not in numbers:
            raise InputError(f"{where} (image {image_id}): category_id {category!r} is none of the annotation file's; "
                             f"they are {_some(sorted(numbers))}")  # fmt: skip
        where, image = f"{where} (image {image_id})", images[image_id]
        rle = _rle(item.get("segmentation"), image, where)
        yield {
            "image_id": image_id, "height": image.height, "width": image.width, "category": numbers[category],
            "bbox": _corners(item.get("bbox"), rle, image, where), "rle": rle,
            **_scores(item, where),
        }  # fmt: skip


class Runs:
    """Rows of all row groups put aside on disk, and those of one of them together again, in the order they came in."""

    def __init__(self, folder: Path, groups: int) -> None:
        self.rows = 0
        self._folder, self._groups = folder, groups
        self._waiting: list[dict[str, Any]] = []
        self._of: list[int] = []
        self._runs: list[tuple[pa.Table, np.ndarray]] = []  # sorted by group; where each group begins, [groups + 1]

    def add(self, group: int, row: dict[str, Any]) -> None:
        """Takes a row."""
        self._waiting.append(row)
        self._of.append(group)
        self.rows += 1
        if len(self._waiting) >= RUN_ROWS:
            self._flush()

    def of(self, group: int) -> pa.Table:
        """The rows of a row group."""
        if self._waiting:
            self._flush()
        tables = [table.slice(starts[group], starts[group + 1] - starts[group]) for table, starts in self._runs]
        return pa.concat_tables([RESULT_ROW.empty_table(), *tables])

    def _flush(self) -> None:
        of = np.array(self._of)
        order = np.argsort(of, kind="stable")
        path = self._folder / f"{len(self._runs)}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, RESULT_ROW) as writer:
            writer.write_table(pa.Table.from_pylist(self._waiting, RESULT_ROW).take(order))
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._runs.append((table, np.searchsorted(of[order], np.arange(self._groups + 1))))
        self._waiting, self._of = [], []


def _write(
    folder: Location, key: Key, table: pa.Table, members: Sequence[int], images: dict[int, ShardImage], origin: Origin
) -> Any:
    found = set(table["image_id"].to_pylist())
    empty = [{"image_id": i, "height": images[i].height, "width": images[i].width} for i in members if i not in found]
    return write_part(folder, key, pa.concat_tables([table, pa.Table.from_pylist(empty, RESULT_ROW)]), origin)


def _number(item: dict[str, Any], key: str, where: str) -> float:
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: {key} is {value!r}, expected a number; every result needs one to be ranked by")
    return float(value)


def _scores(item: dict[str, Any], where: str) -> dict[str, float]:
    """`score` is the class score, but where `class_score` stands beside it: in what `msrcnn predict` writes."""
    score = _number(item, "score", where)
    given = {name: _number(item, name, where) for name in ("class_score", "maskiou", "worth")
             if item.get(name) is not None}  # fmt: skip
    row = {"class_score": score, "maskiou": 1.0, **given}
    return {**row, "mask_score": row["class_score"] * row.get("worth", row["maskiou"])}


def _rle(segmentation: Any, image: ShardImage, where: str) -> bytes:
    if isinstance(segmentation, list):
        raise InputError(f"{where}: segmentation is a polygon; results need run lengths, {{size, counts}} as "
                         "pycocotools encodes them")  # fmt: skip
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str):
        raise InputError(f"{where}: segmentation has no compressed run lengths; give "
                         "{size: [height, width], counts: text} as pycocotools encodes them")  # fmt: skip
    if segmentation.get("size") != [image.height, image.width]:
        raise InputError(f"{where}: segmentation's size is {segmentation.get('size')}, the image's "
                         f"{[image.height, image.width]}; give masks at the size of the original image")  # fmt: skip
    try:
        rle = segmentation["counts"].encode("ascii")
        coco_mask.area([{"size": segmentation["size"], "counts": rle}])  # reads every run
        pixels = int(counts_of(rle).sum()) if rle else 0
    except ValueError as error:  # of characters that are no ASCII too
        raise InputError(f"{where}: broken run lengths ({error}); encode the mask again") from None
    if pixels != image.height * image.width:
        raise InputError(f"{where}: the run lengths are of {pixels} pixels, the image has "
                         f"{image.height * image.width}; encode the mask again")  # fmt: skip
    return rle


def _corners(bbox: Any, rle: bytes, image: ShardImage, where: str) -> list[float]:
    if bbox is None:
        bbox = coco_mask.toBbox([{"size": [image.height, image.width], "counts": rle}])[0].tolist()
    if not (
        isinstance(bbox, list) and len(bbox) == 4 and all(type(v) in (int, float) and math.isfinite(v) for v in bbox)
    ):
        raise InputError(f"{where}: bbox is {bbox!r}, expected [x, y, width, height]")
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")


def origin_of_results(results: Location, manifest: Manifest) -> Origin:
    """What rows of a results file are made from; the file stands for the model.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return Origin(sha256_of(results), manifest.fingerprint, {"rows": VERSION})
    except OSError as error:
        raise InputError(f"{results}: cannot be read ({explained(error)}); give another file") from error
