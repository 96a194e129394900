"""What sharding does on the cluster: the plan, a row for each shard, and the task that writes a shard."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from msrcnn.data.coco import ImageRecord, read_instance
from msrcnn.data.rejected import AnnotationError, Reason, Rejected
from pipelines.manifest import Part, written_aside
from pipelines.schema import INSTANCE, SHARD_ROW, ShardMeta

MIN_SHARDS = 4
"""A data set of `SPREAD_IMAGES` images or more makes at least this many shards: workers share by shards."""
SPREAD_IMAGES = 256
ROW_GROUP_BYTES = 64 * 2**20
"""A row group ends early at this size: it bounds a task's memory when the images are large."""

# The encoded images do not compress any further. Columns that are not named here stay uncompressed.
CODECS = {"file_name": "zstd"} | {
    f"instances.list.element.{field.name}"
    + (".list.element" if pa.types.is_fixed_size_list(field.type) else ""): "zstd"
    for field in INSTANCE
}


@dataclass(frozen=True)
class WriteJob:
    """What every writing task needs: absolute folders of images and shards, the data set, rows a group."""

    images: str
    out: str
    meta: ShardMeta
    row_group: int


@dataclass(frozen=True)
class Written:
    """What a writing task did: the finished shard (None if it would have no row) and what it set aside."""

    part: Part | None
    images: int
    rejected: tuple[Rejected, ...]


def stat_images(records: Sequence[ImageRecord], folder: Path) -> tuple[list[tuple[ImageRecord, int]], list[Rejected]]:
    """The records whose file exists, each with its size in bytes, and the others as rejected."""

    def size(record: ImageRecord) -> int | None:
        path = folder / record.file_name
        try:
            return path.stat().st_size if path.is_file() else None
        except (OSError, ValueError):  # a name that no file system takes
            return None

    with ThreadPoolExecutor(16) as pool:  # each call waits, for a network file system perhaps milliseconds
        sizes = list(pool.map(size, records))
    found = [(record, size) for record, size in zip(records, sizes, strict=True) if size is not None]
    missing = [
        Rejected(Reason.IMAGE_MISSING, f"{folder / record.file_name}{_losing(record)}", record.image_id)
        for record, size in zip(records, sizes, strict=True)
        if size is None
    ]
    return found, missing


