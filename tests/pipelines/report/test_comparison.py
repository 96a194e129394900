"""Runs side by side: differences are those of the stored numbers and of the rows."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from msrcnn.metrics.matches import Matches
from msrcnn.metrics.resampling import image_draws
from pipelines.report.command import report
from pipelines.report.comparison import intervals_of
from pipelines.report.numbers import DASH
from pipelines.report.runs import open_runs
from pipelines.report_options import ReportConfig
from pipelines.scoring import categories_of, read_part
from tests.pipelines.report.test_page import percent, signed, table
from tests.reports import read_page, write_data, write_evaluation, write_training


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    other = write_training(folder / "other", lr=0.04, records=10)
    options = {"training": (made.training, other), "gallery": 6, "bootstrap": 60}
    report(ReportConfig((made.first, made.second), folder / "report.html", **options), lambda _: None)
    return read_page(folder / "report.html")


def rows_of(run):
    return [read_part(group, run.detections.folder) for group in run.groups]


def test_numbers_and_differences_are_those_of_the_summaries(made, page):
    head, *rows = table(page, "runs")
    assert head == ["number", "first", "second", "difference"]
    by_name = {row[0]: row[1:] for row in rows}
    one, two = made.summaries
    for name, ranking in (
        ("Mask AP by mask score", "mask_by_mask"),
        ("Box AP", "box"),
        ("Mask AP by class score", "mask_by_class"),
        ("Mask AP by the oracle", "mask_by_oracle"),
    ):
        ours, theirs, difference = by_name[name]
        a, b = one["ap"][ranking]["AP"], two["ap"][ranking]["AP"]
        assert (ours, theirs) == (percent(a), percent(b))
        assert difference.split(" ")[0] == signed(b - a)
    assert "[" not in by_name["Mask AP by the oracle"][2]


def test_intervals_are_those_of_the_rows(made, page):
    """Images drawn with replacement, the same ones of both runs, counted from each run's matches."""
    drawn = []
    for run in open_runs([made.first, made.second], [], [], True):
        matches = Matches(categories_of(run.manifest))
        for truths, found in rows_of(run):
            matches.update(truths, list(found.values()))
        drawn.append(matches.ranked("mask").aps(image_draws(len(matches.image_ids), 60, 0)))
    for column, name in enumerate(("AP", "AP50", "AP75")):
        a, b = (s["ap"]["mask_by_mask"][name] for s in made.summaries)
        low, high = np.percentile((drawn[1] - drawn[0])[:, column], [2.5, 97.5])
        row = next(row for row in table(page, "runs") if row[0] == f"Mask {name} by mask score")
        assert row[3] == f"{signed(b - a)} [{signed(low)} to {signed(high)}]"


def test_of_one_image_there_is_no_interval(tmp_path, make_scene):
    scene = make_scene(1, np.random.default_rng(2), 5, 9, 3)
    shards = write_data(tmp_path / "shards", [scene])
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, shards, [scene])
    runs, matches = open_runs([tmp_path / "a", tmp_path / "b"], [], [], False), Matches([(1, "a"), (2, "b"), (3, "c")])
    matches.update([scene.truth], [scene.detections])
    ends = intervals_of(runs, {0: matches, 1: matches}, 20, 0, lambda _: None)
    assert np.isnan(list(ends.values())).all()


def test_categories_change_by_what_the_summaries_say(made, page):
    groups, head, *rows = table(page, "categories")
    assert groups == ["", "first", "second"]
    assert head[6:] == ["AP by class score", "AP by mask score", "AP by oracle", "gain", "change"]
    one, two = (s["ap"]["per_category"] for s in made.summaries)
    for row, a, b in zip(rows, one, two, strict=True):
        assert row[-1] == signed(b["by_mask"] - a["by_mask"])
        assert row[3] == percent(a["by_mask"])
        assert row[7] == percent(b["by_mask"])


def test_settings_that_differ_are_marked(page):
    (section,) = page.all("section", id="runs")
    differing = section.all("table", css="settings")[0].rows()[1:]
    assert differing == [["solver.lr", "0.08", "0.04"]]
    marked = [row.all("th")[0].text for row in page.all("section", id="origin")[0].all("tr", css="differs")]
    assert marked == ["solver.lr differs"]


def test_curves_of_both_runs_lie_over_each_other(page):
    total = next(f for f in page.all("figure", css="figure") if f.all("h3")[0].text == "Loss: total")
    assert [item.text for item in total.all("li")] == ["first", "second"]
    assert len(total.all("path", css="line")) == 2


def test_other_data_is_said_and_not_subtracted(made, tmp_path, make_scene):
    scenes = [make_scene(i, np.random.default_rng(i), 5, 9, 3) for i in range(50, 54)]
    shards = write_data(tmp_path / "other-shards", scenes)
    write_evaluation(tmp_path / "elsewhere", shards, scenes)
    report(ReportConfig((made.first, tmp_path / "elsewhere"), tmp_path / "report.html", gallery=2), lambda _: None)
    page = read_page(tmp_path / "report.html")
    assert "elsewhere: evaluated on other data than first" in page.text
    assert {row[3] for row in table(page, "runs")[1:]} == {DASH}
    assert "change" not in table(page, "categories")[1]


def test_a_training_that_is_given_first_is_not_what_is_compared_with(made, tmp_path):
    runs, out = (made.training, made.first, made.second), tmp_path / "report.html"
    report(ReportConfig(runs, out, gallery=2, bootstrap=20), lambda _: None)
    page = read_page(out)
    head, *rows = table(page, "runs")
    assert head == ["number", "run", "difference", "first", "second", "difference"]
    a, b = (s["ap"]["mask_by_mask"]["AP"] for s in made.summaries)
    _, training, none, first, second, difference = rows[0]
    assert (training, none, first, second) == (DASH, DASH, percent(a), percent(b))
    assert re.fullmatch(rf"{re.escape(signed(b - a))} \[.+ to .+\]", difference)
    assert "Differences are to first" in page.text
    assert "run: evaluated on other data than first, or not at all" in page.text
    groups, head, *rows = table(page, "categories")
    assert groups == ["", "first", "second"]
    one, two = (s["ap"]["per_category"] for s in made.summaries)
    assert [row[-1] for row in rows] == [signed(y["by_mask"] - x["by_mask"]) for x, y in zip(one, two, strict=True)]


def test_instances_are_never_those_of_other_data(made, tmp_path, make_scene):
    """The first evaluation has no rows any more, the second has, of other images."""
    shutil.copytree(made.first, tmp_path / "first")
    shutil.rmtree(tmp_path / "first" / "detections")
    scenes = [make_scene(i, np.random.default_rng(i), 5, 9, 3) for i in range(50, 54)]
    write_evaluation(tmp_path / "elsewhere", write_data(tmp_path / "other-shards", scenes), scenes)
    runs, out = (tmp_path / "first", tmp_path / "elsewhere"), tmp_path / "report.html"
    report(ReportConfig(runs, out, gallery=2), lambda _: None)
    assert [row[1] for row in table(read_page(out), "categories")[2:]] == [DASH] * 3
