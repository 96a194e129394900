"""The numbers in the files are the paper's: Tables 1 to 7, typed here row by row as the paper's columns stand."""

from __future__ import annotations

import pytest

from tune_spaces.definition import COLUMNS
from tune_spaces.space import find_space, space_names

# A line a row of the paper, in its order: AP, AP50, AP75, and where the table has them box AP or AP by size.
PAPER = {
    1: """
        27.7 46.9 29.0 31.2 50.4 33.2
        29.3 46.9 31.3 31.5 50.8 33.5
        34.5 55.8 36.7 38.6 59.2 42.5
        36.0 55.8 38.8 38.6 59.2 42.5
        36.6 58.6 39.0 41.3 61.7 45.9
        38.2 58.4 41.5 41.4 61.8 46.3""",
    2: """
        33.9 53.9 36.2 38.6 57.3 42.8
        35.0 54.0 37.7 38.7 57.4 43.0
        36.6 58.6 39.0 41.3 61.7 45.9
        38.2 58.4 41.5 41.4 61.8 46.3
        37.7 60.3 40.0 42.9 63.4 47.8
        39.1 60.0 42.4 43.1 63.5 47.7""",
    3: """
        24.6 44.3 24.8 4.7 25.9 43.6
        29.2 49.5 - - - -
        33.6 54.5 - - - -
        33.1 54.9 34.8 12.1 35.6 51.1
        35.7 58.0 37.8 15.5 38.1 52.4
        37.1 60.0 39.4 16.9 39.9 53.5
        35.4 57.4 37.4 16.9 38.3 49.2
        37.3 59.8 36.6 19.1 40.5 50.6
        38.1 61.1 40.4 19.6 41.6 51.4
        34.3 55.0 36.6 13.2 36.4 52.2
        35.4 54.9 38.1 13.7 37.6 53.3
        37.0 59.2 39.5 17.1 39.3 52.9
        38.3 58.8 41.5 17.8 40.4 54.4
        38.4 61.2 41.2 18.0 40.5 55.2
        39.6 60.7 43.1 18.8 41.5 56.2""",
    4: """
        27.7 46.9 29.0
        29.3 46.9 31.3
        29.1 46.6 30.9
        29.1 46.6 30.8
        29.1 46.7 31.1
        28.2 46.2 39.8
        28.9 46.6 30.7""",
    5: """
        27.7 46.9 29.0
        29.3 46.9 31.3
        24.5 41.6 25.6
        28.2 45.5 30.2""",
    6: """
        29.3 46.9 31.3
        29.2 46.6 31.1
        29.0 46.5 30.9
        28.8 46.9 30.5""",
    7: """
        27.7
        29.3
        31.5
        37.7
        39.1
        41.7""",
}
MISPRINT = (4, 5, "AP75")  # the sixth row of Table 4 has 39.8 in print
BOX, SIZES = COLUMNS[6:], COLUMNS[3:6]
NAMES = {1: "backbone", 2: "backbone", 3: "test_dev", 4: "input_fusion", 5: "training_target", 6: "tau", 7: "oracle"}


@pytest.mark.parametrize("table", PAPER)
def test_every_published_number_is_the_papers(table):
    space = find_space(f"table{table}")
    assert space.name == NAMES[table]
    lines = [line.split() for line in PAPER[table].split("\n") if line.strip()]
    columns = (*COLUMNS[:3], *(BOX if table < 3 else SIZES)) if table < 4 else COLUMNS[: len(lines[0])]
    assert space.columns == columns
    assert len(space.rows) == len(lines)
    for number, (row, line) in enumerate(zip(space.rows, lines, strict=True)):
        expected = {column: float(text) for column, text in zip(columns, line, strict=True) if text != "-"}
        if (table, number) == MISPRINT[:2]:
            assert expected[MISPRINT[2]] == 39.8
            expected[MISPRINT[2]] = 29.8
            assert any("39.8" in note and "29.8" in note for note in space.notes)
        assert row.published == expected, row.name


def test_what_the_rows_train():
    """Settings by row, for the rows whose numbers would be compared with those of another setting otherwise."""
    tried = {name: [dict(row.settings) for row in find_space(name).rows] for name in ("table4", "table5", "table6")}
    off = {"model.maskiou.enabled": False}
    assert tried["table4"] == [off, *({"model.maskiou.input": letter} for letter in "abcdef")]
    assert tried["table5"] == [off, *({"model.maskiou.target": number} for number in (1, 2, 3))]
    assert tried["table6"] == [{"model.maskiou.tau": tau} for tau in (0.0, 0.3, 0.5, 0.7)]
    for name in tried:
        assert find_space(name).fixed["preset"] == "r18-fpn"


@pytest.mark.parametrize(
    ("table", "presets"),
    [
        ("table1", ["r18-fpn", "r50-fpn", "r101-fpn"]),
        ("table2", ["r101-c4", "r101-fpn", "r101-dcn-fpn"]),
        ("table3", ["r101-c4", "r101-fpn", "r101-dcn-fpn"]),
    ],
)
def test_backbones_without_and_with_the_head(table, presets):
    space = find_space(table)
    rows = [row for row in space.rows if not row.only_published]
    assert [space.settings(row)["preset"] for row in rows] == [preset for preset in presets for _ in range(2)]
    for without, with_head in zip(rows[::2], rows[1::2], strict=True):
        assert (without.ranked, with_head.ranked) == ("class", "mask")
        first, second = space.settings(without), space.settings(with_head)
        assert first.pop("model.maskiou.enabled") is False
        assert first == second  # nothing else differs
        depth = first["preset"].partition("-")[0].removeprefix("r")
        assert first["weights"] == f"ResNet{depth}_Weights.IMAGENET1K_V1"
        assert space.baseline(without) == space.baseline(with_head) == without.name


def test_the_oracle_ranks_the_same_detections_three_ways():
    space = find_space("table7")
    for three in (space.rows[:3], space.rows[3:]):
        assert [row.ranked for row in three] == ["class", "mask", "oracle"]
        assert all(row.settings == three[0].settings for row in three)
        assert [space.baseline(row) for row in three] == [three[0].name] * 3


def test_other_methods_are_shown_and_not_run():
    space = find_space("table3")
    assert space.archive
    assert [row.only_published for row in space.rows] == [True] * 9 + [False] * 6
    assert all(space.baseline(row) == row.name for row in space.rows[:9])


def test_every_table_of_the_paper_has_a_file():
    tables = {number for name in space_names() for number in find_space(name).tables}
    assert tables == set(PAPER)
    assert set(space_names()) == {*NAMES.values(), "hyperparameters"}
    assert len(find_space("backbone").rows) == 10  # Table 2's third and fourth rows are Table 1's last
