"""`msrcnn shard`: a COCO annotation file and its images become Parquet shards, as a Ray Data job."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from cluster.session import connect
from msrcnn.data.rejected import Rejected
from msrcnn.errors import InputError
from pipelines.job_rows import job_rows
from pipelines.manifest import MANIFEST, Manifest, load_manifest, read_manifest, write_manifest
from pipelines.options import ShardConfig, VerifyConfig
from pipelines.output_folder import beginning, going_on, held_in
from pipelines.part_records import (
    REJECTED,
    PartRecord,
    begin,
    counted,
    discard,
    is_foreign,
    parse_record,
    remove_records,
)
from pipelines.progress import Progress
from pipelines.shard_job import WriteJob, plan_row, write_shards
from pipelines.shard_plan import Plan, make_plan
from pipelines.storage import Location, exclusively, locate
from pipelines.verify import verify


@dataclass(frozen=True)
class ShardReport:
    """The finished data set: images, instances and bytes, how many were set aside or corrected, by reason."""

    out: str
    name: str
    shards: int
    rows: int
    instances: int
    bytes: int
    rejected: dict[str, int]
    corrected: dict[str, int]
    seconds: float


def shard_or_verify(config: ShardConfig | VerifyConfig) -> None:
    """`msrcnn shard`, and its `--verify`."""
    if isinstance(config, VerifyConfig):
        verify(config)
        return
    report = shard(config)
    print(f"{report.out}: {report.rows} images, {report.instances} instances in {report.shards} shards, "
          f"{report.bytes / 1e6:.1f} MB, {report.seconds:.0f} s")  # fmt: skip


def shard(config: ShardConfig, log: Callable[[str], None] = print) -> ShardReport:
    """Turns a COCO data set into Parquet shards (`pipelines.schema.SHARD_ROW`).

    The driver reads the annotation file, lists the images and plans the shards; tasks all over the cluster read and
    check the images and write. `rejected.parquet` (only if anything was set aside) and `manifest.json` come last. What
    an earlier attempt finished of the same plan is kept; the folder of a failed or interrupted one can be continued.

    Raises:
        InputError: the input cannot be used, the storage fails, `out` holds something else, or `strict` and something
            would be set aside.
    """
    start = time.perf_counter()
    out, images, annotations = locate(config.out), locate(config.images), locate(config.annotations)
    if not images.is_folder():
        raise InputError(f"{images}: no such folder; give --images the folder that the image names start from")
    held = _held(out)
    plan = make_plan(config, annotations, images)
    if held is not None:
        return _already(held, plan, out, config.strict, start, log)
    if config.strict:
        _check_strict(plan.rejected, annotations, "nothing was written")
    total = sum(plan.images)
    log(f"{annotations}: {total} images, {len(plan.meta.categories)} categories -> {len(plan.shards)} shards in {out}")
    with connect(config.address):
        with beginning(out):
            out.make_folder()
        with exclusively(out, "sharding into"):
            done = begin(out, plan.source)
            if done:
                log(f"{len(done)} of {len(plan.shards)} shards are there already")
            job = WriteJob(images, out, plan.meta, config.row_group, plan.source.fingerprint)
            records = _run(plan, job, done, log)
            with going_on(out):
                manifest = _finish(config, plan, records, log)
    return _report(manifest, start)


def _finish(config: ShardConfig, plan: Plan, records: Sequence[PartRecord], log: Callable[[str], None]) -> Manifest:
    """Joins the part records to the manifest, which makes the data set finished; nothing is kept if it may not be."""
    out, images, annotations = locate(config.out), locate(config.images), locate(config.annotations)
    rejected = [*plan.rejected, *(entry for record in records for entry in record.rejected)]
    parts = tuple(record.part for record in records if record.part)
    try:
        if config.strict:
            _check_strict(rejected, annotations, "nothing was kept")
        if not parts:
            example = f"{rejected[-1].reason}: {rejected[-1].detail}"
            total = sum(record.images for record in records)
            raise InputError(f"{annotations}: none of its {total} images can be used (for example {example})")
        broken = [entry for entry in rejected if entry.annotation_id is not None]
        if broken and not any(part.instances for part in parts):
            raise InputError(f"{annotations}: none of its {len(broken)} annotations can be used (for example "
                             f"{broken[-1].reason}: {broken[-1].detail}); masks are learnt from polygons in pixels or "
                             "run lengths, not from boxes")  # fmt: skip
    except InputError:
        discard(out)
        raise
    source = {"annotations": str(annotations), "images": str(images), "plan": asdict(plan.source)}
    counts = _report_rejected(rejected, out, log)
    corrected = _report_corrected(records, log)
    manifest = Manifest(out, plan.meta.name, plan.meta.categories, parts, counts, source, corrected)
    write_manifest(manifest)
    remove_records(out)
    return manifest


def _held(out: Location) -> Manifest | None:
    """What is finished in the folder."""
    there = held_in(out)
    if MANIFEST not in there:
        if is_foreign(there):
            raise InputError(f"{out}: is not empty; choose another --out")
        return None
    try:
        return load_manifest(out)
    except InputError as error:
        raise InputError(f"{out}: already holds an unreadable {MANIFEST}; choose another --out or delete it") from error


def _already(
    held: Manifest, plan: Plan, out: Location, strict: bool, start: float, log: Callable[[str], None]
) -> ShardReport:
    """For a folder that is finished: nothing to do, if it is what the plan would make."""
    known = held.source.get("plan")
    different = plan.source.differences(known) if isinstance(known, dict) else "what it was made from is not recorded"
    if different:
        raise InputError(
            f"{out}: already holds data set '{held.name}'; choose another --out or delete it ({different})"
        )
    if strict and held.rejected:
        counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(held.rejected.items()))
        raise InputError(f"{out}: already sharded without --strict, and what was set aside is {counts} (see {REJECTED} "
                         "there); delete it to shard strictly")  # fmt: skip
    manifest = read_manifest(out)
    remove_records(out)  # of a sharding that was killed after its manifest
    log(f"{out}: already sharded, nothing to do")
    return _report(manifest, start)


def _check_strict(rejected: Sequence[Rejected], annotations: Location, outcome: str) -> None:
    if rejected:
        counts = ", ".join(f"{len(entries)} x {reason}" for reason, entries in _by_reason(rejected).items())
        raise InputError(f"{annotations}: {counts} (first: {_describe(rejected[0])}); {outcome}, because of --strict")


def _run(plan: Plan, job: WriteJob, done: dict[int, PartRecord], log: Callable[[str], None]) -> list[PartRecord]:
    """Writes the shards that are not there, as a Ray Data job of a task each, and logs how far it is.

    A shard's annotations are packed straight into the object store and dropped here, so that the driver never holds
    them twice.

    Returns:
        all part records, in the order of the shards.
    """
    records = dict(done)
    total = sum(count for index, count in enumerate(plan.images) if index not in done)
    blocks: list[Any] = []
    for index in range(len(plan.shards)):
        if index not in done:
            blocks.append(ray.put(plan_row(index, plan.shards[index])))
            plan.shards[index] = []
    if not blocks:
        return [records[index] for index in sorted(records)]
    progress = Progress(total, log)
    write = partial(write_shards, job=job)
    written = ray.data.from_arrow_refs(blocks).map_batches(write, batch_size=None, batch_format="pyarrow")
    del blocks
    for row in job_rows(written):
        record = parse_record(row["record"])
        records[record.shard] = record
        progress.add(record.images)
    return [records[index] for index in sorted(records)]


def _by_reason(rejected: Sequence[Rejected]) -> dict[str, list[Rejected]]:
    by_reason: defaultdict[str, list[Rejected]] = defaultdict(list)
    for entry in rejected:
        by_reason[str(entry.reason)].append(entry)
    return dict(sorted(by_reason.items()))


def _describe(entry: Rejected) -> str:
    return f"{entry.where}: {entry.detail}" if entry.where else entry.detail


def _report_rejected(rejected: Sequence[Rejected], out: Location, log: Callable[[str], None]) -> dict[str, int]:
    """Writes `rejected.parquet` and says in a line a reason what is in it; counts by reason."""
    by_reason = _by_reason(rejected)
    for reason, entries in by_reason.items():
        log(f"set aside: {len(entries)} x {reason} (first: {_describe(entries[0])})")
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
    with (out / REJECTED).writing() as sink:
        pq.write_table(table, sink)
    log(f"all {len(rejected)} are listed in {out / REJECTED}")
    return {reason: len(entries) for reason, entries in by_reason.items()}


def _report_corrected(records: Sequence[PartRecord], log: Callable[[str], None]) -> dict[str, int]:
    """Says in a line a kind what was computed anew; counts by kind."""
    found = counted(records)
    for kind, entry in found.items():
        log(f"corrected: {entry.count} x {kind}, now the mask's (first: {entry.first})")
    return {kind: entry.count for kind, entry in found.items()}


def _report(manifest: Manifest, start: float) -> ShardReport:
    return ShardReport(
        str(manifest.folder), manifest.name, len(manifest.parts), manifest.rows, manifest.instances, manifest.bytes,
        manifest.rejected, manifest.corrected, time.perf_counter() - start,
    )  # fmt: skip
