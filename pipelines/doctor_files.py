"""Checks of folders: storage that every node writes to and sees alike, and shards that are whole and readable there."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa

from cluster.probes import Probes, within
from msrcnn.errors import InputError
from pipelines.doctor_report import Report, listed
from pipelines.manifest import MANIFEST, Manifest, broken_sizes, load_manifest
from pipelines.node_facts import user
from pipelines.parquet import open_parquet
from pipelines.storage import Location, explained, locate
from pipelines.text_tables import counted

SECONDS = 60.0
"""How long a storage has: for the driver's files, and then for the nodes'."""
DRIVER = "driver"
LOST, DENIED = "lost", "denied"
"""What is wrong with a node's storage: it is not the driver's; it cannot be used."""
NOT_SHARED = (
    "give a folder that all nodes mount (NFS, Lustre, EFS, a PersistentVolumeClaim ReadWriteMany), at the same path, "
    "or a URL of an object store"
)
MAY_WRITE = "let this user write there on every node, give credentials to every node, or choose another folder"
WHOLE = "copy the folder again, or give the `msrcnn shard` command again in an empty one"


def check_storage(report: Report, probes: Probes, place: str) -> None:
    """The driver's file is seen by every node, and every node's by the driver; nothing of it stays."""
    token = uuid.uuid4().hex
    try:
        folder = locate(place)
        with _folder_for(folder, token) as ours:
            within(SECONDS, (ours / DRIVER).write, token.encode())
            answers = probes.ask(take_part, lambda node: (ours.url, token, node.id), seconds=SECONDS)
            problems = {node: found for node, found in answers.values.items() if found is not None}
            for node in answers.values:
                if node not in problems and not _sees(ours, node.id, token):
                    problems[node] = LOST, f"it wrote into {folder}, and the driver does not see the file"
    except InputError as error:
        return report.refuse("storage", str(error))
    except (OSError, pa.ArrowException) as error:  # a TimeoutError is an OSError
        why = f"{user()} cannot write into {shown(place)} from the driver: {_reason(error)}"
        return report.fail("storage", why, MAY_WRITE)
    report.unanswered("storage", answers)
    for kind, remedy in ((LOST, NOT_SHARED), (DENIED, MAY_WRITE)):
        report.by_node("storage", {n: text for n, (found, text) in problems.items() if found == kind}, remedy)
    if not problems and not answers.failures:
        seen = counted(len(answers.values), "node")
        report.ok("storage", f"{folder}: written and seen by the driver and {seen}")
    return None


def take_part(url: str, token: str, name: str) -> tuple[str, str] | None:
    """Runs on a node: reads the driver's file and writes its own; what is wrong, LOST or DENIED, or None."""
    try:
        folder = locate(url)
        seen = (folder / DRIVER).read().decode(errors="replace")
    except FileNotFoundError:
        seen = ""
    except InputError as error:
        return DENIED, str(error)
    except (OSError, pa.ArrowException) as error:
        return DENIED, f"{user()} cannot read {shown(url)} ({_reason(error)})"
    if seen != token:
        return LOST, f"{folder.parent} is not the driver's folder of that name, or is not there"
    try:
        (folder / name).write(f"{token} {name}".encode())
    except (OSError, pa.ArrowException) as error:
        return DENIED, f"{user()} cannot write into {folder.parent} ({_reason(error)})"
    return None


def check_shards(report: Report, probes: Probes, place: str) -> None:
    """All shards are there in their full size, and every node sees the same manifest and reads a shard's footer."""
    try:
        manifest = within(SECONDS, load_manifest, place)
        problems = within(SECONDS, lambda: [*broken_sizes(manifest)])
        digest = within(SECONDS, _digest, manifest)
    except InputError as error:
        return report.refuse("shards", str(error))
    except (OSError, pa.ArrowException) as error:
        return report.fail("shards", f"{shown(place)}: {_reason(error)}", "correct the path, or give credentials")
    folder, shards = locate(place), counted(len(manifest.parts), "shard")
    if problems:
        first = listed([f"{part.file} ({problem})" for part, problem in problems])
        return report.fail("shards", f"{folder}: {len(problems)} of {shards} broken: {first}", WHOLE)
    turns = {node: turn for turn, node in enumerate(probes.nodes)}
    answers = probes.ask(read_one, lambda node: (folder.url, digest, turns[node]), seconds=SECONDS)
    report.unanswered("shards", answers)
    failed = {node: found for node, found in answers.values.items() if found is not None}
    report.by_node("shards", failed, NOT_SHARED)
    if not failed and not answers.failures:
        report.ok("shards", f"{folder}: {counted(manifest.rows, 'image')} in {shards}, {manifest.bytes / 1e9:.1f} GB, "
                  f"read on {counted(len(answers.values), 'node')}")  # fmt: skip
    return None


def read_one(url: str, digest: str, turn: int) -> str | None:
    """Runs on a node: compares the manifest with the driver's and opens a shard; what is wrong, or None.

    Args:
        digest: of the driver's manifest file.
        turn: which shard; counted round.
    """
    try:
        manifest = load_manifest(url)
        if _digest(manifest) != digest:
            return f"{locate(url)}: another {MANIFEST} than the driver's"
        if manifest.parts:
            part = manifest.parts[turn % len(manifest.parts)]
            rows = open_parquet(locate(url) / part.file).metadata.num_rows
            if rows != part.rows:
                return f"{locate(url) / part.file}: {rows} rows, the manifest says {part.rows}"
    except InputError as error:
        return str(error).rpartition("; ")[0] or str(error)
    except (OSError, pa.ArrowException) as error:
        return f"{shown(url)}: cannot be read ({_reason(error)})"
    return None


@contextmanager
def _folder_for(folder: Location, token: str) -> Iterator[Location]:
    """A folder in it for the block, with the parents that it needs; afterwards all that were made are gone again."""
    ours = folder / f".msrcnn-doctor-{token[:12]}"
    made = within(SECONDS, _absent, folder)
    try:
        within(SECONDS, ours.make_folder)
        yield ours
    finally:
        with suppress(Exception):
            within(SECONDS, _clear, [ours, *made])


def _absent(folder: Location) -> list[Location]:
    """It and its parents as far as they are not there, the deepest first."""
    found: list[Location] = []
    while not folder.is_folder() and folder.parent.path != folder.path:
        found.append(folder)
        folder = folder.parent
    return found


def _clear(folders: list[Location]) -> None:
    """Deletes the first folder, and those of the others that are empty then."""
    folders[0].remove_folder()
    for parent in folders[1:]:
        if parent.list():
            return
        parent.remove_folder()


def _sees(folder: Location, name: str, token: str) -> bool:
    try:
        return within(SECONDS, (folder / name).read) == f"{token} {name}".encode()
    except (OSError, pa.ArrowException):
        return False


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256((locate(manifest.folder) / MANIFEST).read()).hexdigest()


def shown(place: str) -> str:
    """For messages: without a password; as it was given where it leads nowhere."""
    try:
        return str(locate(place))
    except InputError:
        return place


def _reason(error: Exception) -> str:
    return explained(error) if isinstance(error, OSError) else str(error).split("\n")[0]
