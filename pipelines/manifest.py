"""The manifest makes a folder of shards a data set: it is written last, so with it everything is there."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msrcnn.errors import InputError
from pipelines.schema import SHARD_VERSION, Category, ShardMeta

MANIFEST = "manifest.json"


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
        folder: where it lies.
        name: of the data set.
        categories: in the order of their numbers 1..C.
        parts: its shards, in order.
        rejected: how many images and annotations were set aside, by reason.
        source: where the rows came from: annotation file, image folder, seed.
    """

    folder: Path
    name: str
    categories: tuple[Category, ...]
    parts: tuple[Part, ...]
    rejected: dict[str, int]
    source: dict[str, Any]

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
        """The shards' full paths, in order."""
        return [str(self.folder / part.file) for part in self.parts]

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
        "source": manifest.source,
        "parts": [asdict(part) for part in manifest.parts],
    }
    with written_aside(manifest.folder / MANIFEST) as aside:
        aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Reads a finished data set's manifest and checks that its shards are there in their full size.

    Raises:
        InputError: there is no manifest, it cannot be read, or a shard is missing or cut short.
    """
    folder = Path(folder).absolute()
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: no {MANIFEST}; make shards with `msrcnn shard`")
    try:
        value = json.loads(path.read_bytes())
        # Through the shards' own metadata class, so that versions are checked in one place.
        categories = [[entry["number"], entry["source_id"], entry["name"]] for entry in value["categories"]]
        described = {"name": value["name"], "version": value["version"], "categories": categories}
        meta = ShardMeta.from_metadata({b"msrcnn.shard": json.dumps(described).encode()}, str(path))
        parts = tuple(Part(**part) for part in value["parts"])
        manifest = Manifest(folder, meta.name, meta.categories, parts, value["rejected"], value["source"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"the key {error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: not a manifest of shards ({reason}); make them again with `msrcnn shard`") from error
    _check_parts(folder, parts)
    return manifest


def _check_parts(folder: Path, parts: Sequence[Part]) -> None:
    for part in parts:
        shard = folder / part.file
        size = shard.stat().st_size if shard.is_file() else None
        if size != part.bytes:
            found = "missing" if size is None else f"{size} bytes, the manifest says {part.bytes}"
            raise InputError(f"{shard}: {found}; copy the whole folder again or make it again with `msrcnn shard`")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and renames it to `path` only if the block ends well."""
    aside = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
