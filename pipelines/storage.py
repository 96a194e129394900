"""Files and folders behind local paths and URLs (`s3://`, `gs://`, `file://`, whatever fsspec knows).

A file is written so that nobody takes half of it for whole. Where renaming is atomic (local disks, HDFS) it is
written under another name and renamed. An object store knows no renaming, only copying and deleting, but an object
appears when its last byte is there, so it is written under its own name; if writing fails in between, what may have
appeared is deleted. A process that is killed leaves the former file, or none. Beyond that, what is long to write is
believed only through a small record written after it: a part record for a shard, the manifest for a data set.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from cluster.credentials import without_password
from msrcnn.errors import InputError
from pipelines.file_locks import lock

RENAMING = ("local", "hdfs")
"""Arrow's names of the file systems whose renaming is atomic."""
CHUNK = 2**22
"""Bytes copied at a time."""
PLAIN = "/:@!$&'()*+,;="
"""Beside letters and digits, what a URL's path may hold as it is (RFC 3986, section 3.3)."""
ASIDE = re.compile(r"(?P<name>.+)\.tmp-[0-9a-f]{12}")
"""Under what name a file is written before it is renamed; see `aside_of`."""


class StorageError(InputError):
    """A storage failed, which is no fault of the file that was to be read or written: the next try may succeed."""


@dataclass(frozen=True)
class Location:
    """A file or folder; `/` leads further down.

    Attributes:
        filesystem: which holds it.
        path: in it.
        url: the absolute local path or the URL; `locate` leads back here from it.
    """

    filesystem: fs.FileSystem
    path: str
    url: str

    def __truediv__(self, name: str) -> Location:
        base, options = self._parts()
        # Where they are parsed, # and ? would end the path, and % begin a character.
        written = quote(name, safe=PLAIN) if self._parsed else name
        return Location(self.filesystem, _join(self.path, name), _join(base, written) + options)

    def __str__(self) -> str:
        """For messages and records: without the password that a URL may hold."""
        return without_password(self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The path on this machine's own file system; None where it is another."""
        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    @property
    def renames(self) -> bool:
        """Whether its file system renames atomically."""
        return _renames(self.filesystem)

    def is_folder(self) -> bool:
        """Whether it is there and a folder; in an object store, whether any name begins with it."""
        return self._info().type == fs.FileType.Directory

    def size(self) -> int | None:
        """Bytes of the file; None if there is no such file."""
        info = self._info()
        return info.size if info.type == fs.FileType.File else None

    def list(self) -> dict[str, int | None]:
        """What the folder holds: the size of each file in bytes, None for a folder; empty if it is not there."""
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name: info.size if info.type == fs.FileType.File else None for info in infos}

    def open(self) -> pa.NativeFile:
        """For reading, at any position."""
        return self.filesystem.open_input_file(self.path)

    def read(self) -> bytes:
        """All of the file."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def write(self, data: bytes) -> None:
        """Makes or replaces the file; see the module."""
        with self.writing() as sink:
            sink.write(data)

    def write_json(self, value: Any) -> None:
        """Makes or replaces the file: the value as people read it."""
        self.write((json.dumps(value, indent=1) + "\n").encode())

    @contextmanager
    def writing(self) -> Iterator[Sink]:
        """A stream into the file, which is there only if the block ends well; see the module."""
        rename = _renames(self.filesystem)
        target = aside_of(self.path) if rename else self.path
        sink = None
        try:
            with self.filesystem.open_output_stream(target) as stream:
                sink = Sink(stream)
                yield sink
            if rename:
                self.filesystem.move(target, self.path)
        except BaseException:
            if sink is not None:
                with suppress(OSError):
                    self.filesystem.delete_file(target)
            raise

    @property
    def parent(self) -> Location:
        """The folder that it is in."""
        base, options = self._parts()
        return Location(self.filesystem, self.path.rstrip("/").rpartition("/")[0] or "/",
                        (base.rstrip("/").rpartition("/")[0] or "/") + options)  # fmt: skip

    def make_folder(self) -> None:
        """With its parents; does nothing if it is there."""
        if self.path:  # else the root
            self.filesystem.create_dir(self.path, recursive=True)

    def remove(self) -> None:
        """Deletes the file; does nothing if it is not there."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path)

    def remove_folder(self) -> None:
        """Deletes the folder and what is in it; does nothing if it is not there."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path)

    def copy_to(self, other: Location) -> None:
        """Copies the file; the other is whole or absent."""
        with self.filesystem.open_input_stream(self.path) as source, other.writing() as sink:
            while chunk := source.read(CHUNK):
                sink.write(chunk)

    @property
    def _parsed(self) -> bool:
        """Whether the URL is one as Arrow parses it; fsspec takes the characters of a path as they are."""
        return "://" in self.url and not isinstance(self.filesystem, fs.PyFileSystem)

    def _parts(self) -> tuple[str, str]:
        """The URL up to its options, and these with their question mark."""
        base, mark, options = self.url.partition("?") if self._parsed else (self.url, "", "")
        return base, mark + options

    def _info(self) -> fs.FileInfo:
        return self.filesystem.get_file_info(self.path)


Place = str | Path | Location
"""What `locate` takes."""


class Sink:
    """A binary stream for writing that knows how many bytes went through it and their SHA-256."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        """Takes bytes or a buffer."""
        view = memoryview(data)
        self._stream.write(data)
        self._hash.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Passes on what is buffered."""
        self._stream.flush()

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._hash.hexdigest()


