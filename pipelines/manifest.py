"""The manifest makes a folder of shards a data set: it is written last, so with it everything is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from msrcnn.errors import InputError
from pipelines.schema import SHARD_VERSION, Category, ShardMeta
from pipelines.storage import Location, Place, locate

MANIFEST = "manifest.json"
LOOKED_INTO = 20
"""Folders in one that lacks what was looked for, at most, that are looked into for what was meant."""


@dataclass(frozen=True)
class Part:
    """One shard in place: its name in the folder, what it holds, its size in bytes and its SHA-256."""

    file: str
    rows: int
    instances: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A finished data set.

    Attributes:
        folder: where it lies: a local path or a URL.
        name: of the data set.
        categories: in the order of their numbers 1..C.
        parts: its shards, in order.
        rejected: how many images and annotations were set aside, by reason.
        source: where the rows came from: annotation file, image folder, what the plan of the shards is bound to.
        corrected: how many boxes and areas of the annotation file its masks contradicted, by kind.
    """

    folder: Place
    name: str
    categories: tuple[Category, ...]
    parts: tuple[Part, ...]
    rejected: dict[str, int]
    source: dict[str, Any]
    corrected: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Images."""
        return sum(part.rows for part in self.parts)

    @property
    def instances(self) -> int:
        """Annotated instances, crowds included."""
        return sum(part.instances for part in self.parts)

    @property
    def bytes(self) -> int:
        """Size of the shards."""
        return sum(part.bytes for part in self.parts)

    @property
    def paths(self) -> list[str]:
        """The shards' full paths or URLs, in order; `pipelines.parquet.open_parquet` opens them."""
        folder = locate(self.folder)
        return [(folder / part.file).url for part in self.parts]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the parts' checksums: equal for equal bytes in the same order, wherever they lie."""
        return hashlib.sha256("".join(part.sha256 for part in self.parts).encode()).hexdigest()


def write_manifest(manifest: Manifest) -> None:
    """Writes `manifest.json` into the folder, which makes the data set finished."""
    value = {
        "name": manifest.name,
        "version": SHARD_VERSION,
        "categories": [asdict(category) for category in manifest.categories],
        "totals": {"rows": manifest.rows, "instances": manifest.instances, "bytes": manifest.bytes},
        "rejected": manifest.rejected,
        "corrected": manifest.corrected,
        "source": manifest.source,
        "parts": [asdict(part) for part in manifest.parts],
    }
    (locate(manifest.folder) / MANIFEST).write_json(value)


def read_manifest(folder: Place) -> Manifest:
    """Reads a finished data set's manifest and checks that its shards are there in their full size.

    Args:
        folder: a local path or a URL.

    Raises:
        InputError: there is no manifest, it cannot be read, or a shard is missing or cut short.
    """
    manifest = load_manifest(folder)
    for part, problem in broken_sizes(manifest):
        where = locate(folder) / part.file
        raise InputError(f"{where}: {problem}; copy the whole folder again or make it again with `msrcnn shard`")
    return manifest


def load_manifest(folder: Place) -> Manifest:
    """Reads the manifest alone.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    place = locate(folder)
    path = place / MANIFEST
    try:
        if path.size() is None:
            raise InputError(_no_manifest(place))
        value = json.loads(path.read())
        # Through the shards' own metadata class, so that versions are checked in one place.
        categories = [[entry["number"], entry["source_id"], entry["name"]] for entry in value["categories"]]
        described = {"name": value["name"], "version": value["version"], "categories": categories}
        meta = ShardMeta.from_metadata({b"msrcnn.shard": json.dumps(described).encode()}, str(path))
        parts = tuple(Part(**part) for part in value["parts"])
        counts = value["rejected"], value["source"], value.get("corrected", {})
        return Manifest(place, meta.name, meta.categories, parts, *counts)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"the key {error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: not a manifest of shards ({reason}); make them again with `msrcnn shard`") from error


def _no_manifest(place: Location) -> str:
    """What to say of a place that is given for a folder of shards."""
    if place.size() is not None:
        return f"{place}: is a file; give the folder that `msrcnn shard` made of it"
    inside = [name for name, size in sorted(place.list().items()) if size is None]
    found = next((name for name in inside[:LOOKED_INTO] if (place / name / MANIFEST).size() is not None), None)
    hint = f"give {place / found}, which has one" if found else "make shards with `msrcnn shard`"
    return f"{place}: no {MANIFEST}; {hint}"


def broken_sizes(manifest: Manifest) -> Iterator[tuple[Part, str]]:
    """The shards that are missing or have another size than the manifest says, and what is wrong."""
    found = locate(manifest.folder).list()
    for part in manifest.parts:
        size = found.get(part.file)
        if size is None:
            yield part, "missing"
        elif size != part.bytes:
            yield part, f"{size} bytes, the manifest says {part.bytes}"
