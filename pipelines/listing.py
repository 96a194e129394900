"""The sizes of many files, from a listing of each folder that they are in."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from pipelines.storage import Location

LISTINGS = 16
"""Folders listed at a time: each listing waits, for an object store perhaps a second."""


def sizes_in(folder: Location, names: Iterable[str]) -> dict[str, int]:
    """The sizes of those files under the folder that are there, in bytes, by name.

    Every folder that the names lead to is listed once, since an object store takes as long for a thousand names of a
    listing as for a single file.

    Raises:
        OSError: a folder is there and cannot be listed.
    """
    by_parent: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        parent, _, last = name.rpartition("/")
        by_parent[parent].append((name, last))

    def found(parent: str) -> dict[str, int]:
        try:
            listed = (folder / parent if parent else folder).list()
        except (NotADirectoryError, FileNotFoundError, ValueError):  # a zero byte in a name is a ValueError
            return {}
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return {}
            raise
        sizes = ((name, listed.get(last)) for name, last in by_parent[parent])
        return {name: size for name, size in sizes if size is not None}

    with ThreadPoolExecutor(LISTINGS) as pool:
        merged: dict[str, int] = {}
        for part in pool.map(found, by_parent):
            merged |= part
    return merged