def plan_shards(found: Sequence[tuple[ImageRecord, int]], shard_mb: int, seed: int) -> list[list[ImageRecord]]:
    """Which images go into which shard, in which order: a function of images, size and seed alone.

    The images, sorted by id, are shuffled and cut where the running sum of bytes passes equal fractions of
    the total. There are as many shards as `shard_mb` megabytes ask for, at least `MIN_SHARDS` from
    `SPREAD_IMAGES` images on, and never an empty one.
    """
    ordered = sorted(found, key=lambda pair: pair[0].image_id)
    shuffled = [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]
    sizes = np.array([max(size, 1) for _, size in shuffled], dtype=np.int64)
    total = int(sizes.sum())
    least = MIN_SHARDS if len(shuffled) >= SPREAD_IMAGES else 1
    count = max(-(-total // (shard_mb * 10**6)), least)
    middles = np.cumsum(sizes) - sizes / 2
    shard_of = np.minimum((middles * count / total).astype(np.int64), count - 1)
    shards: dict[int, list[ImageRecord]] = {}
    for (record, _), shard in zip(shuffled, shard_of.tolist(), strict=True):
        shards.setdefault(shard, []).append(record)
    return list(shards.values())


def pack(index: int, records: Sequence[ImageRecord]) -> dict[str, Any]:
    """One plan row: small enough for the object store, since it holds annotations and no image."""
    payload = json.dumps([asdict(record) for record in records], separators=(",", ":"))
    return {"shard": index, "payload": payload.encode()}


def write_shard(plan: dict[str, Any], job: WriteJob) -> dict[str, Any]:
    """Writes one shard of the plan and returns what was done, packed (`unpack` reads it).

    Until the last byte is there the file has another name. Running it twice gives the same file.
    """
    records = [
        ImageRecord(**{**value, "annotations": tuple(value["annotations"])}) for value in json.loads(plan["payload"])
    ]
    rejected: list[Rejected] = []
    path = Path(job.out) / f"shard-{plan['shard']:05d}.parquet"
    part = _write_parquet(path, _rows(records, job, rejected), job)
    value = {
        "part": part and asdict(part),
        "images": len(records),
        "rejected": [asdict(entry) for entry in rejected],
    }
    return {"written": json.dumps(value).encode()}


def unpack(row: Mapping[str, Any]) -> Written:
    """Reads the result of `write_shard`."""
    value = json.loads(row["written"])
    part = Part(**value["part"]) if value["part"] else None
    return Written(part, value["images"], tuple(Rejected(**entry) for entry in value["rejected"]))


def _rows(records: Iterable[ImageRecord], job: WriteJob, rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    """The good images as shard rows; the others go to `rejected`."""
    numbers = {category.source_id: category.number for category in job.meta.categories}
    for record in records:
        path = Path(job.images) / record.file_name
        try:
            image = path.read_bytes()
        except OSError as error:
            detail = f"{path}: {error.strerror}{_losing(record)}"
            rejected.append(Rejected(Reason.IMAGE_MISSING, detail, record.image_id))
            continue
        problem = image_problem(image, record.height, record.width)
        if problem:
            reason, detail = problem
            rejected.append(Rejected(reason, f"{path}: {detail}{_losing(record)}", record.image_id))
            continue
        instances = []
        for annotation in record.annotations:
            try:
                instances.append(asdict(read_instance(annotation, record.height, record.width, numbers)))
            except AnnotationError as error:
                rejected.append(Rejected(error.reason, error.detail, record.image_id, annotation["id"]))
        row = asdict(record)
        del row["annotations"]
        yield {**row, "image": image, "instances": instances}


def image_problem(data: bytes, height: int, width: int) -> tuple[Reason, str] | None:
    """Why the encoded image cannot be used, or None; decodes all of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, large images: not this function's question
            with Image.open(io.BytesIO(data)) as image:
                if image.size != (width, height):
                    found = f"{image.width}x{image.height}"
                    return Reason.IMAGE_SIZE, f"{found} pixels, the annotation file says {width}x{height}"
                image.load()
    except UnidentifiedImageError:
        return Reason.IMAGE_UNDECODABLE, "no known image format"
    except Exception as error:  # broken files make decoders raise a dozen kinds, from OSError to SyntaxError
        return Reason.IMAGE_UNDECODABLE, str(error).split("\n")[0] or type(error).__name__
    return None


def _losing(record: ImageRecord) -> str:
    """What goes with a rejected image."""
    return f" (with {len(record.annotations)} annotations)" if record.annotations else ""


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], job: WriteJob) -> Part | None:
    """Writes the rows to `path`; None, and no file, if there are none."""
    first = next(rows, None)
    if first is None:
        return None
    schema = SHARD_ROW.with_metadata(job.meta.to_metadata())
    count = instances = 0
    with written_aside(path) as aside:
        with pq.ParquetWriter(
            aside,
            schema,
            compression=CODECS,
            use_dictionary=False,
            write_statistics=["image_id"],  # of the images they would be images in the footer
        ) as writer:
            for group in _groups(first, rows, job.row_group):
                writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
                count += len(group)
                instances += sum(len(row["instances"]) for row in group)
        with open(aside, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        size = aside.stat().st_size
    return Part(path.name, count, instances, size, checksum)


def _groups(first: dict[str, Any], rows: Iterator[dict[str, Any]], limit: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of at most `limit` rows and about `ROW_GROUP_BYTES`."""
    group, size = [first], len(first["image"])
    for row in rows:
        if len(group) == limit or size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row["image"])
    yield group
