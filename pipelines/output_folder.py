"""What goes wrong with a folder or file that a command writes, as one line that says which option to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msrcnn.errors import InputError
from pipelines.storage import Location, StorageError, explained


def held_in(folder: Location) -> dict[str, int | None]:
    """What is in the folder already, as `Location.list` gives it; empty if it is not there.

    Raises:
        InputError: it is a file, or cannot be listed.
    """
    try:
        return folder.list()
    except NotADirectoryError as error:
        raise InputError(f"{folder}: is a file; choose a folder for --out") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({explained(error)}); choose another --out") from error


@contextmanager
def beginning(place: Location, option: str = "--out") -> Iterator[None]:
    """For the block that makes a folder and writes there for the first time, or that writes a command's only file.

    Args:
        place: to be written.
        option: of the command, that names it.

    Raises:
        InputError: the block fails to: another place may do.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({explained(error)}); choose another {option}") from error


@contextmanager
def going_on(place: Location) -> Iterator[None]:
    """For a block that writes later, when there is work that another folder would lose.

    Args:
        place: the file that is written, or the folder of all.

    Raises:
        StorageError: the block fails to.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{place}: cannot be written ({explained(error)}); put that right and give the same command again to go on"
        ) from error
