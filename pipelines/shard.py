"""`msrcnn shard`: a COCO annotation file and its images become Parquet shards, as a Ray Data job."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msrcnn.errors import InputError

if TYPE_CHECKING:  # imported where they are used: the command line's --help must not wait for Arrow
    from msrcnn.data.coco import CocoDataset, ImageRecord
    from msrcnn.data.rejected import Rejected
    from pipelines.manifest import Part
    from pipelines.shard_job import WriteJob

REJECTED = "rejected.parquet"
PROGRESS_SECONDS = 5.0
UNFINISHED = ".unfinished"
"""Marks a folder in which a sharding that was killed left files, which the next may replace."""


@dataclass(frozen=True)
class ShardConfig:
    """What to shard, and how.

    Attributes:
        annotations: COCO annotation file (JSON).
        images: the folder that the file's image names start from.
        out: the folder for the shards; made if absent. On a cluster every node must see it and the images.
        shard_mb: about how many megabytes of images a shard holds.
        row_group: images in a Parquet row group, what is read at once.
        seed: of the order in which the images are written.
        name: of the data set; the annotation file's name without its ending if empty.
        address: the Ray cluster to join; a local Ray if absent.
    """

    annotations: Path
    images: Path
    out: Path
    shard_mb: int = 64
    row_group: int = 64
    seed: int = 0
    name: str = ""
    address: str | None = None

    def __post_init__(self) -> None:
        for field in ("shard_mb", "row_group"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} is {getattr(self, field)}; expected a whole number from 1 on")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; expected a whole number from 0 on")


@dataclass(frozen=True)
class ShardReport:
    """What sharding did: images, instances and bytes written, and how many were set aside, by reason."""

    out: Path
    name: str
    shards: int
    rows: int
    instances: int
    bytes: int
    rejected: dict[str, int]
    seconds: float


def shard(config: ShardConfig, log: Callable[[str], None] = print) -> ShardReport:
    """Turns a COCO data set into Parquet shards (`pipelines.schema.SHARD_ROW`).

    The driver reads the annotation file and plans the shards; tasks all over the cluster read and check the
    images and write. `rejected.parquet` (only if anything was set aside) and `manifest.json` come last. An
    earlier unfinished attempt in the folder is replaced.

    Raises:
        InputError: the input cannot be used, or `out` already holds a data set; nothing is written then.
    """
    from cluster.session import connect
    from msrcnn.data.coco import read_coco
    from pipelines.manifest import Manifest, write_manifest
    from pipelines.schema import Category, ShardMeta
    from pipelines.shard_job import WriteJob, plan_shards, stat_images

    start = time.perf_counter()
    out, images = config.out.absolute(), config.images.absolute()  # workers run in other directories
    _check_folders(out, images)
    dataset = read_coco(config.annotations)
    found, missing = stat_images(dataset.images, images)
    if not found:
        _fail_unmatched(dataset, config, images)
    plan = plan_shards(found, config.shard_mb, config.seed)
    log(
        f"{config.annotations}: {len(found)} images, {len(dataset.categories)} categories -> "
        f"{len(plan)} shards in {out}"
    )

    categories = tuple(Category(i, c.source_id, c.name) for i, c in enumerate(dataset.categories, start=1))
    meta = ShardMeta(config.name or config.annotations.stem, categories)
    rejected = [*dataset.rejected, *missing]
    with connect(config.address):
        _prepare(out)
        try:
            parts, set_aside = _run(plan, WriteJob(str(images), str(out), meta, config.row_group), log)
            rejected += set_aside
            if not parts:
                first = f"{set_aside[0].reason}: {set_aside[0].detail}"
                raise InputError(f"{config.annotations}: none of its {len(found)} images can be used (first: {first})")
            counts = _report_rejected(rejected, out, log)
            source = {
                "annotations": str(config.annotations.absolute()),
                "images": str(images),
                "seed": config.seed,
            }
            manifest = Manifest(out, meta.name, categories, tuple(parts), counts, source)
            write_manifest(manifest)
            (out / UNFINISHED).unlink()
        except BaseException:
            _remove_leftovers(out)
            (out / UNFINISHED).unlink(missing_ok=True)
            raise
    seconds = time.perf_counter() - start
    rows, instances, size = manifest.rows, manifest.instances, manifest.bytes
    return ShardReport(out, meta.name, len(parts), rows, instances, size, counts, seconds)


def _check_folders(out: Path, images: Path) -> None:
    from pipelines.manifest import MANIFEST

    if not images.is_dir():
        raise InputError(f"{images}: no such folder; give --images the folder that the image names start from")
    if (out / MANIFEST).exists():
        raise InputError(f"{out}: already holds {_held(out)}; choose another --out or delete it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a folder for --out")
    if out.exists() and any(out.iterdir()) and not (out / UNFINISHED).exists():
        raise InputError(f"{out}: is not empty; choose another --out")


def _held(out: Path) -> str:
    from pipelines.manifest import MANIFEST, read_manifest

    try:
        return f"data set '{read_manifest(out).name}'"
    except InputError:  # damaged, or not ours: still not to be overwritten
        return f"an unreadable {MANIFEST}"


def _fail_unmatched(dataset: CocoDataset, config: ShardConfig, images: Path) -> None:
    expected = images / dataset.images[0].file_name
    raise InputError(
        f"{config.annotations}: none of its {len(dataset.images)} images is in {images}, for example "
        f"{expected} does not exist; give --images the folder that the image names start from"
    )


def _prepare(out: Path) -> None:
    """Makes the folder and removes what an unfinished attempt left."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / UNFINISHED).touch()
        _remove_leftovers(out)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); choose another --out") from error


