"""`msrcnn shard --verify`: is a finished data set still what its manifest says?"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from msrcnn.errors import InputError
from pipelines.manifest import Manifest, Part, broken_sizes, load_manifest
from pipelines.options import VerifyConfig
from pipelines.parquet import open_parquet
from pipelines.schema import SHARD_ROW, ShardMeta
from pipelines.storage import explained, locate, sha256_of

SHARDS = 8
"""Read at a time; hashing leaves Python to the others."""


def verify(config: VerifyConfig, log: Callable[[str], None] = print) -> Manifest:
    """Reads every byte of every shard and compares size, SHA-256, rows and schema.

    Raises:
        InputError: a shard is broken, after a line to `log` for each; or there is no data set.
    """
    manifest = load_manifest(config.out)
    problems = {part.file: problem for part, problem in broken_sizes(manifest)}
    whole = [part for part in manifest.parts if part.file not in problems]
    with ThreadPoolExecutor(SHARDS) as pool:
        for part, problem in zip(whole, pool.map(lambda part: _problem(part, manifest), whole), strict=True):
            if problem:
                problems[part.file] = problem
    for file, problem in sorted(problems.items()):
        log(f"broken: {file}: {problem}")
    if problems:
        raise InputError(
            f"{manifest.folder}: {len(problems)} of {len(manifest.parts)} shards are broken; copy them again, or "
            "delete the folder and make it again with `msrcnn shard`"
        )
    log(
        f"{manifest.folder}: data set '{manifest.name}' is whole: {len(manifest.parts)} shards, "
        f"{manifest.rows} images, {manifest.instances} instances, {manifest.bytes / 1e6:.1f} MB"
    )
    return manifest


def _problem(part: Part, manifest: Manifest) -> str | None:
    """What is wrong with a shard that has its size; None if nothing is."""
    place = locate(manifest.folder) / part.file
    try:
        if sha256_of(place) != part.sha256:
            return "its SHA-256 is not the manifest's"
        footer = open_parquet(place)
        schema, rows = footer.schema_arrow, footer.metadata.num_rows
    except OSError as error:
        return f"cannot be read ({explained(error)})"
    except pa.ArrowException as error:
        return f"not a Parquet file ({str(error).split(chr(10))[0]})"
    if rows != part.rows:
        return f"{rows} rows, the manifest says {part.rows}"
    if not schema.equals(SHARD_ROW):
        return "its columns are not those of a shard"
    try:
        meta = ShardMeta.from_metadata(schema.metadata, part.file)
    except InputError as error:
        return str(error)
    return None if meta == ShardMeta(manifest.name, manifest.categories) else "its categories are not the manifest's"
