"""A long JSON list read and written item by item, so that no more than a piece of it is in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from msrcnn.errors import InputError
from pipelines.storage import Location, explained

CHUNK = 2**20
"""Bytes read at a time."""
CUT = 16
"""So close to the end of what was read, an error may come of what was not: no literal of JSON is longer."""


def read_list(place: Location) -> Iterator[Any]:
    """The items of a file that holds one JSON list.

    Raises:
        InputError: it cannot be read, is not JSON, or holds something else.
    """
    text = _Text(place)
    if not text.take("["):
        what = "nothing" if text.ended() else "no list"
        raise InputError(f"{place}: holds {what}, expected a JSON list of results, [{{...}}, ...]")
    if not text.take("]"):
        while True:
            yield text.value()
            if text.take("]"):
                break
            if not text.take(","):
                raise text.broken("expected ',' or ']'")
    if not text.ended():
        raise text.broken("more follows after the list")


class _Text:
    """A file's characters from a position on."""

    def __init__(self, place: Location) -> None:
        self.place = place
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._json = json.JSONDecoder()
        self._text, self._at, self._before = "", 0, 0
        try:
            self._stream = place.filesystem.open_input_stream(place.path)
        except OSError as error:
            raise InputError(f"{place}: cannot be read ({explained(error)}); give another file") from error

    def take(self, mark: str) -> bool:
        """Whether `mark` comes next, behind white space; then it is passed over."""
        if self.ended() or self._text[self._at] != mark:
            return False
        self._at += 1
        return True

    def ended(self) -> bool:
        """Whether nothing but white space is left."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\n\r\ufeff":
                self._at += 1
            if self._at < len(self._text):
                return False
            if not self._more():
                return True

    def value(self) -> Any:
        """The next value."""
        self.ended()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                if end == len(self._text) and isinstance(value, (int, float)) and self._more():
                    continue  # more digits may have followed
                self._at = end
                return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - CUT
                if not (cut and self._more()):
                    raise self.broken(f"{error.msg} at character {self._before + error.pos}") from None
            except RecursionError:
                raise self.broken("nested too deep") from None

    def broken(self, reason: str) -> InputError:
        """What to raise."""
        return InputError(f"{self.place}: not valid JSON ({reason}); it may be truncated: get or write it again")

    def _more(self) -> bool:
        """Reads on; False at the end."""
        data = self._stream.read(CHUNK)
        try:
            more = self._decode(data, final=not data)
        except UnicodeDecodeError:
            raise self.broken("not UTF-8") from None
        self._before += self._at
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(data)


class ListWriter:
    """Writes a JSON list item by item.

    Args:
        sink: takes bytes.
    """

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self.items = 0

    def add(self, items: list[dict[str, Any]]) -> None:
        """Appends items, each on a line."""
        if items:
            lines = ",\n".join(json.dumps(item, separators=(",", ":"), allow_nan=False) for item in items)
            self._sink.write((("[\n" if self.items == 0 else ",\n") + lines).encode())
            self.items += len(items)

    def end(self) -> None:
        """Closes the list."""
        self._sink.write(b"\n]\n" if self.items else b"[]\n")
