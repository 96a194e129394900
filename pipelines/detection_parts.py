"""A folder of detections: one Parquet file for each row group of the shards, which says itself what it was made from.

part-00003-0002.parquet   the detections in the third row group of the fourth shard

A part is whole or absent, so what is there need not be computed again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from msrcnn.config import difference
from msrcnn.errors import InputError
from pipelines.manifest import Manifest
from pipelines.output_folder import beginning, going_on
from pipelines.parquet import open_parquet
from pipelines.storage import Location, Sink, is_aside
from pipelines.text_tables import counted

if TYPE_CHECKING:
    from pipelines.reading import RowGroup  # which takes Ray along

DETECTIONS = "detections"
"""The folder in that of an evaluation."""
VERSION = 2
"""Raised when a detection row's meaning changes; rows of another version are no detections."""
PART = re.compile(r"part-(\d{5,})-(\d{4,})\.parquet")
META = b"msrcnn.detections"
"""The key in a part's Parquet metadata."""
SHORT = 12
"""Hex digits of a fingerprint in rows and messages."""
FOOTERS = 16
"""Parts whose footers are read at a time."""

Key = tuple[int, int]
"""A row group: the place of its shard in the data set, and its own in the shard."""


@dataclass(frozen=True)
class Origin:
    """What detections follow from.

    Attributes:
        model: SHA-256 of the model file, or of another detector's results.
        dataset: fingerprint of the shards.
        settings: everything else that changes them; among it `heads`, where the model may have further MaskIoU heads,
            and `inference`, where the model was to detect otherwise than its file says.
    """

    model: str
    dataset: str
    settings: dict[str, Any]

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of further MaskIoU heads (`ModelConfig.heads`), whose predictions the rows hold in this order."""
        return tuple(self.settings.get("heads", ()))

    @property
    def inference(self) -> dict[str, Any]:
        """In what the model detected otherwise than its file says (`InferenceConfig.changed`)."""
        return dict(self.settings.get("inference", {}))

    def differences(self, held: Origin) -> str:
        """In which fields `held`, of parts that are there, is another; empty if in none."""
        old, new = ({"model": o.model[:SHORT], "dataset": o.dataset[:SHORT], **o.settings} for o in (held, self))
        return "; ".join(difference(old, new))


@dataclass(frozen=True)
class PartInfo:
    """What is in a part: images, detections, images that failed, and what the first of those says."""

    shard: int
    group: int
    images: int
    detections: int
    errors: int
    first_error: str | None = None

    @property
    def key(self) -> Key:
        """Its row group."""
        return self.shard, self.group


def key_of(group: RowGroup) -> Key:
    """How its part is found."""
    return group.shard, group.index


def part_name(key: Key) -> str:
    """Of the part of a row group."""
    return f"part-{key[0]:05d}-{key[1]:04d}.parquet"


class PartWriter:
    """Writes the detections of a row group, some rows at a time.

    Use it as a context: the part is there if the block ends well. Raises OSError where it cannot be written.

    Args:
        folder: of the parts.
        key: the row group.
        origin: what the detections follow from.

    Attributes:
        info: what was written so far.
    """

    def __init__(self, folder: Location, key: Key, origin: Origin) -> None:
        self.info = PartInfo(*key, images=0, detections=0, errors=0)
        self._place, self._origin = folder / part_name(key), origin
        self._open = ExitStack()
        self._sink: Sink | None = None
        self._parquet: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        """Writes rows of `DETECTION_ROW`, at least one an image, all of an image at once.

        `model` and `dataset` are filled in here.
        """
        errors, info = table["error"].drop_null(), self.info
        self.info = replace(
            info,
            images=info.images + len(table["image_id"].unique()),
            detections=info.detections + len(table) - table["category"].null_count,
            errors=info.errors + len(errors),
            first_error=errors[0].as_py() if info.first_error is None and len(errors) else info.first_error,
        )
        for name, value in (("model", self._origin.model), ("dataset", self._origin.dataset)):
            column = pa.repeat(pa.scalar(value[:SHORT]), len(table))
            table = table.set_column(table.schema.get_field_index(name), name, column)
        if self._parquet is None:
            parquet = pq.ParquetWriter(self._sink, table.schema, compression="zstd")
            self._parquet = self._open.enter_context(parquet)
        self._parquet.write_table(table)

    def __enter__(self) -> PartWriter:
        self._sink = self._open.enter_context(self._place.writing())
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: Any) -> None:
        if kind is None and self._parquet is not None:
            meta = {"version": VERSION, "origin": asdict(self._origin), "part": asdict(self.info)}
            self._parquet.add_key_value_metadata({META: json.dumps(meta).encode()})
        self._open.__exit__(kind, *raised)


def write_part(folder: Location, key: Key, table: pa.Table, origin: Origin) -> PartInfo:
    """Writes the detections of a row group at once.

    Raises:
        StorageError: the folder cannot be written.
    """
    with going_on(folder / part_name(key)), PartWriter(folder, key, origin) as part:
        part.add(table)
    return part.info


def read_info(place: Location) -> tuple[Origin, PartInfo] | None:
    """What a part says of itself; None if it is damaged or no part."""
    try:
        meta = json.loads((open_parquet(place).metadata.metadata or {})[META])
        if meta["version"] != VERSION:
            return None
        return Origin(**meta["origin"]), PartInfo(**meta["part"])
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return None


def prepare(folder: Location, origin: Origin) -> dict[Key, PartInfo]:
    """Makes a folder or checks an unfinished one; the parts that are in it, damaged ones left out.

    Raises:
        InputError: it cannot be written, holds something else, or parts of another origin.
    """
    with beginning(folder):
        folder.make_folder()
        held = folder.list()
        foreign = [name for name in held if not PART.fullmatch(name) and not is_aside(name, PART)]
        if foreign:
            raise InputError(f"{folder}: holds {min(foreign)}, which is no part of detections; choose another --out")
        for name in held:
            if is_aside(name, PART):
                (folder / name).remove()
    found = _read_all(folder, filter(PART.fullmatch, held))
    for other, info in found:
        if different := origin.differences(other):
            raise InputError(f"{folder}: holds detections of something else ({part_name(info.key)}: {different}); give "
                             "what it began with to go on, choose another --out, or delete it")  # fmt: skip
    return {info.key: info for _, info in found}


@dataclass(frozen=True)
class StoredDetections:
    """A complete folder of detections."""

    folder: Location
    origin: Origin
    parts: tuple[PartInfo, ...]


def read_parts(folder: Location, manifest: Manifest, groups: Sequence[RowGroup]) -> StoredDetections:
    """The parts of a folder, which must be there for every row group.

    Raises:
        InputError: one is missing or damaged, or they were made from other shards or by several models.
    """
    found = _read_all(folder, filter(PART.fullmatch, folder.list()))
    if not found:
        raise InputError(f"{folder}: holds no detections; make them with `msrcnn evaluate`")
    origin = found[0][0]
    if origin.dataset != manifest.fingerprint:
        raise InputError(f"{folder}: its detections were made from other shards than {manifest.folder} "
                         f"({origin.dataset[:SHORT]}, not {manifest.fingerprint[:SHORT]}); give those")  # fmt: skip
    for other, info in found:
        if different := origin.differences(other):
            raise InputError(f"{folder}: {part_name(info.key)} differs from other parts ({different}); evaluate again")
    by_key = {info.key: info for _, info in found}
    missing = [key_of(group) for group in groups if key_of(group) not in by_key]
    if missing:
        raise InputError(f"{folder}: {len(missing)} of {len(groups)} parts are missing or damaged (the first is "
                         f"{part_name(missing[0])}); give the command that made them again to go on")  # fmt: skip
    return StoredDetections(folder, origin, tuple(by_key[key_of(group)] for group in groups))


def folder_of(place: Location) -> Location:
    """The folder of parts that `place` means: itself, or that in the folder of an evaluation.

    Raises:
        InputError: there is no such folder.
    """
    if (place / DETECTIONS).is_folder():
        return place / DETECTIONS
    if not place.is_folder():
        raise InputError(f"{place}: no such folder; give one that `msrcnn evaluate` made")
    return place


def report_failures(parts: Iterable[PartInfo], strict: bool, log: Callable[[str], None]) -> None:
    """Says which images failed.

    Raises:
        InputError: `strict`, and one did.
    """
    failed = [part for part in parts if part.errors]
    if not failed:
        return
    number = counted(sum(part.errors for part in failed), "image")
    line = f"{number} failed (first: {failed[0].first_error})"
    if strict:
        raise InputError(f"{line}; mend the data set, or leave out --strict to count them as missed")
    log(f"warning: {line}; what is in them counts as missed")


def _read_all(folder: Location, names: Iterable[str]) -> list[tuple[Origin, PartInfo]]:
    with ThreadPoolExecutor(FOOTERS) as pool:
        infos = pool.map(lambda name: read_info(folder / name), sorted(names))
        return [info for info in infos if info is not None]
