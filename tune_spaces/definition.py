"""What a sweep is, once read: rows of a table of the paper, or settings that vary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from msrcnn.config import require
from msrcnn.errors import InputError
from tune_spaces.settings import KINDS, base_of, configure, short, typed

Ranking = Literal["class", "mask", "oracle"]
"""By what masks are ranked: class score, mask score, or class score x true MaskIoU."""
Search = Literal["grid", "random", "bayes"]
"""Every combination; independent draws; draws that follow what earlier ones gave."""
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "box AP", "box AP50", "box AP75")
"""What a table may show: mask AP as the row ranks masks, and box AP, in percent."""
MOST = 1000
"""Trials of a grid at most; also how many combinations of a random search are tried out on the configurations."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: in the report.
        settings: by dotted name; they go before what is fixed.
        ranked: what its mask AP ranks by.
        published: the paper's numbers by column, in percent.
        against: the row that it is compared with: its own name for none; empty for the first that is run.
        tables: of the paper that have it; empty: all of the file.
        only_published: another method's row, that is shown and not run, and compared with none unless `against` says.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    ranked: Ranking = "mask"
    published: Mapping[str, float] = field(default_factory=dict)
    against: str = ""
    tables: tuple[int, ...] = ()
    only_published: bool = False

    def __post_init__(self) -> None:
        require(bool(self.name), "name", self.name, "a text that is not empty")
        where = f"row {self.name!r}"
        require(self.ranked in get_args(Ranking), f"{where}, ranked", self.ranked, "class, mask or oracle")
        for column, value in self.published.items():
            good = not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value <= 100
            require(good, f"{where}, published {column}", value, "a number of percent from 0 to 100")
        if self.only_published:
            require(not self.settings, f"{where}, settings", dict(self.settings), "absent with only_published")


