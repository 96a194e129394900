"""Tables as text."""

from __future__ import annotations

from rich.table import Table

from pipelines.text_tables import as_text


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
