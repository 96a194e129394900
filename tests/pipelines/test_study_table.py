"""The Markdown of a study: its numbers are those of results.json."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest

from pipelines.study_measures import CLASS
from pipelines.study_plan import FOREGROUND
from pipelines.study_table import interval, markdown, spread
from tests.studies import HEADS, PLAN, results, said

SHOWN = [
    "rankings/class score/AP/mean", "rankings/class score/AP/deviation", "rankings/class score/AP50/mean",
    "rankings/class score/AP75/mean", "rankings/class score/AP at 400/mean", "rankings/paper^1/gain/low",
    "rankings/paper^1/closed/mean", "rankings/paper^1/closed/high", "rankings/(a)^1/over paper/low",
    "rankings/oracle/AP/mean", "rankings/oracle/gain/high", "agreement/class score/pearson, all/mean",
    "agreement/paper/pearson, matched/mean", "agreement/paper/pearson, all/high",
    "agreement/detections/spearman, all/mean", "agreement/(a)/spearman, matched/mean",
    "gap/mean", "gap/low", "gap/high",
    "best over/mean foreground probability^1/mean", "best over/(a)^1/high",
    "rankings/(b)^1/gain/mean", "rankings/#2^1/gain/high",
    "published/(b)", "published/class score", "agreement/(b)/pearson, all/mean", "box/paper/mean",
    "box/plain/deviation", "box/difference/mean", "box/difference/low", "others/plain, class score/mean",
    "others/nms, class score/mean", "others/nms, mask score/deviation", "limits/paper/none", "limits/paper/matched",
    "limits/(a)/all", "errors/paper/0/bias", "errors/(a)/3/error", "data/train", "data/choose", "data/fit", "data/val",
    "minutes", "variant/power", "screened/class score/AP/mean", "screened/paper^1/gain/low",
    "screened agreement/paper/pearson, matched/mean",
]  # fmt: skip
"""Numbers of results.json that the tables show."""


def at(value, path: str):
    for key in path.split("/"):
        value = value[int(key) if isinstance(value, list) else key]
    return value


@pytest.mark.parametrize("path", SHOWN)
def test_a_number_of_the_text_is_that_of_results_json(path):
    found = results()
    changed = copy.deepcopy(found)
    where, _, name = path.rpartition("/")
    of = at(changed, where) if where else changed
    of[name] = 8765.0
    unlike = r"8765|87[34]\d"  # or less what is subtracted from it
    assert not re.search(unlike, markdown(found))
    assert re.search(unlike, markdown(changed))


def test_the_rankings_and_the_form_of_tables():
    text = markdown(results())
    best = results()["variant"]["head"]
    found = re.findall(rf"^\| \*\*{best}", text, re.MULTILINE)  # in bold, where it is chosen and where confirmed
    assert len(found) == 2
    assert text.count("**") == 4
    assert f"(`{HEADS[best]}`, class score x {'worth' if 'goal=ap' in HEADS[best] else 'MaskIoU'}^" in text
    for row in re.findall(r"^\| (?!---)(.*) \|$", text, re.MULTILINE):
        assert row.split(" | ")[0].strip("*")
    tables = re.split(r"\n(?!\|)", text)
    widths = [{line.count("|") for line in table.splitlines() if line.startswith("|")} for table in tables]
    assert all(len(width) <= 1 for width in widths)  # every row has all columns


def test_what_is_not_defined_is_a_dash():
    """No instance was detected: correlations, gaps and bins of errors are nobody's."""
    seed = said(1)
    nothing = {"AP": float("nan"), "AP50": float("nan"), "AP75": float("nan"), "AP at 400": float("nan"),
               "draws": [float("nan")] * 200}  # fmt: skip
    seed["masks"] = dict.fromkeys(seed["masks"], nothing)
    for of in seed["agreement"].values():
        of |= {key: float("nan") for key in of if key != "draws"} | {"draws": [float("nan")] * 200}
    for bins in seed["errors"].values():
        bins[:] = [{"low": one["low"], "high": one["high"], "count": 0} for one in bins]
    seed["limits"] = {head: dict.fromkeys(of, float("nan")) for head, of in seed["limits"].items()}
    text = markdown(results(replace(PLAN, confirming=(1,)), [seed]))
    assert not re.search(r"\b(nan|None|inf|null)\b", text)
    assert "| class score | - | - | - | - |  |  |  |" in text
    assert "| class score | - | - | - | - |\n" in text
    assert "The oracle's gain of - AP may be none, so no head can close a share of it" in text
    assert "0 of 0 pairs" in text


