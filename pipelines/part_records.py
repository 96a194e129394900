"""A folder of shards before its manifest: what says which shards are done, so that sharding goes on where it stopped.

.unfinished: what the plan follows from (`Source`); there from the beginning until after the manifest
shard-00003.parquet
shard-00003.json: its part record, there only if the shard is whole; gone when the manifest is there
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from msrcnn.data.rejected import Rejected
from msrcnn.errors import InputError
from pipelines.manifest import Part
from pipelines.output_folder import beginning, held_in
from pipelines.shard_plan import Source
from pipelines.storage import Location, is_aside

UNFINISHED = ".unfinished"
REJECTED = "rejected.parquet"
OURS = re.compile(r"shard-\d{5,}\.(parquet|json)|rejected\.parquet|manifest\.json|\.unfinished")
"""What a sharding writes."""
RECORD = re.compile(r"shard-\d{5,}\.json")
FILES = 16
"""Files read or deleted at a time: each waits, for an object store perhaps 0.1 s."""


@dataclass(frozen=True)
class Corrected:
    """How many boxes or areas were computed anew, and the first one."""

    count: int
    first: str


@dataclass(frozen=True)
class PartRecord:
    """What a writing task did.

    Attributes:
        plan: fingerprint of the source; records of another are not believed.
        shard: its number.
        images: how many were planned for it.
        part: the shard in place; None if it would have no row.
        rejected: what was set aside in it.
        corrected: by kind, what the masks contradicted.
    """

    plan: str
    shard: int
    images: int
    part: Part | None
    rejected: tuple[Rejected, ...]
    corrected: dict[str, Corrected]


def shard_name(shard: int) -> str:
    """Of the files of a shard, without ending."""
    return f"shard-{shard:05d}"


def write_record(out: Location, record: PartRecord) -> None:
    """Beside the shard, which is in place."""
    (out / f"{shard_name(record.shard)}.json").write(pack_record(record))


def pack_record(record: PartRecord) -> bytes:
    """As JSON."""
    return json.dumps(asdict(record)).encode()


def parse_record(data: bytes) -> PartRecord:
    """Reads back `pack_record`.

    Raises:
        ValueError, TypeError, KeyError: it is no part record.
    """
    value = json.loads(data)
    return PartRecord(
        value["plan"],
        value["shard"],
        value["images"],
        Part(**value["part"]) if value["part"] else None,
        tuple(Rejected(**entry) for entry in value["rejected"]),
        {kind: Corrected(**entry) for kind, entry in value["corrected"].items()},
    )


def begin(out: Location, source: Source) -> dict[int, PartRecord]:
    """Makes or checks an unfinished folder, and reads what is done in it.

    Returns:
        the part records of this plan by shard, those whose shard is in place in its full size.

    Raises:
        InputError: the folder cannot be written, or holds something else, or an unfinished sharding of another plan.
    """
    held = held_in(out)
    if is_foreign(held):
        raise InputError(f"{out}: is not empty; choose another --out")
    with beginning(out):
        if UNFINISHED in held:
            _check_marker(out, source)
        else:
            out.make_folder()
            (out / UNFINISHED).write(json.dumps(asdict(source)).encode())
        _remove(out, (name for name in held if is_aside(name, OURS)))
        records = _read_records(out, held)
    whole = [r for r in records if r.plan == source.fingerprint and _in_place(r, held)]
    return {record.shard: record for record in whole}


def is_foreign(names: Iterable[str]) -> bool:
    """Whether a folder with these names is not ours to write in; half a marker may be left of a killed process."""
    whole = [name for name in names if not is_aside(name, OURS)]
    return bool(whole) and UNFINISHED not in whole


def discard(out: Location) -> None:
    """Removes what a sharding writes, whole or in part, and nothing else that may lie there; the marker last."""
    held = [name for name in out.list() if OURS.fullmatch(name) or is_aside(name, OURS)]
    _remove(out, (name for name in held if name != UNFINISHED))
    (out / UNFINISHED).remove()


def remove_records(out: Location) -> None:
    """Removes what only an unfinished folder needs; the marker last."""
    _remove(out, (name for name in out.list() if RECORD.fullmatch(name)))
    (out / UNFINISHED).remove()


def counted(records: Iterable[PartRecord]) -> dict[str, Corrected]:
    """Everything that was corrected, by kind."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for record in records:
        for kind, entry in record.corrected.items():
            counts[kind] += entry.count
            first.setdefault(kind, entry.first)
    return {kind: Corrected(count, first[kind]) for kind, count in sorted(counts.items())}


def _check_marker(out: Location, source: Source) -> None:
    try:
        held: dict[str, Any] = json.loads((out / UNFINISHED).read())
        different = source.differences(held)
    except (ValueError, AttributeError):
        different = "written by another version"
    if different:
        raise InputError(
            f"{out}: holds an unfinished sharding of something else ({different}); give what it began with to go on, "
            "choose another --out, or delete it"
        )


def _read_records(out: Location, held: Iterable[str]) -> list[PartRecord]:
    """Those that can be read; a shard whose record cannot is written again."""

    def read(name: str) -> PartRecord | None:
        try:
            return parse_record((out / name).read())
        except (ValueError, TypeError, KeyError):
            return None

    names = sorted(name for name in held if RECORD.fullmatch(name))
    with ThreadPoolExecutor(FILES) as pool:
        return [record for record in pool.map(read, names) if record is not None]


def _in_place(record: PartRecord, held: Mapping[str, int | None]) -> bool:
    return record.part is None or held.get(record.part.file) == record.part.bytes


def _remove(out: Location, names: Iterable[str]) -> None:
    with ThreadPoolExecutor(FILES) as pool:
        for _ in pool.map(lambda name: (out / name).remove(), names):
            pass
