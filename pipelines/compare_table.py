"""What `msrcnn compare` found, and how people read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from pipelines.summary_table import RANKED, WIDTH
from pipelines.text_tables import NONE, as_text, number, signed

SHOWN = 10
"""Categories with the largest differences that are printed."""
OF = {**RANKED, "gain": "gain by mask score", "maskiou": "MaskIoU"}


@dataclass(frozen=True)
class Number:
    """A number of both sides, fractions; the ends are of the 95% interval of b - a, nan where there is none."""

    of: str
    metric: str
    a: float
    b: float
    low: float
    high: float


@dataclass(frozen=True)
class Category:
    """Mask AP by mask score of a category; the intervals of b - a hold all categories at once in 95% of cases."""

    number: int
    name: str
    instances: int
    a: float
    b: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What two sides differ by.

    Attributes:
        dataset: its name.
        images: in it.
        draws: of these.
        names: of the sides.
        seeds: evaluations of each side.
        numbers: of the whole.
        categories: by number.
    """

    dataset: str
    images: int
    draws: int
    names: tuple[str, str]
    seeds: tuple[int, int]
    numbers: tuple[Number, ...]
    categories: tuple[Category, ...]


def comparison_lines(found: Comparison) -> Iterable[str]:
    """The lines to print."""
    yield f"A: {found.names[0]}"
    yield f"B: {found.names[1]}"
    table = _table(f"{found.dataset}: {found.images} images, B less A", "")
    for of in found.numbers:
        table.add_row(f"{OF[of.of]}: {of.metric}", *_cells(of, in_points=of.of != "maskiou"))
    yield as_text(table, WIDTH)
    ranked = sorted((c for c in found.categories if not math.isnan(c.b - c.a)), key=lambda c: -abs(c.b - c.a))
    title = f"mask AP by mask score: the {min(SHOWN, len(ranked))} of {len(ranked)} categories that differ most"
    table = _table(title, "category", "instances")
    for category in ranked[:SHOWN]:
        table.add_row(escape(category.name), str(category.instances), *_cells(category, True))
    yield as_text(table, WIDTH)
    several = max(found.seeds) > 1
    yield (
        f"95% intervals over {found.draws} draws of the images{' and over the seeds' if several else ''}; * without 0. "
        "Of the first table each is for itself, those of categories hold for all categories at once."
    )
    alone = [side for side, seeds in zip("AB", found.seeds, strict=True) if seeds == 1]
    if alone:
        yield f"{' and '.join(alone)}: one training; what others with another seed would give is not in the intervals."


def _table(title: str, *first: str) -> Table:
    table = Table(title=escape(title), width=WIDTH)
    for place, name in enumerate((*first, "A", "B", "B - A", "95% interval", "")):
        table.add_column(name, justify="right" if place else "left")
    return table


def _cells(of: Number | Category, in_points: bool) -> Sequence[str]:
    scale, decimals, finer = (100, 1, 2) if in_points else (1, 3, 3)
    a, b = (number(scale * x, decimals) for x in (of.a, of.b))
    less, low, high = (signed(scale * x, finer) for x in (of.b - of.a, of.low, of.high))
    certain = of.low > 0 or of.high < 0
    return a, b, less, f"{low} to {high}" if low != NONE else NONE, "*" if certain else ""
