"""A sweep's figures show what they are given and say what it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.storage import locate
from pipelines.sweep_plots import gain_figure, parallel_figure, write_figures
from pipelines.sweep_results import RowResult, TableResult
from tune_spaces.definition import Choices, Range

BASE = RowResult("Mask R-CNN", published={"AP": 27.7}, values={"AP": (20.0, 22.0)})
GAINS = ((29.3, (21.5, 23.0)), (28.2, (19.0, 22.0)), (None, (20.5, 22.5)), (29.0, ()))
ROWS = tuple(
    RowResult(f"variant {i}", published={"AP": p} if p else {}, values={"AP": v} if v else {}, against="Mask R-CNN")
    for i, (p, v) in enumerate(GAINS)
)
TABLE = TableResult("Inputs", (4,), "What varies.", ("AP",), (BASE, *ROWS))
VARY = {"solver.lr": Range(0.001, 0.1, log=True), "model.selection.method": Choices(("hard", "gaussian")),
        "solver.epochs": Range(2, 12, whole=True), "model.maskiou.target": Choices((3, 1, 2))}  # fmt: skip
TRIALS = (
    ("low", (0.001, "hard", 2, 1), 10.0),
    ("middle", (0.01, "gaussian", 7, 2), 15.0),
    ("high", (0.1, "gaussian", 12, 3), 20.0),
    ("failed", (0.01, "hard", 4, 1), math.nan),
)
SEARCH = TableResult("Search", (), "", ("AP",), tuple(
    RowResult(name, values={"AP": (ap,)} if ap == ap else {}, settings=dict(zip(VARY, settings, strict=True)))
    for name, settings, ap in TRIALS
))  # fmt: skip


def test_dots_stand_at_the_gains():
    axes = gain_figure(TABLE).axes[0]
    (points, _, (bars,)) = axes.containers[0]
    np.testing.assert_allclose(points.get_xdata().astype(float), [np.nan, 1.25, -0.5, 0.5, np.nan])
    ends = np.array([[part[0, 0], part[1, 0]] for part in bars.get_segments() if len(part)])
    deviations = np.diff(ends, axis=1).ravel() / 2
    np.testing.assert_allclose(deviations[np.isfinite(deviations)], [math.sqrt(2) / 4, math.sqrt(0.5), 0.0], atol=1e-12)
    paper = next(line for line in axes.get_lines() if line.get_label() == "the paper")
    np.testing.assert_allclose(paper.get_xdata(), [np.nan, 1.6, 0.5, np.nan, 1.3])


def test_the_gains_say_what_they_are():
    figure = gain_figure(TABLE)
    axes = figure.axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["Mask R-CNN\nhere 21.00, paper 27.7", *(f"variant {i}" for i in range(4))]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top
    assert axes.get_xlabel() == "gain in mask AP (percentage points)"
    assert axes.get_title() == "Table 4. Inputs"
    legend = {text.get_text() for text in axes.get_legend().get_texts()}
    assert legend == {"here, mean of 2 seeds with standard deviation", "the paper"}
    assert {text.get_text() for text in axes.texts} >= {"+1.25", "+1.6", "-0.50", "+0.5"}
    text = figure.get_supxlabel().replace("\n", " ")
    assert "less that of “Mask R-CNN”" in text
    assert text.endswith("Without a number here: variant 3.")


def test_each_group_has_its_own_zero():
    other = RowResult("other", published={"AP": 37.7}, values={"AP": (30.0, 30.0)})
    row = RowResult("its variant", published={"AP": 39.1}, values={"AP": (33.0, 33.0)}, against="other")
    figure = gain_figure(TableResult("t", (7,), "", ("AP",), (BASE, ROWS[0], other, row, RowResult("alone"))))
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.containers[0][0].get_xdata().astype(float), [np.nan, 1.25, np.nan, 3.0])
    assert "the row in grey above it" in figure.get_supxlabel().replace("\n", " ")


def lines_of(axes) -> dict:
    return {line.get_gid(): line for line in axes.get_lines() if line.get_gid() in {row.name for row in SEARCH.rows}}


def test_lines_go_through_the_settings():
    axes = parallel_figure(SEARCH, VARY).axes[0]
    drawn = lines_of(axes)
    np.testing.assert_allclose(drawn["low"].get_ydata(), [0, 0.25, 0, 1 / 6, 0], atol=1e-12)
    np.testing.assert_allclose(drawn["middle"].get_ydata(), [0.5, 0.75, 0.5, 0.5, 0.5])  # 0.01 is half-way: log
    np.testing.assert_allclose(drawn["high"].get_ydata(), [1, 0.75, 1, 5 / 6, 1])
    np.testing.assert_allclose(drawn["failed"].get_ydata(), [0.5, 0.25, 0.2, 1 / 6])  # ends before the last axis
    assert drawn["failed"].get_linestyle() == "--"
    assert drawn["high"].get_linewidth() > drawn["middle"].get_linewidth()
    assert drawn["low"].get_color() != drawn["high"].get_color()


def test_axes_have_names_and_ticks():
    figure = parallel_figure(SEARCH, VARY)
    axes = figure.axes[0]
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    assert names == ["solver\nlr", "model.selection\nmethod", "solver\nepochs", "model.maskiou\ntarget",
                     "mask AP\n(percent)"]  # fmt: skip
    ticks = {x: [text.get_text() for text in axes.texts if text.get_gid() == f"tick {x}"] for x in range(5)}
    assert ticks[0] == ["0.001", "0.0032", "0.01", "0.032", "0.1"]
    assert ticks[1] == ["hard", "gaussian"]
    assert ticks[2] == ["2", "4", "7", "10", "12"]
    assert ticks[3] == ["1", "2", "3"]
    assert (ticks[4][0], ticks[4][-1]) == ("10", "20")
    assert axes.get_title() == "Search: 3 of 4 trials with a number"
    text = figure.get_supxlabel().replace("\n", " ")
    assert "The best (thick): 20.0 with solver.lr = 0.1, model.selection.method = gaussian" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [(), SEARCH.rows[:1], SEARCH.rows[3:]])
def test_almost_no_trial_can_be_drawn(rows, tmp_path):
    files = write_figures(tmp_path, "x", TableResult("t", (), "", ("AP",), rows), VARY)
    assert [file.name for file in files] == ["x-parallel.png", "x-parallel.svg"]


@pytest.mark.filterwarnings("error")
def test_files_are_those_that_there_is_something_to_draw_for(tmp_path):
    empty = TableResult("t", (), "", ("AP",), tuple(RowResult(row.name, against=row.against) for row in TABLE.rows))
    for name, table in (("full", TABLE), ("empty", empty), ("none", TableResult("t", (), "", ("AP",), (BASE,)))):
        write_figures(f"local://{tmp_path}", name, table)
    listed = locate(tmp_path).list()
    assert sorted(listed) == ["empty-gain.png", "empty-gain.svg", "full-gain.png", "full-gain.svg"]
    assert (locate(tmp_path) / "full-gain.png").read()[:4] == b"\x89PNG"


def test_settings_may_have_been_through_json():
    vary = {"model.levels": Choices(((4, 5), (3, 4, 5))), "solver.decay_epochs": Choices(((1,), ()))}
    rows = (RowResult("one", values={"AP": (1.0,)}, settings={"model.levels": [3, 4, 5], "solver.decay_epochs": []}),)
    axes = parallel_figure(TableResult("t", (), "", ("AP",), rows), vary).axes[0]
    line = next(line for line in axes.get_lines() if line.get_gid() == "one")
    np.testing.assert_allclose(line.get_ydata(), [0.75, 0.75, 0.5])
    assert [text.get_text() for text in axes.texts][:2] == ["(4, 5)", "(3, 4, 5)"]
