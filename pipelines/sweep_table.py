"""A sweep's report for the terminal, as Markdown and as JSON.

Beside ours stand the paper's number and the difference; beside that, because ours are often of other data than COCO,
what a row gains over the row that it is compared with, here and in the paper.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipelines.reporting import plain
from pipelines.storage import Location, Place, locate
from pipelines.sweep_results import RowResult, Spread, TableResult
from pipelines.text_tables import NONE, as_text, markdown_table, number, signed
from tune_spaces.settings import shown

WIDTH = 150
AT_ONCE = 3
"""Columns beside each other in the terminal; more go in a table below."""


class Field(NamedTuple):
    """A column of the report: a column of the table in one of its aspects."""

    of: str
    what: str
    cells: tuple[str, ...]


def lines(table: TableResult) -> Iterator[str]:
    """The report for the terminal."""
    for start in range(0, len(table.columns), AT_ONCE):
        columns = table.columns[start : start + AT_ONCE]
        fields = [*_numbers(table, columns), *(_gains(table, table.columns[:1]) if not start else ())]
        ends = [] if start else _ends(table)
        yield _rich(table, fields, ", ".join(columns) if start else table.heading, ends)
    remarks = [table.about] if table.about else []
    if common := _common_how(table):
        remarks.append(f"All rows: {common}.")
    for remark in [*remarks, *_remarks(table)]:
        yield from textwrap.wrap(remark, WIDTH, break_long_words=False)
    if table.best:
        yield from textwrap.wrap(table.best.text, WIDTH, break_long_words=False)
        yield f"    {table.best.command}"  # in one line, to be copied


def markdown(tables: Sequence[TableResult]) -> str:
    """The whole report as GitHub's Markdown: numbers, gains in every column, values by seed, settings."""
    return "\n".join(line for table in tables for line in _markdown(table))


def to_json(tables: Sequence[TableResult]) -> dict[str, Any]:
    """Everything, each number finite or None."""
    return plain({"tables": [_table_json(table) for table in tables]})


def write_report(folder: Place, name: str, tables: Sequence[TableResult]) -> tuple[Location, Location]:
    """Writes NAME.md and NAME.json, aside first; makes the folder.

    Args:
        folder: a local path or a URL.
        name: of the files.
        tables: in their order.

    Returns:
        The files.
    """
    place = locate(folder)
    place.make_folder()
    text, data = place / f"{name}.md", place / f"{name}.json"
    text.write(markdown(tables).encode())
    data.write_json(to_json(tables))
    return text, data


def order_line(table: TableResult) -> str:
    """Whether the order of the rows is the paper's; empty where there is nothing to compare."""
    alike, pairs = table.order()
    if not pairs:
        return ""
    return (f"Order by {table.columns[0]}: {alike} of {pairs} pairs of rows stand as in the paper "
            "(pairs that the paper has equal are left out).")  # fmt: skip


def _spread(value: Spread, decimals: int, sign: bool = False) -> str:
    mean = (signed if sign else number)(value.mean, decimals)
    return f"{mean}±{value.deviation:.{decimals}f}" if math.isfinite(value.deviation) else mean


def _decimals(table: TableResult) -> int:
    """Of ours: a mean of several seeds is known better than to a tenth."""
    return 2 if table.seeds > 1 else 1


def _numbers(table: TableResult, columns: Iterable[str]) -> Iterator[Field]:
    decimals, rows = _decimals(table), table.rows
    for column in columns:
        yield Field(column, "ours", tuple(_spread(row.ours(column), decimals) for row in rows))
        if any(math.isfinite(row.paper(column)) for row in rows):
            yield Field(column, "paper", tuple(number(row.paper(column)) for row in rows))
        differences = [row.difference(column) for row in rows]
        if any(map(math.isfinite, differences)):
            yield Field(column, "difference", tuple(signed(value, decimals) for value in differences))


def _gains(table: TableResult, columns: Iterable[str]) -> Iterator[Field]:
    if all(table.baseline(row) is None for row in table.rows):
        return
    decimals = _decimals(table)
    for column in columns:
        name = f"gain in {column}"
        yield Field(name, "ours", tuple(_spread(table.gain(row, column), decimals, sign=True) for row in table.rows))
        paper = [table.paper_gain(row, column) for row in table.rows]
        if any(map(math.isfinite, paper)):
            yield Field(name, "paper", tuple(map(signed, paper)))


def _common_how(table: TableResult) -> str:
    """What all rows have in common; empty if they differ."""
    hows = {row.how for row in table.rows}
    return hows.pop() if len(hows) == 1 and len(table.rows) > 1 else ""


def _remarks(table: TableResult) -> Iterator[str]:
    seeds = table.seeds
    if seeds > 1:
        yield f"Ours: mean ± standard deviation over up to {seeds} seeds."
    bases = (base.name for row in table.rows if (base := table.baseline(row)) is not None)
    if against := list(dict.fromkeys(bases)):
        yield f"Gains, in percentage points, are over {' or '.join(map(repr, against))}."
    if order := order_line(table):
        yield order
    yield from table.notes


