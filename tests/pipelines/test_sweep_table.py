"""The report of a sweep: numbers, deviations, differences and gains known by hand; nothing is lost on the way."""

from __future__ import annotations

import json
import math

import pytest

from pipelines.storage import locate
from pipelines.sweep_results import Best, RowResult, TableResult
from pipelines.sweep_table import lines, markdown, to_json, write_report

NAN = float("nan")
COLUMNS = ("AP", "AP50")
BASE = RowResult("base", "trained alone", {"AP": 27.7, "AP50": 46.9}, {"AP": (20.0, 22.0), "AP50": (40.0, 40.5)},
                 settings={"model.maskiou.enabled": False})  # fmt: skip
BETTER = RowResult("better", "one of 2 heads", {"AP": 29.3, "AP50": 46.9}, {"AP": (21.5, 23.0), "AP50": (40.0, 40.0)},
                   "", {"model.maskiou.input": "b"}, "base")  # fmt: skip
FAILED = RowResult("no|t *one* [red]", "trained alone", {"AP": 28.0}, {}, "failed: out of memory", {"solver.lr": 0.02},
                   "base")  # fmt: skip
TABLE = TableResult("Inputs", (4,), "What varies.", COLUMNS, (BASE, BETTER, FAILED), ("A note.",))


def cells(text: str, row: str) -> list[str]:
    """Of the first line of a Markdown table that begins with the row's name."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.split("|")][2:-1]


def test_means_deviations_and_differences_known_by_hand():
    assert BASE.ours("AP") == (21.0, pytest.approx(math.sqrt(2)))  # (1 + 1) / (2 - 1)
    assert BASE.difference("AP") == pytest.approx(-6.7)
    assert math.isnan(FAILED.ours("AP").mean)
    assert math.isnan(BASE.difference("AP75"))
    one = RowResult("one", values={"AP": (20.0, NAN)})
    assert one.ours("AP").mean == 20.0
    assert math.isnan(one.ours("AP").deviation)


def test_gains_are_taken_seed_by_seed():
    """1.5 and 1.0: a deviation of a quarter of the square root of 2, where those of the rows are 1.41 and 1.06."""
    gain = TABLE.gain(BETTER, "AP")
    assert gain == (pytest.approx(1.25), pytest.approx(math.sqrt(2) / 4))
    assert TABLE.paper_gain(BETTER, "AP") == pytest.approx(1.6)
    assert math.isnan(TABLE.gain(BASE, "AP").mean)
    assert math.isnan(TABLE.gain(FAILED, "AP").mean)
    assert TABLE.paper_gain(FAILED, "AP") == pytest.approx(0.3)


def test_a_seed_that_is_missing_is_missing_in_both():
    rows = (
        RowResult("a", values={"AP": (10.0, 20.0, 30.0)}),
        RowResult("b", values={"AP": (11.0, NAN, 33.0)}, against="a"),
    )
    table = TableResult("t", (), "", ("AP",), rows)
    assert table.gain(rows[1], "AP").mean == pytest.approx(2.0)  # 1 and 3


def test_unlike_numbers_of_seeds_are_compared_by_their_means():
    rows = (RowResult("a", values={"AP": (10.0, 16.0, 13.0)}), RowResult("b", values={"AP": (18.0, 10.0)}, against="a"))
    gain = TableResult("t", (), "", ("AP",), rows).gain(rows[1], "AP")
    assert gain == (pytest.approx(1.0), pytest.approx(math.sqrt(9 + 32)))


def test_the_order_is_counted_by_pairs():
    """Paper 1 < 2 < 3 = 3; here 1 < 3 > 2, the fourth missing: of three known pairs two agree."""
    numbers = ((1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (3.0, NAN))
    rows = tuple(RowResult(str(i), published={"AP": p}, values={"AP": (v,)}) for i, (p, v) in enumerate(numbers))
    table = TableResult("t", (), "", ("AP",), rows)
    assert table.order() == (2, 3)
    text = "\n".join(lines(table))
    assert "2 of 3 pairs of rows stand as in the paper" in text
    equal = TableResult("t", (), "", ("AP",), (rows[2], RowResult("x", published={"AP": 3.0}, values={"AP": (9.0,)})))
    assert equal.order() == (0, 0)
    assert "pairs of rows" not in "\n".join(lines(equal))


def test_the_terminal_shows_ours_the_papers_and_both_gains():
    shown = list(lines(TABLE))
    base, better, failed = (next(x for part in shown for x in part.split("\n") if x.startswith(f"  {name}"))
                            for name in ("base", "better", "no|t"))  # fmt: skip
    assert base.split() == [
        "base", "21.00±1.41", "27.7", "-6.70", "40.25±0.35", "46.9", "-6.65", "-", "-", "trained", "alone"]  # fmt: skip
    assert better.split() == [
        "better", "22.25±1.06", "29.3", "-7.05", "40.00±0.00", "46.9", "-6.90", "+1.25±0.35", "+1.6", "one", "of", "2",
        "heads"]  # fmt: skip
    assert failed.split()[3:] == [
        "-", "28.0", "-", "-", "-", "-", "-", "+0.3", "failed:", "out", "of", "memory;", "trained", "alone",
    ]  # fmt: skip
    assert "no|t *one* [red]" in failed
    text = "\n".join(shown)
    assert text.startswith("Table 4. Inputs")
    assert "over 'base'" in text
    assert "over up to 2 seeds" in text
    assert text.endswith("A note.")


def test_the_best_of_a_search_and_its_command_come_last():
    best = Best("The best: lr=0.01. " + "To train it anew, perhaps for longer, " * 4, "msrcnn train " + "--x_y 1 " * 30)
    table = TableResult("t", (), "", ("AP",), (RowResult("a", values={"AP": (1.0,)}),), ("A note.",), best)
    shown = list(lines(table))
    assert shown[-1] == f"    {best.command}"  # in one line, however long
    assert " ".join(shown[-3:-1]) == best.text.strip()
    text = markdown([table])
    assert f"```\n{best.command}\n```" in text
    assert to_json([table])["tables"][0]["best"] == {"text": best.text, "command": best.command}


def test_one_seed_has_one_decimal_and_no_deviation():
    rows = (
        RowResult("a", "alone", {"AP": 27.7}, {"AP": (20.04,)}),
        RowResult("b", "alone", {}, {"AP": (20.02,)}, against="a"),
    )
    shown = list(lines(TableResult("t", (1, 2), "", ("AP",), rows)))
    a, b = (next(x for x in shown[0].split("\n") if x.startswith(f"  {name} ")).split() for name in "ab")
    assert a == ["a", "20.0", "27.7", "-7.7", "-"]
    assert b == ["b", "20.0", "-", "-", "0.0"]
    assert shown[0].startswith("Tables 1 and 2. t")
    assert "All rows: alone." in shown
    assert "±" not in "\n".join(shown)


def test_columns_that_do_not_fit_go_below():
    names = ("AP", "AP50", "AP75", "box AP", "box AP50", "box AP75")
    row = RowResult(
        "r" * 60, "trained alone " * 5, dict.fromkeys(names, 10.0), dict.fromkeys(names, (1.0, 2.0)), "x " * 60
    )
    parts = list(lines(TableResult("t", (), "", names, (row,))))
    assert [part.split("\n")[0] for part in parts[:2]] == ["t", "box AP, box AP50, box AP75"]
    for part in parts[:2]:
        assert part.count("1.50±0.71") == 3  # nothing is cut off
        assert max(map(len, part.split("\n"))) <= 150
    assert parts[0].count("x") >= 60
    assert parts[0].count("alone") == 5


def test_without_the_papers_numbers_there_are_no_columns_for_them():
    trials = (
        RowResult("lr=0.01", values={"AP": (20.0,)}),
        RowResult("lr=0.02", values={"AP": (21.0,)}),
        RowResult("lr=0.1"),
    )
    table = TableResult("Search", (), "", ("AP",), trials)
    text = markdown([table])
    assert "| row | AP, ours | how | state |" in text
    assert "Gains" not in text
    assert [row.name for row in table.best_first().rows] == ["lr=0.02", "lr=0.01", "lr=0.1"]


def test_markdown_holds_everything():
    text = markdown([TABLE, TABLE])
    assert text.count("# Table 4. Inputs") == 2
    assert cells(text, "base") == [
        "21.00±1.41", "27.7", "-6.70", "40.25±0.35", "46.9", "-6.65", "trained alone", "complete"]  # fmt: skip
    gains = text[text.index("## Gains") :]
    assert cells(gains, "better") == ["+1.25±0.35", "+1.6", "-0.25±0.35", "0.0", "base"]
    seeds = text[text.index("## Values by seed") :]
    assert cells(seeds, "base") == ["20.00, 22.00", "40.00, 40.50"]
    settings = text[text.index("## Settings") :]
    assert cells(settings, "better") == ["`model.maskiou.input = b`"]
    assert r"| no\|t \*one\* \[red\] | - | 28.0 | - | - | - | - | trained alone | failed: out of memory |" in text
    widths = [line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert widths[:5] == [widths[0]] * 5  # a table is as wide in every line


def test_json_has_all_of_a_table_and_no_nan():
    table = TableResult(
        "t", (4,), "", ("AP",), (RowResult("a", values={"AP": (1.0, NAN)}, settings={"levels": [4, 5]}), BETTER)
    )
    first, second = json.loads(json.dumps(to_json([table, TABLE]), allow_nan=False))["tables"]
    assert first["rows"][0]["values"]["AP"] == [1.0, None]
    assert first["rows"][0]["settings"] == {"levels": [4, 5]}
    assert {key: second[key] for key in ("title", "tables", "about", "columns", "notes")} == {
        "title": "Inputs", "tables": [4], "about": "What varies.", "columns": list(COLUMNS), "notes": ["A note."],
    }  # fmt: skip
    row = second["rows"][1]
    assert (row["name"], row["how"], row["against"]) == ("better", "one of 2 heads", BETTER.against)
    assert row["values"] == {"AP": [21.5, 23.0], "AP50": [40.0, 40.0]}
    assert row["published"] == {"AP": 29.3, "AP50": 46.9}
    assert row["mean"] == {"AP": 22.25, "AP50": 40.0}
    assert row["gain"]["AP"] == 1.25
    assert row["gain_published"]["AP"] == pytest.approx(1.6)
    assert second["rows"][2]["mean"]["AP"] is None
    assert second["rows"][2]["state"] == FAILED.state


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_files_are_written_behind_paths_and_urls(tmp_path, scheme):
    text, data = write_report(f"{scheme}{tmp_path}/deep/out", "input_fusion", [TABLE])
    assert sorted(locate(tmp_path / "deep" / "out").list()) == ["input_fusion.json", "input_fusion.md"]
    assert text.read().decode() == markdown([TABLE])
    assert json.loads(data.read()) == to_json([TABLE])