@dataclass(frozen=True)
class Choices:
    """The values that a setting takes."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A uniform distribution, over the logarithm if `log`; of whole numbers if `whole`. Both ends belong to it."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Space:
    """A sweep: either `rows` or `vary`.

    Attributes:
        name: of the file, without its ending.
        title: of the report.
        columns: of the table, out of `COLUMNS`; a search seeks the highest of the first.
        about: what varies, what is fixed, what the published rows are.
        tables: the paper's, by number.
        fixed: settings of every trial by dotted name.
        rows: one trial each.
        vary: settings that vary, by dotted name.
        search: how `vary` is gone through.
        samples: trials of a random or Bayesian search.
        archive: trials end with an archive for COCO's server, for nobody else has the truth of test-dev.
        notes: for the report.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    about: str = ""
    tables: tuple[int, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    vary: Mapping[str, Choices | Range] = field(default_factory=dict)
    search: Search = "grid"
    samples: int = 0
    archive: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.title), "title", self.title, "a text that is not empty")
        require(bool(self.columns), "columns", self.columns, f"one or more of {', '.join(COLUMNS)}")
        for column in self.columns:
            require(column in COLUMNS, "columns", column, f"one of {', '.join(COLUMNS)}")
        require(len(set(self.columns)) == len(self.columns), "columns", self.columns, "a list without repetition")
        if all(row.only_published for row in self.rows) and not self.vary:
            raise InputError("nothing is swept: give [[rows]], or [vary] with one setting or more")
        if self.rows and self.vary:
            raise InputError("[[rows]] and [vary] are both given; a sweep is one or the other")
        if self.rows:
            self._check_rows()
        else:
            self._check_vary()

    def settings(self, row: Row) -> dict[str, Any]:
        """All settings of a row, what is fixed included."""
        return {**self.fixed, **row.settings}

    def combinations(self) -> list[dict[str, Any]]:
        """What varies in each trial of a grid: every combination, the last setting varying fastest."""
        return list(_products({name: _corners(of) for name, of in self.vary.items()}))

    def baseline(self, row: Row) -> str:
        """The name of the row that a row is compared with; its own where it is compared with none."""
        if row.against or row.only_published:
            return row.against or row.name
        return next(other.name for other in self.rows if not other.only_published)

    def narrowed(self, table: int) -> Space:
        """Only the rows of one table of the paper."""
        rows = tuple(row for row in self.rows if not row.tables or table in row.tables)
        return replace(self, tables=(table,), rows=tuple(replace(row, tables=()) for row in rows))

    def _check_rows(self) -> None:
        require(not self.samples, "samples", self.samples, "absent with [[rows]]: each is one trial")
        require(self.search == "grid", "search", self.search, "absent with [[rows]]: each is one trial")
        names: set[str] = set()
        for row in self.rows:
            where = f"row {row.name!r}"
            require(row.name not in names, "[[rows]] name", row.name, "another: a row before it has this name")
            names.add(row.name)
            for column in row.published:
                require(
                    column in self.columns,
                    f"{where}, published",
                    column,
                    f"one of the columns {', '.join(self.columns)}",
                )
            for table in row.tables:
                require(
                    table in self.tables, f"{where}, tables", table, f"one of the file's tables {list(self.tables)}"
                )
            model = _tried(self.settings(row), where)
            require(row.ranked == "class" or model.maskiou.enabled, f"{where}, ranked", row.ranked,
                    '"class" with model.maskiou.enabled = false: no MaskIoU is predicted')  # fmt: skip
        for row in self.rows:
            good = not row.against or row.against in names
            require(good, f"row {row.name!r}, against", row.against, "the name of a row")

    def _check_vary(self) -> None:
        require(self.search in get_args(Search), "search", self.search, "grid, random or bayes")
        require(not self.archive, "archive", self.archive, "false with [vary]: a search needs numbers")
        if self.search == "grid":
            require(not self.samples, "samples", self.samples, "absent in a grid, which tries each combination once")
        else:
            require(self.samples >= 1, "samples", self.samples, "at least 1")
        for name, values in self.vary.items():
            require(name not in self.fixed, f"[vary] {name}", self.fixed.get(name), "absent here or in [fixed]")
            require(not (self.search == "grid" and isinstance(values, Range)), f"[vary] {name}", str(values),
                    'a list of values in a grid; a distribution wants search = "random" or "bayes"')  # fmt: skip
            _check_varied(name, values)
        corners = {name: _corners(of) for name, of in self.vary.items()}
        count = math.prod(len(of) for of in corners.values())
        require(self.search != "grid" or count <= MOST, "[vary]", f"{count} combinations", f"at most {MOST} in a grid")
        for varied in itertools.islice(_products(corners), MOST):
            _tried({**self.fixed, **varied}, f"[vary] {short(varied)}")


def _check_varied(name: str, values: Choices | Range) -> None:
    where = f"[vary] {name}"
    if isinstance(values, Choices):
        require(bool(values.values), where, [], "a list of one value or more")
        twice = [value for i, value in enumerate(values.values) if value in values.values[:i]]
        require(not twice, where, list(values.values), "a list without repetition")
        return
    for end in (values.low, values.high):
        typed(name, end)
    require(KINDS[name] in (int, float), where, values, "a list: only numbers have a distribution")
    require(values.low < values.high, f"{where}, low", values.low, f"below high = {values.high!r}")
    require(not values.log or values.low > 0, f"{where}, low", values.low, "above 0 with log = true")


def _tried(settings: Mapping[str, Any], where: str) -> Any:
    """The model's configuration; raises InputError, saying where, if the settings are refused."""
    try:
        return configure(base_of(settings), settings)[0]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _corners(values: Choices | Range) -> tuple[Any, ...]:
    return values.values if isinstance(values, Choices) else (values.low, values.high)


def _products(values: Mapping[str, tuple[Any, ...]]) -> Iterable[dict[str, Any]]:
    return (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))
