"""From what seeds say to means, deviations, intervals and choices, on made-up seeds."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from msrcnn.errors import InputError
from pipelines.study_measures import CLASS, FROZEN, ORACLE, PAPER, ranking
from pipelines.study_plan import FOREGROUND, POWERS
from pipelines.study_results import best_powers, best_variant, results_of
from tests.studies import DRAWS, PLAN, results, said


def with_aps(aps: dict[str, float], measured=None):
    """A seed whose rankings of these names have these mask APs."""
    measured = copy.deepcopy(measured or said(0))
    for name, ap in aps.items():
        measured["masks"][name]["AP"] = ap
    return measured


def test_means_and_deviations_are_over_the_confirming_seeds():
    seeds = [said(seed) for seed in (1, 2)]
    found = results()
    for name in (CLASS, "detections^1"):
        points = [seed["masks"][name]["AP"] for seed in seeds]
        row = found["rankings"][name]
        assert row["AP"]["seeds"] == points
        assert row["AP"]["mean"] == pytest.approx(sum(points) / 2)
        assert row["AP"]["deviation"] == pytest.approx(np.std(points, ddof=1))
        gains = [point - seed["masks"][CLASS]["AP"] for point, seed in zip(points, seeds, strict=True)]
        assert row["gain"]["mean"] == pytest.approx(np.mean(gains))
        assert row["AP at 400"]["mean"] == pytest.approx(row["AP"]["mean"] + 0.5)
    assert found["gap"]["mean"] == pytest.approx(
        np.mean([seed["masks"][ORACLE]["AP"] - seed["masks"][CLASS]["AP"] for seed in seeds])
    )
    assert found["agreement"]["(b)"]["spearman, matched"]["mean"] == pytest.approx(
        np.mean([seed["agreement"]["(b)"]["spearman, matched"] for seed in seeds])
    )
    assert found["box"]["difference"]["mean"] == pytest.approx(
        np.mean([seed["box"]["paper"]["AP"] - seed["box"]["plain"]["AP"] for seed in seeds])
    )


def test_one_seed_has_no_deviation():
    found = results(replace(PLAN, confirming=(1,)))
    assert found["rankings"][CLASS]["AP"]["deviation"] is None


def test_the_gap_closed_is_the_mean_gain_over_the_mean_gap():
    found = results()["rankings"]["worth to AP^1"]["closed"]
    seeds = [said(seed)["masks"] for seed in (1, 2)]
    gains = [of["worth to AP^1"]["AP"] - of[CLASS]["AP"] for of in seeds]
    gaps = [of[ORACLE]["AP"] - of[CLASS]["AP"] for of in seeds]
    assert found["mean"] == pytest.approx(sum(gains) / sum(gaps))
    assert found["mean"] != pytest.approx(gains[0] / gaps[0] / 2 + gains[1] / gaps[1] / 2, abs=1e-9)
    assert found["seeds"] == pytest.approx([gain / gap for gain, gap in zip(gains, gaps, strict=True)])
    assert results()["rankings"][ORACLE]["closed"]["mean"] == 1


def test_the_interval_of_the_gap_closed_is_that_of_its_parts():
    """Seeds whose gaps differ a lot but of which the same share is closed scatter not at all."""
    seeds = [said(1), said(2)]
    for seed, gap in zip(seeds, (2.0, 10.0), strict=True):
        masks = seed["masks"]
        for name, share in ((ORACLE, 1.0), ("paper^1", 0.25)):
            draws = (np.array(masks[CLASS]["draws"]) + share * gap).tolist()
            masks[name] = masks[CLASS] | {"AP": masks[CLASS]["AP"] + share * gap, "draws": draws}
    closed = results(PLAN, seeds)["rankings"]["paper^1"]["closed"]
    assert [closed[key] for key in ("mean", "low", "high")] == pytest.approx([0.25] * 3)
    # 0.5 of 2 and 0.25 of 10: each seed's part in (1 + 2.5) / 12 is that plus what it is off, over the mean gap of 6
    better = np.array(seeds[0]["masks"][CLASS]["draws"]) + 1
    seeds[0]["masks"]["paper^1"] |= {"AP": seeds[0]["masks"][CLASS]["AP"] + 1, "draws": better.tolist()}
    closed = results(PLAN, seeds)["rankings"]["paper^1"]["closed"]
    mean = 3.5 / 12
    parts = [mean + (gain - mean * gap) / 6 for gain, gap in ((1, 2), (2.5, 10))]
    assert closed["mean"] == pytest.approx(np.mean(parts))
    assert closed["mean"] == pytest.approx(mean)
    half = 12.706 * np.std(parts, ddof=1) / np.sqrt(2)
    assert (closed["low"], closed["high"]) == pytest.approx((mean - half, mean + half), rel=0.2)  # 200 draws


def test_without_a_gap_nothing_is_closed():
    seed = said(1)
    seed["masks"][ORACLE] = seed["masks"][CLASS]
    found = results(replace(PLAN, confirming=(1,)), [seed])
    assert found["gap"] == {"mean": 0, "low": 0, "high": 0, "deviation": None, "seeds": [0]}
    assert found["rankings"]["paper^1"]["closed"] == {"mean": None, "low": None, "high": None, "seeds": [None]}


def test_intervals_hold_the_mean_and_are_of_seeds_too():
    """One seed's interval is that of its draws of images; that of seeds far apart spans both."""
    found = results()
    summaries = [row[key] for row in found["rankings"].values() for key in ("AP", "gain", "closed") if key in row]
    summaries += [row["over paper"] for name, row in found["rankings"].items() if name not in (CLASS, ORACLE)]
    summaries += [*found["box"].values(), *(of["pearson, all"] for of in found["agreement"].values())]
    for of in summaries:
        assert of["low"] <= of["mean"] <= of["high"]
    one = results(replace(PLAN, confirming=(1,)))["rankings"][CLASS]["AP"]
    draws = said(1)["masks"][CLASS]["draws"]
    assert [one["low"], one["high"]] == pytest.approx(np.percentile(draws, [2.5, 97.5]).tolist())
    apart = [said(1), said(1)]
    for name in ("AP", "draws"):
        apart[1]["masks"][CLASS][name] = (np.array(apart[1]["masks"][CLASS][name]) + 50).tolist()
    wide = results(PLAN, apart)["rankings"][CLASS]["AP"]
    half = 12.706 * 25  # Student's t with one degree of freedom; its tails are cut by 200 draws
    assert (wide["low"], wide["high"]) == pytest.approx((wide["mean"] - half, wide["mean"] + half), rel=0.2)


