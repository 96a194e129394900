"""Rows that differ in their MaskIoU head only can share a trunk."""

from __future__ import annotations

import pytest

from tune_spaces.heads import heads_of
from tune_spaces.space import find_space, parse


def test_three_tables_need_eleven_heads():
    found = {}
    for table in ("table4", "table5", "table6"):
        heads, reason = heads_of(find_space(table))
        assert reason == ""
        found[table] = list(heads.values())
    assert found == {
        "table4": ["", "input=b", "input=c", "input=d", "input=e", "input=f"],
        "table5": ["", "target=2", "target=3"],
        "table6": ["", "tau=0.3", "tau=0.5", "tau=0.7"],
    }
    assert len({head for heads in found.values() for head in heads}) == 11


def test_rows_without_a_head_have_none():
    heads, _ = heads_of(find_space("table4"))
    assert "Mask R-CNN" not in heads
    assert len(heads) == 6


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("backbone", "differ in data.long_side: 1000 -> 1333"),
        ("oracle", "rows 'class score, R18-FPN' and 'class score, R101-DCN-FPN' differ in"),
        ("hyperparameters", "settings vary by [vary], not by rows"),
    ],
)
def test_why_others_cannot(name, reason):
    heads, found = heads_of(find_space(name))
    assert heads is None
    assert reason in found


def test_weights_are_part_of_the_trunk():
    text = """
        title = "t"
        columns = ["AP"]
        [[rows]]
        name = "one"
        [[rows]]
        name = "two"
        settings = {weights = "x.pt"}"""
    heads, reason = heads_of(parse(text.encode(), "x.toml"))
    assert heads is None
    assert reason == "rows 'one' and 'two' differ in weights: None -> 'x.pt'"


def test_other_presets_may_stand_below():
    heads, _ = heads_of(find_space("tau"), {"preset": "demo", "model.maskiou.weight": 0.5})
    assert list(heads.values())[:2] == ["weight=0.5", "tau=0.3,weight=0.5"]