def locate(place: Place) -> Location:
    """Where a local path or a URL leads. Arrow's own file systems are tried first, then fsspec's.

    Raises:
        InputError: no file system for the URL is installed, or it cannot be reached.
    """
    if isinstance(place, Location):
        return place
    text = str(place)
    if isinstance(place, Path) or "://" not in text:
        path = os.path.abspath(text)
        return Location(fs.LocalFileSystem(), path, path)
    try:
        filesystem, path = _resolve(text)
    except (ImportError, ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{without_password(text)}: no file system for it ({without_password(reason)}); install one for fsspec, or "
            "correct the URL"
        ) from error
    return Location(filesystem, path, text.rstrip("/") if "?" not in text else text)


def sha256_of(place: Place) -> str:
    """Of a file's bytes, in hexadecimal digits; the file is read piece by piece."""
    with locate(place).open() as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def on_disk(place: Location) -> Iterator[Path]:
    """The file where this machine's programs can open it: itself if it is local, else a copy for the block's length."""
    if place.local is not None:
        yield place.local
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = locate(Path(folder) / (place.name or "file"))
        place.copy_to(copy)
        yield Path(copy.path)


@contextmanager
def file_for(place: Location) -> Iterator[Path]:
    """A local path to write to at any position; its content is at `place` if the block ends well."""
    if place.local is not None:
        aside = Path(aside_of(place.path))
        try:
            yield aside
            os.replace(aside, place.local)
        finally:
            aside.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / place.name
        yield path
        locate(path).copy_to(place)


@contextmanager
def exclusively(folder: Location, doing: str, option: str = "--out") -> Iterator[None]:
    """Keeps other processes of this machine out of a local folder for the block; behind a URL, and on a file system
    without locks, nothing does.

    Args:
        folder: that is there.
        doing: what they would get in the way of, as in 'sharding into'.
        option: of the command, that names the folder.

    Raises:
        InputError: another process is in it.
    """
    if folder.local is None:
        yield
        return
    descriptor = os.open(folder.local, os.O_RDONLY)
    try:
        try:
            lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is {doing} it; wait or choose another {option}") from None
        yield
    finally:
        os.close(descriptor)


@lru_cache(maxsize=256)
def located(folder: str) -> Location:
    """As `locate`, but what is asked for again shares its file system: a new one brings its own connections and asks
    anew who we are, and a data set has thousands of files."""
    return locate(folder)


def aside_of(path: str) -> str:
    """A name, of nobody else's, to write a file under before it is renamed."""
    return f"{path}.tmp-{uuid.uuid4().hex[:12]}"


def is_aside(name: str, of: re.Pattern[str]) -> bool:
    """Whether a file of this name was written aside for one whose name fits: a process that was killed leaves it."""
    match = ASIDE.fullmatch(name)
    return match is not None and of.fullmatch(match["name"]) is not None


def _resolve(url: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(url)
    except pa.ArrowInvalid:  # not one of Arrow's
        import fsspec

        # Other processes write into the folders that this one lists.
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _renames(filesystem: fs.FileSystem) -> bool:
    while isinstance(filesystem, fs.SubTreeFileSystem):
        filesystem = filesystem.base_fs
    return filesystem.type_name in RENAMING


def _join(base: str, name: str) -> str:
    return f"{base.rstrip('/')}/{name}" if base else name


def check_seen(folder: Location) -> None:
    """For where a file in a folder that the driver listed is missing on a node.

    Raises:
        InputError: all of the folder is, so that the file may well be there.
    """
    if not folder.is_folder():
        raise InputError(unseen(folder))


def unseen(folder: Location) -> str:
    """The line for where this node does not see what others do."""
    return f"{folder}: node {socket.gethostname()} does not see it; give a path that every node sees, or a URL"


def explained(error: OSError) -> str:
    """What went wrong, in a few words: messages of Arrow and fsspec name the file again, or nothing else."""
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    if isinstance(error, FileNotFoundError):
        return os.strerror(errno.ENOENT)
    return without_password(str(error).split("\n")[0]) or type(error).__name__
