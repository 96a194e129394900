"""Parquet files behind local paths and URLs."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.storage import Location, Place, StorageError, check_seen, explained, locate, located


def open_parquet(place: Place) -> pq.ParquetFile:
    """The Parquet file at a place; `Manifest.paths` gives URLs of such."""
    place = _in_folder(place) if isinstance(place, str) else locate(place)
    remote = not isinstance(place.filesystem, fs.LocalFileSystem)
    return pq.ParquetFile(place.open(), pre_buffer=remote)  # which asks for all columns of a row group at once


def read_table(place: Place, row_group: int | None = None, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file's rows, or those of one row group.

    Raises:
        StorageError: it cannot be read; the message names it.
        InputError: this node does not see its folder.
    """
    try:
        file = open_parquet(place)
        return file.read(columns=columns) if row_group is None else file.read_row_group(row_group, columns=columns)
    except OSError as error:
        where = locate(place)
        if isinstance(error, FileNotFoundError):
            check_seen(where.parent)
        raise StorageError(
            f"{where}: cannot be read ({explained(error)}); put that right and give the same command again to go on"
        ) from error


def _in_folder(url: str) -> Location:
    """As `locate`, but files of a folder share its file system."""
    base, mark, options = url.partition("?")
    folder, _, name = base.rpartition("/")
    if "://" not in folder or "%" in name or "/" in options:  # a name as it is written, options as Arrow has them
        return locate(url)
    return located(folder + mark + options) / name
