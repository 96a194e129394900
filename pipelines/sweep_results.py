"""What a sweep gave, as plain data: rows with one value a seed beside the paper's, and what follows from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, NamedTuple

NONE = math.nan


class Spread(NamedTuple):
    """Mean and standard deviation (of a sample, n - 1) over seeds; nan where there is no value, or no second one."""

    mean: float
    deviation: float = NONE


@dataclass(frozen=True)
class RowResult:
    """One row of a table, or one trial of a search.

    Attributes:
        name: of the row or trial.
        how: it came about, as in "trained alone" or "class score of the same detections".
        published: the paper's numbers by column, in percent; empty where it has none.
        values: ours by column, in percent, one a seed in the order of the seeds, nan for a seed without; empty where
            nothing finished.
        state: empty once complete; else "failed: ...", "2 of 3 seeds", "archive: PATH", ...
        settings: by dotted name.
        against: the row that it is compared with; empty or its own name: none.
    """

    name: str
    how: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    state: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    against: str = ""

    def ours(self, column: str) -> Spread:
        """Over the seeds, in percent."""
        return spread(self.values.get(column, ()))

    def paper(self, column: str) -> float:
        """In percent; nan where the paper has none."""
        return self.published.get(column, NONE)

    def difference(self, column: str) -> float:
        """Ours less the paper's, in percentage points."""
        return self.ours(column).mean - self.paper(column)


class Best(NamedTuple):
    """The best trial of a search, for the reader."""

    text: str  # what it is and where its model lies
    command: str  # that trains it


@dataclass(frozen=True)
class TableResult:
    """A sweep's rows in their order.

    Attributes:
        title: of the report.
        tables: the paper's, by number.
        about: what varied, what was fixed, what the published rows are.
        columns: what is shown, in order; the first is the one that matters.
        rows: of different names.
        notes: for the reader, beneath.
        best: of a search's trials; None in a table, and where no trial has a number.
    """

    title: str
    tables: tuple[int, ...]
    about: str
    columns: tuple[str, ...]
    rows: tuple[RowResult, ...]
    notes: tuple[str, ...] = ()
    best: Best | None = None

    @property
    def heading(self) -> str:
        """The title behind the paper's numbers, as in 'Tables 1 and 2. Backbones'."""
        if not self.tables:
            return self.title
        word = "Table" if len(self.tables) == 1 else "Tables"
        return f"{word} {' and '.join(map(str, self.tables))}. {self.title}"

    @property
    def seeds(self) -> int:
        """The most values that a row has."""
        return max((len(finite(v)) for row in self.rows for v in row.values.values()), default=0)

    def baseline(self, row: RowResult) -> RowResult | None:
        """The row that a row is compared with; None if it is compared with none."""
        if row.against in ("", row.name):
            return None
        return next((other for other in self.rows if other.name == row.against), None)

    def gain(self, row: RowResult, column: str) -> Spread:
        """Ours less ours of the row that it is compared with, in percentage points.

        Seed by seed where both have as many values, which takes out what a seed does to both; else the difference of
        the means, its variance the sum of theirs.
        """
        base = self.baseline(row)
        if base is None:
            return Spread(NONE)
        one, other = row.values.get(column, ()), base.values.get(column, ())
        if len(one) == len(other):
            return spread([a - b for a, b in zip(one, other, strict=True)])
        a, b = spread(one), spread(other)
        return Spread(a.mean - b.mean, math.hypot(a.deviation, b.deviation))

    def paper_gain(self, row: RowResult, column: str) -> float:
        """The same in the paper."""
        base = self.baseline(row)
        return NONE if base is None else row.paper(column) - base.paper(column)

    def order(self) -> tuple[int, int]:
        """In how many pairs of rows the first column puts the same one first here and in the paper, and of how many.

        Pairs that the paper has equal, or that lack a number, do not count; pairs that are equal here do not agree.
        """
        column = self.columns[0]
        numbers = [(row.ours(column).mean, row.paper(column)) for row in self.rows]
        known = [pair for pair in numbers if all(map(math.isfinite, pair))]
        signs = [(a - b) * (p - q) for (a, p), (b, q) in itertools.combinations(known, 2) if p != q]
        return sum(sign > 0 for sign in signs), len(signs)

    def best_first(self) -> TableResult:
        """The rows by the first column, the highest first; those without a value last."""

        def rank(row: RowResult) -> tuple[bool, float]:
            mean = row.ours(self.columns[0]).mean
            return not math.isfinite(mean), -mean if math.isfinite(mean) else 0.0

        return replace(self, rows=tuple(sorted(self.rows, key=rank)))


def finite(values: Sequence[float]) -> list[float]:
    """Those that are numbers."""
    return [float(value) for value in values if math.isfinite(value)]


def spread(values: Sequence[float]) -> Spread:
    """Of the values that are numbers."""
    numbers = finite(values)
    return Spread(fmean(numbers) if numbers else NONE, stdev(numbers) if len(numbers) > 1 else NONE)
