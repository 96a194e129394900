"""Numbers and tables as text, for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

NONE = "-"
"""Where there is no number."""


def number(value: float, decimals: int = 1) -> str:
    """With so many decimals; `NONE` where it is not finite."""
    return f"{value:.{decimals}f}" if math.isfinite(value) else NONE


def signed(value: float, decimals: int = 1) -> str:
    """A difference with its sign, 0 without one; `NONE` where it is not finite."""
    if not math.isfinite(value):
        return NONE
    rounded = round(value, decimals)
    return f"{rounded:+.{decimals}f}" if rounded else f"{0:.{decimals}f}"


def percent(value: float) -> str:
    """A fraction in percent with one decimal; `NONE` where it is not finite."""
    return number(100 * value)


def counted(number: int, what: str) -> str:
    """A number of things: 1 image, 2 images."""
    return f"{number} {what}" + ("s" if number != 1 else "")


def as_text(table: Table, width: int) -> str:
    """The table as lines of at most `width` letters, with nothing blank at their ends."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 0) -> Iterator[str]:
    """Lines of a Markdown table, and an empty one: names to the left, numbers to the right.

    Args:
        titles: of the columns.
        rows: their cells.
        texts: how many columns, the last ones, are to the left like the first.
    """
    yield f"| {' | '.join(titles)} |"
    yield "|" + "|".join(["---", *["---:"] * (len(titles) - 1 - texts), *["---"] * texts]) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""
