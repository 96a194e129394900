"""Tables as text, for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def as_text(table: Table, width: int) -> str:
    """The table as lines of at most `width` letters, with nothing blank at their ends."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())
