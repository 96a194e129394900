"""What sharding does on the cluster: the task that reads and checks the images of a shard and writes it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from msrcnn.data.coco import ImageRecord, read_instance
from msrcnn.data.corrections import believed
from msrcnn.data.decoding import ImageError, decode_image
from msrcnn.data.rejected import AnnotationError, Reason, Rejected
from pipelines.manifest import Part
from pipelines.output_folder import going_on
from pipelines.part_records import Corrected, PartRecord, pack_record, shard_name, write_record
from pipelines.schema import INSTANCE, SHARD_ROW, ShardMeta
from pipelines.shard_plan import losing
from pipelines.storage import Location, StorageError, check_seen, explained

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
    """What every writing task needs: the folders, the data set, rows a group, the plan's fingerprint."""

    images: Location
    out: Location
    meta: ShardMeta
    row_group: int
    plan: str


@dataclass
class Notes:
    """What a task notes while it goes through its images."""

    rejected: list[Rejected] = field(default_factory=list)
    corrected: dict[str, Corrected] = field(default_factory=dict)

    def correct(self, kind: str, detail: str) -> None:
        """Counts a box or an area that its mask contradicts."""
        before = self.corrected.get(kind)
        self.corrected[kind] = Corrected(before.count + 1, before.first) if before else Corrected(1, detail)


def pack(records: Sequence[ImageRecord]) -> bytes:
    """The images of a shard as a task takes them: annotations, no pixels."""
    fields = [(r.image_id, r.file_name, r.height, r.width, r.annotations) for r in records]
    return json.dumps(fields, separators=(",", ":")).encode()


def plan_row(shard: int, records: Sequence[ImageRecord]) -> pa.Table:
    """A shard of the plan as one row."""
    return pa.table({"shard": [shard], "payload": pa.array([pack(records)], pa.large_binary())})


def write_shards(plan: pa.Table, job: WriteJob) -> pa.Table:
    """Writes the shards in rows of `plan_row`; their part records, packed (`part_records.parse_record` reads one)."""
    records = [write_shard(row["shard"], row["payload"], job) for row in plan.to_pylist()]
    return pa.table({"record": pa.array([pack_record(record) for record in records], pa.large_binary())})


def write_shard(shard: int, payload: bytes, job: WriteJob) -> PartRecord:
    """Writes one shard of the plan, and its part record when the shard is in place.

    Running it twice gives the same files.

    Args:
        shard: its number.
        payload: its images, from `pack`.
        job: everything else.

    Raises:
        StorageError: the storage of images or shards fails for another reason than a missing image.
        InputError: this node does not see the images.
    """
    records = [ImageRecord(i, name, h, w, tuple(found)) for i, name, h, w, found in json.loads(payload)]
    notes = Notes()
    path = job.out / f"{shard_name(shard)}.parquet"
    with going_on(path):
        part = _write_parquet(path, _rows(records, job, notes), job)
        record = PartRecord(job.plan, shard, len(records), part, tuple(notes.rejected), notes.corrected)
        write_record(job.out, record)
    return record


def _rows(records: Sequence[ImageRecord], job: WriteJob, notes: Notes) -> Iterator[dict[str, Any]]:
    """The good images as shard rows; what is wrong goes to `notes`."""
    numbers = {category.source_id: category.number for category in job.meta.categories}
    for record in records:
        try:
            image = _read_image(job.images, record)
        except ImageError as error:
            notes.rejected.append(
                Rejected(error.reason, f"{record.file_name}: {error.detail}{losing(record)}", record.image_id)
            )
            continue
        yield {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "height": record.height,
            "width": record.width,
            "image": image,
            "instances": list(_instances(record, numbers, notes)),
        }


def _read_image(images: Location, record: ImageRecord) -> bytes:
    """The encoded bytes of an image that can be decoded and has the stated size.

    Raises:
        ImageError: it is not there, may not be read, or cannot be used.
        StorageError: the storage fails. That is not the image's fault, so it is not set aside.
        InputError: this node does not see the folder of the images.
    """
    path = images / record.file_name
    try:
        image = path.read()
    except (FileNotFoundError, PermissionError) as error:
        check_seen(images)  # what was missing when the plan was made is not in it
        raise ImageError(str(path), Reason.IMAGE_MISSING, explained(error), "") from error
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({explained(error)}); give the same command again to go on where it stopped"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata, large images: not the question here
        decode_image(image, record.height, record.width, str(path))
    return image


def _instances(record: ImageRecord, numbers: dict[int, int], notes: Notes) -> Iterator[dict[str, Any]]:
    for annotation in record.annotations:
        try:
            instance = read_instance(annotation, record.height, record.width, numbers)
        except AnnotationError as error:
            notes.rejected.append(Rejected(error.reason, error.detail, record.image_id, annotation["id"]))
            continue
        instance, corrected = believed(annotation, instance)
        for kind, detail in corrected:
            notes.correct(kind, f"image {record.image_id}, annotation {instance.annotation_id}: {detail}")
        yield asdict(instance)


def _write_parquet(path: Location, rows: Iterator[dict[str, Any]], job: WriteJob) -> Part | None:
    """Writes the rows to `path`; None, and no file, if there are none."""
    first = next(rows, None)
    if first is None:
        return None
    schema = SHARD_ROW.with_metadata(job.meta.to_metadata())
    count = instances = 0
    with (
        path.writing() as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression=CODECS,
            use_dictionary=False,
            write_statistics=["image_id"],  # of the images they would be images in the footer
        ) as writer,
    ):
        for group in _groups(first, rows, job.row_group):
            writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
            count += len(group)
            instances += sum(len(row["instances"]) for row in group)
    return Part(path.name, count, instances, sink.bytes, sink.sha256)


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
