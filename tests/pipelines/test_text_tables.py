"""Numbers and tables as text."""

from __future__ import annotations

import math

from rich.table import Table

from pipelines.text_tables import as_text, markdown_table, number, percent, signed

NAN = float("nan")


def test_a_table_is_as_wide_as_it_may_be_and_nothing_blank_ends_a_line():
    table = Table(title="short", width=30)
    table.add_column("name")
    table.add_column("AP", justify="right")
    table.add_row("a name of more letters than fit", "27.7")
    lines = as_text(table, 30).splitlines()
    assert max(map(len, lines)) == 30
    assert [line for line in lines if line != line.rstrip()] == []
    assert lines[0].strip() == "short"
    assert sum("27.7" in line for line in lines) == 1
    assert "of more" in "".join(lines)


def test_numbers_as_people_read_them():
    assert [number(v) for v in (29.349, 0.0, NAN, math.inf)] == ["29.3", "0.0", "-", "-"]
    assert [percent(v) for v in (0.29349, NAN)] == ["29.3", "-"]
    assert [signed(v) for v in (1.55, -0.04, 0.04, -1.2, NAN)] == ["+1.6", "0.0", "0.0", "-1.2", "-"]


def test_markdown():
    assert list(markdown_table(["a", "b"], [["x", "1"]])) == ["| a | b |", "|---|---:|", "| x | 1 |", ""]
    assert list(markdown_table(["a", "b", "c"], [], texts=1)) == ["| a | b | c |", "|---|---:|---|", ""]