def _ends(table: TableResult) -> list[str]:
    """State of each row, and how it came about where that differs; empty where there is nothing to say."""
    common = _common_how(table)
    ends = ["; ".join(filter(None, (row.state, "" if common else row.how))) for row in table.rows]
    return ends if any(ends) else []


def _rich(table: TableResult, fields: Sequence[Field], title: str, ends: Sequence[str]) -> str:
    drawn = Table(title=escape(title), box=SIMPLE_HEAD, padding=(0, 0, 0, 1), title_justify="left")
    drawn.add_column("", min_width=12)
    for field in fields:
        what = "diff" if field.what == "difference" else field.what
        drawn.add_column(f"{field.of.replace('gain in ', 'gain ')}\n{what}", justify="right", no_wrap=True)
    if ends:
        drawn.add_column("state" if _common_how(table) else "state, how", min_width=12)
    for index, row in enumerate(table.rows):
        drawn.add_row(*map(escape, (row.name, *(field.cells[index] for field in fields), *ends[index : index + 1])))
    return as_text(drawn, WIDTH)


def _markdown(table: TableResult) -> Iterator[str]:
    yield from (f"# {_text(table.heading)}", "")
    if table.about:
        yield from (_text(table.about), "")
    names = [row.name for row in table.rows]
    ends = [("how", [row.how for row in table.rows]), ("state", [row.state or "complete" for row in table.rows])]
    yield from _grid(names, _numbers(table, table.columns), ends)
    if gains := list(_gains(table, table.columns)):
        against = [base.name if (base := table.baseline(row)) else NONE for row in table.rows]
        yield from ("## Gains", "", "Percentage points over the row that a row is compared with.", "")
        yield from _grid(names, gains, [("compared with", against)])
    yield from (f"- {_text(remark)}" for remark in _remarks(table))
    yield ""
    if table.best:
        yield from (_text(table.best.text), "", "```", table.best.command, "```", "")
    if table.seeds > 1:
        values = [
            Field(
                column,
                "by seed",
                tuple(", ".join(number(v, 2) for v in row.values.get(column, ())) for row in table.rows),
            )
            for column in table.columns
        ]
        yield from ("## Values by seed", "")
        yield from _grid(names, values, [])
    if any(row.settings for row in table.rows):
        yield from ("## Settings", "")
        yield from _grid(names, [], [("settings", [_settings(row) for row in table.rows])], escaped=True)


def _grid(
    names: Sequence[str], fields: Iterable[Field], ends: Sequence[tuple[str, Sequence[str]]], escaped: bool = False
) -> Iterator[str]:
    """A Markdown table: names, numbers to the right, texts."""
    fields = list(fields)
    clean = (lambda text: text) if escaped else _text
    titles = ["row", *(f"{field.of}, {field.what}" for field in fields), *(title for title, _ in ends)]
    rows = ([_text(name), *(field.cells[index] for field in fields), *(clean(end[index]) for _, end in ends)]
            for index, name in enumerate(names))  # fmt: skip
    yield from markdown_table(titles, rows, len(ends))


def _settings(row: RowResult) -> str:
    pairs = (f"{name} = {shown(value)}" for name, value in row.settings.items())
    return ", ".join("`" + re.sub(r"[`\s]+", " ", pair).replace("|", "\\|") + "`" for pair in pairs)


def _text(text: str) -> str:
    """On one line, and without meaning anything in Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def _table_json(table: TableResult) -> dict[str, Any]:
    alike, pairs = table.order()
    return {
        "title": table.title, "tables": list(table.tables), "about": table.about, "columns": list(table.columns),
        "notes": list(table.notes), "order": {"as_in_the_paper": alike, "pairs": pairs},
        "rows": [_row_json(table, row) for row in table.rows],
        "best": table.best._asdict() if table.best else None,
    }  # fmt: skip


def _row_json(table: TableResult, row: RowResult) -> dict[str, Any]:
    gains = {column: table.gain(row, column) for column in table.columns}
    ours = {column: row.ours(column) for column in table.columns}
    return {
        "name": row.name, "how": row.how, "state": row.state, "settings": dict(row.settings),
        "published": dict(row.published),
        "values": {column: [float(v) for v in values] for column, values in row.values.items()},
        "against": row.against,
        "mean": {column: value.mean for column, value in ours.items()},
        "deviation": {column: value.deviation for column, value in ours.items()},
        "difference": {column: row.difference(column) for column in table.columns},
        "gain": {column: value.mean for column, value in gains.items()},
        "gain_deviation": {column: value.deviation for column, value in gains.items()},
        "gain_published": {column: table.paper_gain(row, column) for column in table.columns},
    }  # fmt: skip
