"""A growing file of JSON lines, local or behind a URL."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from pipelines.storage import Location

REWRITE_SECONDS = 30.0
"""An object store cannot append: the whole file is written again, so often at most unless asked for."""


class JsonLines:
    """Lines of JSON objects, each with a "step", in ascending order of what was written.

    Where the file system can append, a line is in the file when `append` returns; elsewhere when `flush` does.

    Args:
        place: the file; made by the first line if absent. A last line that a killed writer left unfinished is dropped.
    """

    def __init__(self, place: Location) -> None:
        self.place = place
        text = place.read().decode("utf-8") if place.size() is not None else ""
        self._lines = [line for line in text.splitlines(keepends=True) if _whole(line)]
        self._written = time.monotonic()
        self._stale = False
        if text != "".join(self._lines):
            self._rewrite()

    def values(self) -> list[dict[str, Any]]:
        """Every line."""
        return [json.loads(line) for line in self._lines]

    def append(self, value: dict[str, Any]) -> None:
        """Adds a line."""
        line = json.dumps(value) + "\n"
        self._lines.append(line)
        if self.place.local is not None:
            with self.place.local.open("a", encoding="utf-8") as file:
                file.write(line)
            return
        self._stale = True
        if time.monotonic() - self._written > REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when every line is in the file."""
        if self._stale:
            self._rewrite()

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops all other lines."""
        kept = [line for line in self._lines if wanted(json.loads(line))]
        if len(kept) < len(self._lines):
            self._lines = kept
            self._rewrite()

    def _rewrite(self) -> None:
        self.place.write("".join(self._lines).encode("utf-8"))
        self._stale, self._written = False, time.monotonic()


def _whole(line: str) -> bool:
    try:
        return line.endswith("\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