def test_differences_are_of_pairs():
    """A ranking that equals another on every draw differs by 0, however wide either's own interval is."""
    seeds = [said(1), said(2)]
    for seed in seeds:
        seed["masks"]["detections^1"] = seed["masks"]["paper^1"]
    row = results(PLAN, seeds)["rankings"]["detections^1"]
    assert [row["over paper"][name] for name in ("mean", "deviation", "low", "high")] == [0, 0, 0, 0]
    assert row["AP"]["high"] - row["AP"]["low"] > 1
    for seed in seeds:  # 1 AP better on every draw
        better = {"AP": seed["masks"]["paper^1"]["AP"] + 1,
                  "draws": (np.array(seed["masks"]["paper^1"]["draws"]) + 1).tolist()}  # fmt: skip
        seed["masks"]["detections^1"] = seed["masks"]["paper^1"] | better
    over = results(PLAN, seeds)["rankings"]["detections^1"]["over paper"]
    assert [over[name] for name in ("mean", "low", "high")] == pytest.approx([1, 1, 1])


def test_the_best_power_is_that_of_the_choosing_seeds_mean():
    base = {ranking(head, power): 20.0 for head in (PAPER, FROZEN, *PLAN.screened) for power in POWERS}
    one = with_aps({**base, "detections^0.5": 30.0, "detections^4": 29.0, "(b)^2": 20.5})
    two = with_aps({**base, "detections^0.5": 20.0, "detections^4": 29.0})
    powers = best_powers(PLAN, [one, two])
    assert powers["detections"] == 4  # 29 and 29 before 30 and 20
    assert powers["(b)"] == 2
    assert powers["worth to AP"] == 1  # all alike
    assert list(powers) == [PAPER, FROZEN, *PLAN.screened]


def test_the_variant_is_a_head_beyond_the_papers_tables():
    powers = dict.fromkeys((PAPER, FROZEN, *PLAN.screened), 1.0)
    low = {ranking(head, 1.0): 20.0 for head in powers}
    ahead = {f"{FOREGROUND}^1": 40.0, "(b)^1": 39.0, "#2^1": 38.0, "paper^1": 37.0, "(a)^1": 36.0}
    assert best_variant(PLAN, [with_aps({**low, **ahead, "worth to AP^1": 21.0})], powers) == "worth to AP"
    assert best_variant(PLAN, [with_aps({**low, **ahead, "detections^1": 21.0})], powers) == "detections"
    # each with its own power
    strong = with_aps({**low, "detections^1": 21.0, "worth to AP^2": 22.0})
    assert best_variant(PLAN, [strong], powers | {"worth to AP": 2.0}) == "worth to AP"


def test_what_confirms_does_not_choose():
    """The variant and its power follow from the choosing seeds alone, however good another is on validation."""
    chosen = [with_aps({"worth to AP^2": 90.0}, said(0))]
    confirmed = [with_aps({"detections^4": 99.0}, said(seed)) for seed in (1, 2)]
    powers = best_powers(PLAN, chosen)
    found = results_of("quick", PLAN, chosen, confirmed, powers)
    assert found["variant"] == {"head": "worth to AP", "options": PLAN.confirmed["worth to AP"], "power": 2.0,
                                "ranking": "worth to AP^2"}  # fmt: skip
    assert found["screened"]["worth to AP^2"]["AP"]["mean"] == 90
    rivals = (PAPER, FROZEN, FOREGROUND)
    assert {*found["best over"]} == {ranking(head, power) for head in rivals for power in (1.0, powers[head])}
    assert found["candidates"] == ["detections", "worth to AP"]
    for name, of in found["best over"].items():
        points = [seed["masks"]["worth to AP^2"]["AP"] - seed["masks"][name]["AP"] for seed in confirmed]
        assert of["seeds"] == pytest.approx(points)


def test_errors_of_seeds_are_weighted_by_their_detections():
    seeds = [said(1), said(2)]
    seeds[0]["errors"][PAPER][0] |= {"count": 30, "bias": 0.1, "error": 0.2}
    seeds[1]["errors"][PAPER][0] |= {"count": 10, "bias": 0.5, "error": 0.6}
    for seed in seeds:
        seed["errors"][PAPER][1] = {"low": 0.1, "high": 0.5, "count": 0}
    first, second, *_ = results(PLAN, seeds)["errors"][PAPER]
    assert (first["count"], first["bias"], first["error"]) == (40, pytest.approx(0.2), pytest.approx(0.3))
    assert second == {"low": 0.1, "high": 0.5, "count": 0}


def test_draws_that_were_not_made_alike_are_refused():
    with pytest.raises(InputError, match="give every seed's values on the same draws"):
        results(PLAN, [said(1), said(2, DRAWS // 2)])
