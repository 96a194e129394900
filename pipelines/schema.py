"""The Parquet rows that flow between the stages: shard rows (one an image) and detection rows (one a detection)."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from msrcnn.errors import InputError

SHARD_VERSION = 2
"""Raised when a shard row's meaning changes; readers refuse other versions."""

INSTANCE = pa.struct(
    [
        ("annotation_id", pa.int64()),
        ("category", pa.int32()),  # contiguous, 1..C in the order of the data set's categories
        ("bbox", pa.list_(pa.float32(), 4)),  # x0, y0, x1, y1 in pixels, as annotated
        ("area", pa.float32()),  # pixels, as annotated: decides small, medium, large
        ("iscrowd", pa.bool_()),
        ("rle", pa.binary()),  # COCO compressed counts of the [height, width] mask
    ]
)

SHARD_ROW = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("image", pa.binary()),  # the original encoded bytes, never resized or encoded again
        ("instances", pa.list_(INSTANCE)),
    ]
)

DETECTION_ROW = pa.schema(
    [
        ("image_id", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("category", pa.int32()),  # contiguous 1..C; null on the one row of an image without detections
        ("bbox", pa.list_(pa.float32())),  # x0, y0, x1, y1 in image pixels; Parquet loses nulls of fixed-size lists
        ("class_score", pa.float32()),  # after SoftNMS; ranks boxes
        ("maskiou", pa.float32()),  # the predicted MaskIoU of the predicted class, not clamped
        ("worth", pa.float32()),  # maskiou^power, with goal=ap worth^power; null: maskiou, as of other detectors
        ("maskious", pa.list_(pa.float32())),  # worth of each head of `ModelConfig.heads`; empty or null without
        ("mask_score", pa.float32()),  # class_score * worth; ranks masks
        ("rle", pa.binary()),  # COCO compressed counts of the [height, width] mask
        ("error", pa.string()),  # why the image could not be processed; null otherwise
        ("model", pa.string()),  # the first 12 hex digits of the model file's SHA-256
        ("dataset", pa.string()),  # those of the data set's fingerprint
    ]
)

PREDICTION_ROW = pa.schema(
    [
        ("image_id", pa.int64()),  # 1, 2, ... in the order given; a frame of a video is an image
        ("file_name", pa.string()),  # relative to the folder that was given, one file each
        ("path", pa.string()),  # where it was read
        ("frame", pa.int32()),  # of a video, from 0; null for an image
        ("time", pa.float64()),  # of the frame, seconds
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("category_id", pa.int64()),  # as in the annotation file that the model was trained with; null as `category`
        ("category", pa.string()),  # its name; null on the one row of an image without detections
        *(
            DETECTION_ROW.field(name)
            for name in ("bbox", "class_score", "maskiou", "worth", "mask_score", "rle", "error", "model")
        ),
    ]
)


@dataclass(frozen=True)
class Category:
    """One category: its contiguous number in the rows (1..C), its id in the source annotation file, its name."""

    number: int
    source_id: int
    name: str


@dataclass(frozen=True)
class ShardMeta:
    """What every shard of a data set carries in its Parquet schema metadata."""

    name: str
    categories: tuple[Category, ...]
    version: int = SHARD_VERSION

    def to_metadata(self) -> dict[bytes, bytes]:
        """The key-value metadata for a Parquet schema."""
        value = {
            "name": self.name,
            "version": self.version,
            "categories": [[c.number, c.source_id, c.name] for c in self.categories],
        }
        return {b"msrcnn.shard": json.dumps(value).encode()}

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None, where: str) -> ShardMeta:
        """Reads back `to_metadata`; `where` names the file in errors.

        Raises:
            InputError: the metadata is absent or of another version.
        """
        if not metadata or b"msrcnn.shard" not in metadata:
            raise InputError(
                f"{where}: not a shard of msrcnn (its Parquet schema has no 'msrcnn.shard' metadata); "
                "make shards with `msrcnn shard`"
            )
        value = json.loads(metadata[b"msrcnn.shard"])
        if value["version"] != SHARD_VERSION:
            raise InputError(
                f"{where}: shard version {value['version']}, this program reads {SHARD_VERSION}; "
                "make the shards again with `msrcnn shard`"
            )
        categories = tuple(Category(int(n), int(i), str(s)) for n, i, s in value["categories"])
        return cls(value["name"], categories, value["version"])
