"""An evaluation in plain words: does the mask score rank better, can the scores be trusted, what is lost most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from msrcnn.metrics.tide import ERRORS
from pipelines.report.numbers import interval, nan_if_none, points

CLOSE, ROUGH = 0.05, 0.15
"""Calibration errors up to which a score can be read as a mask's quality, and as a rough sign of it."""
SPECIAL = ("FP", "FN")
"""TIDE's kinds that contain the others."""

CONFIDENT = 0.5

Tone = Literal["good", "open", "bad"]


@dataclass(frozen=True)
class Sentence:
    """A finding: how it is, in a few words, and why."""

    tone: Tone
    question: str
    answer: str
    why: str


def verdict(summary: dict[str, Any]) -> list[Sentence]:
    """The three findings; fewer where the evaluation lacks the numbers."""
    found = [_ranking(summary), _trust(summary), _lost(summary)]
    return [sentence for sentence in found if sentence is not None]


def no_maskiou(summary: dict[str, Any]) -> bool:
    """Whether each predicted MaskIoU is 1 and mask scores are class scores: results of a detector that predicts none.

    Results may have a `worth` without a MaskIoU, which ranks masks all the same.
    """
    calibration = summary["calibration"]
    bins = [b for b in calibration["maskiou"]["bins"] if b["count"]]
    same = calibration["mask_score"]["bins"] == calibration["class_score"]["bins"]
    return bool(bins) and all(b["score"] == 1 for b in bins) and same


def _ranking(summary: dict[str, Any]) -> Sentence | None:
    question = "Does the mask score rank masks better?"
    ap = summary["ap"]
    gain, (low, high) = nan_if_none(ap["gain"]), ap["gain_interval"]
    if not math.isfinite(gain):
        return None
    if no_maskiou(summary):
        return Sentence("open", question, "It cannot", "These detections have no predicted MaskIoU: the mask score is "
                        "the class score.")  # fmt: skip
    gap, closed = nan_if_none(ap["oracle_gap"]), nan_if_none(ap["oracle_gap_closed"])
    spread = interval(low, high)
    measured = f"{points(gain)} AP over the class score" + (
        f" (95% interval {spread}, bootstrap over images)." if spread else "; there is no interval.")  # fmt: skip
    if closed >= 0:
        measured += f" A perfect prediction would bring {points(gap)}: {100 * closed:.0f}% of that is reached."
    if not spread:
        return Sentence("open", question, "Not known", measured)
    if nan_if_none(low) > 0:
        return Sentence("good", question, "Yes", measured)
    if nan_if_none(high) < 0:
        return Sentence("bad", question, "No, worse", measured)
    return Sentence(
        "open", question, "Not shown", f"{measured} The interval holds 0: on these images it may be chance."
    )


def _trust(summary: dict[str, Any]) -> Sentence | None:
    """By the scores that people look at: low ones are most of all detections, and nobody reads them as numbers."""
    question = f"Can scores from {CONFIDENT} on be trusted?"
    upper = [b for b in summary["calibration"]["mask_score"]["bins"] if b["count"] and b["low"] >= CONFIDENT]
    number = sum(b["count"] for b in upper)
    if not number:
        return Sentence("bad", question, "There are none", "No detection has a mask score so high.")
    score, true = (sum(b["count"] * b[key] for b in upper) / number for key in ("score", "true"))
    error = sum(b["count"] * abs(b["score"] - b["true"]) for b in upper) / number
    side = "too much" if score - true > 0.02 else "too little" if true - score > 0.02 else "what it keeps"
    overall = nan_if_none(summary["calibration"]["mask_score"]["error"])
    why = (f"Read as the true MaskIoU, mask scores that high are off by {error:.2f} on average. They promise {side}: "
           f"mean {score:.2f}, true MaskIoU {true:.2f}, {number:,} detections. All mask scores together are off by "
           f"{overall:.2f}.")  # fmt: skip
    if error <= CLOSE:
        return Sentence("good", question, "Yes", why)
    return Sentence("open", question, "Roughly", why) if error <= ROUGH else Sentence("bad", question, "No", why)


def _lost(summary: dict[str, Any]) -> Sentence | None:
    if not summary["tide"]:
        return None
    lost = {kind: nan_if_none(value) for kind, value in summary["tide"]["by_mask"].items() if kind not in SPECIAL}
    ordered = sorted((kind for kind in lost if math.isfinite(lost[kind])), key=lambda kind: -lost[kind])
    if not ordered or lost[ordered[0]] <= 0:
        return None
    first, *others = ordered
    rest = ", ".join(f"{ERRORS[kind]} {100 * lost[kind]:.1f}" for kind in others[:2])
    why = f"Without errors of that kind AP50 would be {100 * lost[first]:.1f} points higher; then {rest} (TIDE)."
    return Sentence("open", "What is lost most?", ERRORS[first].capitalize(), why)