def test_where_the_oracle_may_gain_nothing_no_share_is_told():
    """A share of a gap that may be 0 is any number."""
    found = results()
    paper = next(line for line in markdown(found).splitlines() if line.startswith("- The paper's head closes "))
    share = interval(found["rankings"]["paper^1"]["closed"], sign=False)
    assert share in paper
    assert share in markdown(found).replace(paper, "")  # in the table
    found["rankings"]["oracle"]["gain"]["low"] = -0.1
    text = markdown(found)
    assert share not in text
    assert "may be none, so no head can close a share of it" in text
    assert re.search(r"\| the paper's head, trained with the trunk \| .* \| - \|", text)


def test_pairs_in_the_papers_order():
    """On COCO (a) is before (b); #2 is behind #1, which is (a)."""
    found = results()
    certain, uncertain = {"low": -1.0, "high": -0.1}, {"low": -0.2, "high": 8.2}
    found["pairs"]["Input, Table 4"][0] |= {"mean": -0.5, **certain}
    found["pairs"]["Target, Table 5"][0] |= {"mean": 4.0, **uncertain}
    text = markdown(found)
    order = "pairs in the paper's order, of which chance gives half"
    assert f"Input, Table 4: 0 of 1 {order} (not (a), (b)); of the 1 that differ by an interval without 0, 0." in text
    assert f"Target, Table 5: 1 of 1 {order}; of the 0 that differ by an interval without 0, 0." in text
    assert "tau, Table 6: 0 of 0 pairs" in text


def test_a_study_without_ablations_has_no_table_of_them():
    heads = {name: text for name, text in HEADS.items() if name in (FOREGROUND, "detections")}
    text = markdown(results(replace(PLAN, screened=heads, confirmed=heads)))
    assert "Tables 4 to 6" not in text
    assert "with hard NMS" in text
    assert CLASS in text


def test_a_study_in_which_nothing_is_chosen():
    plan = replace(PLAN, choosing=(), screened={name: HEADS[name] for name in (FOREGROUND, "worth to AP")})
    found = results(plan)
    assert (found["variant"]["ranking"], found["screened"]) == ("worth to AP^1", {})
    text = markdown(found)
    assert "Nothing was chosen; everything below is of validation" in text
    assert text.count("| **worth to AP** |") == 1
    assert "competed" not in text
    assert not re.search(r"\b(nan|None|inf|null)\b", text)


def test_a_study_without_baselines_has_no_lines_of_them():
    seeds = [said(seed) for seed in PLAN.confirming]
    for seed in seeds:
        seed["box"], seed["others"] = {"paper": seed["box"]["paper"]}, {}
    text = markdown(results(PLAN, seeds))
    assert "hard NMS" not in text
    assert "Mask R-CNN" not in text
    assert "Box AP with" in text


def test_numbers_as_texts():
    of = {"mean": 1.234, "low": -0.5, "high": 2.0, "deviation": 0.126}
    assert interval(of) == "+1.23 (-0.50 to +2.00)"
    assert interval(of, sign=False) == "1.23 (-0.50 to 2.00)"
    assert interval(of | {"low": None}) == "+1.23 (- to +2.00)"
    assert interval(of | {"mean": None}) == "-"
    assert spread(of) == "1.23 ± 0.13"
    assert spread(of | {"deviation": None}) == "1.23"
