"""The plan of a sharding: which image goes into which shard, in which order, and what this follows from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from msrcnn.data.coco import ImageRecord, parse_coco
from msrcnn.data.rejected import Reason, Rejected
from msrcnn.errors import InputError
from pipelines.listing import sizes_in
from pipelines.manifest import LOOKED_INTO
from pipelines.options import ShardConfig
from pipelines.schema import SHARD_VERSION, Category, ShardMeta
from pipelines.storage import Location, explained

MIN_SHARDS = 4
"""A data set of `SPREAD_IMAGES` images or more makes at least this many shards: workers share by shards."""
SPREAD_IMAGES = 256


@dataclass(frozen=True)
class Source:
    """What the shards follow from: equal sources give the same plan and the same rows."""

    annotations_sha256: str
    images_sha256: str  # of names and sizes in bytes
    name: str
    seed: int
    shard_mb: int
    row_group: int
    version: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()

    def differences(self, other: dict[str, Any]) -> str:
        """What is not as in `other`, the `asdict` of a source, for a message; empty if nothing is."""
        hashed = {"annotations_sha256": "the annotation file", "images_sha256": "the image files"}
        found = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), other.get(field.name)
            if mine != theirs:
                found.append(hashed.get(field.name) or f"{field.name} {theirs!r}, now {mine!r}")
        return "; ".join(found)


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        meta: goes into every shard.
        shards: the images of each, in order.
        rejected: what the annotation file and the list of images already set aside.
        source: what the plan follows from.
    """

    meta: ShardMeta
    shards: list[list[ImageRecord]]
    rejected: tuple[Rejected, ...]
    source: Source

    @property
    def images(self) -> list[int]:
        """Of each shard."""
        return [len(records) for records in self.shards]


def make_plan(config: ShardConfig, annotations: Location, images: Location) -> Plan:
    """Reads the annotation file, lists the images, plans.

    Raises:
        InputError: the annotation file cannot be used, the images cannot be listed, or none is there.
    """
    try:
        content = annotations.read()
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else explained(error)
        what = "is a folder" if annotations.is_folder() else what
        raise InputError(f"{annotations}: {what}; give the path of a COCO annotation file (JSON)") from error
    checksum = hashlib.sha256(content).hexdigest()
    dataset = parse_coco(content, str(annotations))
    del content
    try:
        sizes = sizes_in(images, (record.file_name for record in dataset.images))
    except OSError as error:
        raise InputError(f"{images}: cannot be listed ({explained(error)}); correct --images") from error
    found, missing = split_missing(dataset.images, sizes, images)
    if not found:
        first = dataset.images[0].file_name
        raise InputError(f"{annotations}: none of its {len(dataset.images)} images is in {images}, for example "
                         f"{images / first} does not exist; {_where_else(images, first)}")  # fmt: skip
    listed = hashlib.sha256()
    for record in dataset.images:
        listed.update(repr((record.file_name, sizes.get(record.file_name))).encode())
    categories = tuple(Category(i, c.source_id, c.name) for i, c in enumerate(dataset.categories, start=1))
    name = config.name or PurePosixPath(annotations.name).stem
    return Plan(
        ShardMeta(name, categories),
        plan_shards(found, config.shard_mb, config.seed),
        (*dataset.rejected, *missing),
        Source(checksum, listed.hexdigest(), name, config.seed, config.shard_mb, config.row_group, SHARD_VERSION),
    )


def _where_else(images: Location, name: str) -> str:
    """What to do where an image is not in the folder; it may be one level up or down."""
    inside = [images / folder for folder, size in sorted(images.list().items()) if size is None]
    for folder in (images.parent, *inside[:LOOKED_INTO]):
        if (folder / name).size() is not None:
            return f"it is in {folder}: give that as --images"
    return "give --images the folder that the image names start from, or --annotations the file of these images"


def split_missing(
    records: Sequence[ImageRecord], sizes: dict[str, int], folder: Location
) -> tuple[list[tuple[ImageRecord, int]], list[Rejected]]:
    """The records whose file exists, each with its size in bytes, and the others as rejected."""
    found = [(record, sizes[record.file_name]) for record in records if record.file_name in sizes]
    missing = [
        Rejected(Reason.IMAGE_MISSING, f"{folder / record.file_name}{losing(record)}", record.image_id)
        for record in records
        if record.file_name not in sizes
    ]
    return found, missing


def losing(record: ImageRecord) -> str:
    """What goes with a rejected image."""
    return f" (with {len(record.annotations)} annotations)" if record.annotations else ""


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