def _remove_leftovers(out: Path) -> None:
    """Removes what a sharding writes, whole or in part, and nothing else that may lie there."""
    ours = re.compile(r"(shard-\d{5,}\.parquet|rejected\.parquet|manifest\.json)(\.tmp-\w+)?")
    for path in out.iterdir():
        if ours.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _run(
    plan: Sequence[Sequence[ImageRecord]], job: WriteJob, log: Callable[[str], None]
) -> tuple[list[Part], list[Rejected]]:
    """Writes all shards on the cluster, a task each, and logs how far it is."""
    import ray.data

    from pipelines.shard_job import pack, unpack, write_shard

    items = [pack(index, records) for index, records in enumerate(plan)]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(partial(write_shard, job=job))
    total = sum(len(records) for records in plan)
    parts: list[Part] = []
    rejected: list[Rejected] = []
    done, start = 0, time.perf_counter()
    logged = start
    for row in results.iter_rows():
        written = unpack(row)
        parts += [written.part] if written.part else []
        rejected += written.rejected
        done += written.images
        now = time.perf_counter()
        if now - logged >= PROGRESS_SECONDS or done == total:
            rate = done / (now - start)
            log(f"{done}/{total} images, {rate:.0f} images/s, {(total - done) / rate:.0f} s left")
            logged = now
    return sorted(parts, key=lambda part: part.file), rejected


def _report_rejected(rejected: Sequence[Rejected], out: Path, log: Callable[[str], None]) -> dict[str, int]:
    """Writes `rejected.parquet` and says in a line a reason what is in it; counts by reason."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.manifest import written_aside

    by_reason: defaultdict[str, list[Rejected]] = defaultdict(list)
    for entry in rejected:
        by_reason[str(entry.reason)].append(entry)
    for reason, entries in sorted(by_reason.items()):
        first = entries[0]
        ids = {"image": first.image_id, "annotation": first.annotation_id}
        where = ", ".join(f"{kind} {value}" for kind, value in ids.items() if value is not None)
        log(f"set aside: {len(entries)} x {reason} (first: {where + ': ' if where else ''}{first.detail})")
    if not rejected:
        return {}
    table = pa.table(
        {
            "image_id": pa.array([entry.image_id for entry in rejected], pa.int64()),
            "annotation_id": pa.array([entry.annotation_id for entry in rejected], pa.int64()),
            "reason": pa.array([str(entry.reason) for entry in rejected], pa.string()),
            "detail": pa.array([entry.detail for entry in rejected], pa.string()),
        }
    )
    with written_aside(out / REJECTED) as aside:
        pq.write_table(table, aside)
    log(f"all {len(rejected)} are listed in {out / REJECTED}")
    return {reason: len(entries) for reason, entries in sorted(by_reason.items())}
