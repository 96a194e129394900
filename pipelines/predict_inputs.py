"""What `msrcnn predict` is given, as images and videos: each once, in the order given, with a name of its own.

A folder gives the images below it, sorted; a pattern what it matches, sorted. Names are relative to the folder that
was given, so that what is made keeps its structure; where two would be the same, the folders above tell them apart.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

from pyarrow import fs

from cluster.credentials import without_password
from msrcnn.errors import InputError
from pipelines.storage import Location, explained, locate, located

IMAGES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
"""By their suffix: what is taken from a folder."""
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"})
DRAWN = frozenset({".jpg", ".jpeg", ".png"})
"""An overlay of another kind of image is a PNG."""


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Attributes:
        folder: that it is in, a local path or a URL.
        file: its name there.
        name: relative to the folder that was given; no other source has it.
        state: its size in bytes and when it was last changed, as far as they are known; another after a change.
    """

    folder: str
    file: str
    name: str
    state: str = field(default="", compare=False)

    @property
    def place(self) -> Location:
        """Where it is."""
        return located(self.folder) / self.file

    @property
    def is_video(self) -> bool:
        """By its suffix; anything else is an image."""
        return _suffix(self.file) in VIDEOS

    @property
    def overlay(self) -> str:
        """The name of what is drawn of it."""
        if self.is_video:
            return self.name if _suffix(self.name) == ".mp4" else f"{self.name}.mp4"
        return self.name if _suffix(self.name) in DRAWN else f"{self.name}.png"


def find_sources(given: Iterable[str | Path], out: Location) -> list[Source]:
    """Every image and video that is meant, each once.

    Args:
        given: files, folders, patterns; local or URLs.
        out: the folder of results; what lies below it is left out.

    Raises:
        InputError: one does not exist, a folder has no image, or a pattern matches nothing.
    """
    found: dict[tuple[str, str], Source] = {}
    for text in map(str, given):
        told = without_password(text)
        try:
            new = list(_matches(text) if _is_pattern(text) else _behind(locate(text)))
        except UnicodeError:
            told = told.encode(errors="replace").decode()
            raise InputError(f"{told}: a file name there is not UTF-8; rename the file") from None
        new = [one for one in new if not _lies_in(located(one.folder), out)]
        if not new:
            raise InputError(f"{told}: {_nothing(text)}")
        for one in new:
            found.setdefault((one.folder, one.file), one)
    return _with_own_names([*found.values()])


def _lies_in(folder: Location, out: Location) -> bool:
    """Whether a folder is `out` or below it, however either was written."""
    path, own = os.path.normpath(folder.path), os.path.normpath(out.path)
    return f"{path}/".startswith(f"{own}/") and folder.filesystem.equals(out.filesystem)


def _is_pattern(text: str) -> bool:
    """Whether it has wildcards; a file that is really called so has none, and in a URL ? begins its options."""
    if "://" in text:
        return any(mark in text.partition("?")[0] for mark in "*[")
    return glob.has_magic(text) and not Path(text).exists()


def _behind(place: Location) -> Iterator[Source]:
    """The file itself, or the images below a folder."""
    try:
        info = place.filesystem.get_file_info(place.path)
        if info.type == fs.FileType.File:
            yield Source(place.parent.url, place.name, place.name, _state(info))
        elif info.type == fs.FileType.Directory:
            for name, file in _below(place, recursive=True).items():
                if _suffix(name) in IMAGES:
                    yield _source(place, name, name, file)
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({explained(error)}); give another") from error


def _below(folder: Location, recursive: bool) -> dict[str, fs.FileInfo]:
    """The files in a folder by their names relative to it, sorted; without hidden ones."""
    start = len(folder.path.rstrip("/")) + 1
    if folder.local is not None:
        paths = [f"{folder.path.rstrip('/')}/{path.relative_to(folder.local)}" for path in _walked(folder.local)]
        "".join(paths).encode()  # a UnicodeError where one is no text
        found = dict(zip((path[start:] for path in paths), folder.filesystem.get_file_info(paths), strict=True))
    else:
        infos = folder.filesystem.get_file_info(fs.FileSelector(folder.path, recursive=recursive))
        found = {info.path[start:]: info for info in infos if info.type == fs.FileType.File}
    names = (name for name in found if not any(part.startswith(".") for part in name.split("/")))
    return {name: found[name] for name in sorted(names, key=_order)}


def _walked(folder: Path) -> Iterator[Path]:
    """The files below a local folder. Links are followed, but no folder is entered twice."""

    def fail(error: OSError) -> NoReturn:
        raise error

    entered = set()
    for base, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(base)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        yield from (Path(base) / file for file in files)


def _matches(text: str) -> Iterator[Source]:
    if "://" not in text:
        for path in sorted(glob.glob(text, recursive=True), key=_order):
            yield from _behind(locate(path))
        return
    base, mark, query = text.partition("?")
    scheme, rest = base.split("://", 1)
    fixed, wild = [], rest.rstrip("/").split("/")
    while not any(c in wild[0] for c in "*["):
        fixed.append(wild.pop(0))
    if not fixed:
        raise InputError(f"{without_password(text)}: a pattern must not begin before the first folder; name the bucket")
    folder = locate(f"{scheme}://{'/'.join(fixed)}{mark}{query}")
    try:
        files = _below(folder, recursive=len(wild) > 1 or "**" in wild)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({explained(error)}); correct the URL") from error
    for name, file in files.items():
        if _fits(name.split("/"), wild):
            yield _source(folder, name, PurePosixPath(name).name, file)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern, part by part; `**` is any number of folders."""
    if not pattern or not parts:
        return not pattern and not parts
    if list(pattern) == ["**"]:
        return True
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or _fits(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _nothing(text: str) -> str:
    if _is_pattern(text):
        return "matches no file; correct the pattern"
    place = locate(text)
    if not place.is_folder():
        return "no such file or folder; correct the name"
    kinds = ", ".join(sorted(IMAGES))
    if any(_suffix(name) in VIDEOS for name in _below(place, recursive=True)):
        return "no image in this folder; videos in it are taken by name or pattern, as in '*.mp4'"
    return f"no image in this folder; looked for {kinds}"


def _with_own_names(sources: list[Source]) -> list[Source]:
    """The sources with a different name each: longer by the folders above where that is needed."""
    names = [one.name for one in sources]
    while True:
        overlays = [Source("", "", name).overlay for name in names]  # with these the names differ too
        counts = Counter(overlays)
        same = [i for i, overlay in enumerate(overlays) if counts[overlay] > 1]
        if not same:
            return [replace(one, name=name) for one, name in zip(sources, names, strict=True)]
        longer = {i: "/".join(_parts(sources[i])[-(names[i].count("/") + 2) :]) for i in same}
        if all(names[i] == name for i, name in longer.items()):  # nothing above is left: a.tif beside a.tif.png
            longer = {i: f"{i}/{names[i]}" for i in same}
        for i, name in longer.items():
            names[i] = name


def _parts(source: Source) -> list[str]:
    return [part for part in source.place.path.split("/") if part]


def _source(folder: Location, name: str, shown: str, info: fs.FileInfo) -> Source:
    """A file below a folder."""
    place = folder / name
    return Source(place.parent.url, place.name, shown, _state(info))


def _state(info: fs.FileInfo) -> str:
    return f"{info.size} bytes, {info.mtime_ns} ns"


def _order(name: str) -> list[str]:
    return name.split("/")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
