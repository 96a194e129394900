"""What the page says of numbers: signs, verdicts, the paper's rows; and the axes of its charts."""

from __future__ import annotations

import copy
import math

import pytest

from msrcnn.config import to_dict
from msrcnn.presets import PRESETS
from pipelines.report.charts import Chart, ticks
from pipelines.report.numbers import DASH, MINUS, interval, percent, points, shown, signed
from pipelines.report.page import comparable, scale
from pipelines.report.published import published_for
from pipelines.report.verdict import verdict


def test_numbers():
    assert [shown(v) for v in (0.1234, -0.5, None, math.nan)] == ["0.123", f"{MINUS}0.500", DASH, DASH]
    assert [percent(v) for v in (0.4871, -0.01, None)] == ["48.7", f"{MINUS}1.0", DASH]
    assert [points(v) for v in (0.016, -0.016, 0.0001, -0.0001)] == ["+1.6", f"{MINUS}1.6", "0.0", "0.0"]
    assert signed(-0.0004) == "0.000"
    assert interval(0.001, 0.02) == "+0.1 to +2.0"
    assert interval(-0.0004, 0.0094) == f"{MINUS}0.04 to +0.94"  # whether 0 is inside can be seen
    assert interval(None, 0.02) == ""


@pytest.fixture
def summary(made):
    return copy.deepcopy(made.summaries[0])


@pytest.mark.parametrize(
    ("low", "high", "answer", "tone"),
    [(0.01, 0.03, "Yes", "good"), (-0.01, 0.03, "Not shown", "open"), (-0.03, -0.01, "No, worse", "bad"),
     (None, None, "Not known", "open")],
)  # fmt: skip
def test_the_interval_decides_whether_the_mask_score_ranks_better(summary, low, high, answer, tone):
    summary["ap"] |= {"gain": 0.0 if low is None else (low + high) / 2, "gain_interval": [low, high]}
    found = verdict(summary)[0]
    assert (found.answer, found.tone) == (answer, tone)
    assert ("it may be chance" in found.why) == (answer == "Not shown")


def test_results_without_a_predicted_maskiou_are_said_to_have_none(summary):
    for b in summary["calibration"]["maskiou"]["bins"]:
        b |= {"count": 5, "score": 1.0} if b["high"] == 1 else {"count": 0, "score": None}
    assert "no predicted MaskIoU" not in verdict(summary)[0].why  # mask scores are class scores times a worth
    summary["calibration"]["mask_score"] = summary["calibration"]["class_score"]
    assert "no predicted MaskIoU" in verdict(summary)[0].why


@pytest.mark.parametrize(("true", "answer"), [(0.74, "Yes"), (0.65, "Roughly"), (0.4, "No")])
def test_trust_is_about_scores_that_people_look_at(summary, true, answer):
    for b in summary["calibration"]["mask_score"]["bins"]:
        b |= {"count": 1000, "score": 0.02, "true": 0.5} if b["low"] == 0 else {"count": 0}
        if round(b["low"], 2) == 0.75:
            b |= {"count": 10, "score": 0.77, "true": true}
    found = verdict(summary)[1]
    assert found.answer == answer
    assert f"mean 0.77, true MaskIoU {true:.2f}, 10 detections" in found.why


def test_the_costliest_of_the_six_main_kinds_is_named(summary):
    lost = {"Cls": 0.01, "Loc": 0.02, "Both": 0.0, "Dupe": 0.05, "Bkg": 0.0, "Miss": 0.04, "FP": 0.2, "FN": 0.3}
    summary["tide"]["by_mask"] = lost
    found = verdict(summary)[2]
    assert found.answer == "Duplicate"
    assert "5.0 points higher; then missed instance 4.0, poor mask 2.0" in found.why
    summary["tide"] = None
    assert len(verdict(summary)) == 2


@pytest.mark.parametrize(
    ("preset", "name", "exact", "by_class", "by_mask", "oracle"),
    [("r18-fpn", "R18-FPN", True, 27.7, 29.3, 31.5), ("r50-fpn", "R50-FPN", True, 34.5, 36.0, None),
     ("r101-fpn", "R101-FPN", True, 36.6, 38.2, None), ("r101-c4", "R101", True, 33.9, 35.0, None),
     ("r101-dcn-fpn", "R101-DCN-FPN", True, 37.7, 39.1, 41.7), ("demo", "R18-FPN", False, 27.7, 29.3, 31.5)],
)  # fmt: skip
def test_the_papers_rows(preset, name, exact, by_class, by_mask, oracle):
    paper = published_for(to_dict(PRESETS[preset].model))
    assert paper is not None
    assert (paper.name, paper.exact) == (name, exact)
    assert (paper.by_class["AP"], paper.by_mask["AP"], paper.oracle) == (by_class, by_mask, oracle)
    assert published_for({"backbone": "vit"}) is None


def test_what_is_comparable_with_the_paper(summary):
    paper = published_for(to_dict(PRESETS["demo"].model))
    assert "an AP here says nothing beside an AP there" in comparable(summary, paper)
    assert "only has the trunk of the paper's R18-FPN" in comparable(summary, paper)
    summary["images"]["total"] = 5000
    summary["ap"]["per_category"] = 80 * summary["ap"]["per_category"][:1]
    assert "which this data set is by its counts" in comparable(summary, paper)
    assert "only has" not in comparable(summary, published_for(to_dict(PRESETS["r18-fpn"].model)))


def test_the_bar_between_class_score_and_oracle(summary):
    for key, value in (("mask_by_class", 0.2), ("mask_by_mask", 0.25), ("mask_by_oracle", 0.4)):
        summary["ap"][key]["AP"] = value
    found = scale(summary)
    assert found is not None
    assert found["share"] == pytest.approx(25)
    summary["ap"]["mask_by_oracle"]["AP"] = 0.1
    assert scale(summary) is None


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0, 0.0237) == [0, 0.005, 0.01, 0.015, 0.02]
    assert ticks(-3, 12) == [0, 5, 10]
    assert ticks(2, 2) == [2]


def test_charts_place_points_and_leave_gaps():
    chart = Chart((0, 10), (0, 1))
    assert chart.at(0, 0) == (chart.left, chart.bottom)
    assert chart.at(10, 1) == (chart.right, chart.top)
    assert chart.at(99, -5) == (chart.right, chart.bottom)
    chart.line([(0, 0.5), (1, 0.5), (2, math.nan), (3, 0.5), (4, 0.5)], "c-mask")
    assert chart.svg("a < b").count("<path") == 2
    assert 'aria-label="a &lt; b"' in chart.svg("a < b")
