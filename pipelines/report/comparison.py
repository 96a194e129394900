"""Runs side by side: every number as a difference to the first evaluation's, with an interval where rows allow one.

Differences are taken on one data set only. Intervals come from a bootstrap over the images that draws the same images
for both runs (`CocoAP.difference`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msrcnn.metrics.coco_ap import CocoAP
from pipelines.progress import Progress
from pipelines.report.numbers import nan_if_none
from pipelines.report.runs import Run, baseline
from pipelines.tracking import flatten

RANKINGS = {"mask_by_mask": "mask", "mask_by_class": "class", "box": "box"}
"""Those of `summary.json` that get an interval, and what `CocoAP` calls them."""


@dataclass(frozen=True)
class Difference:
    """A run's number less that of the first evaluation, fractions; the 95% interval's ends are nan without one."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Line:
    """A number of all runs.

    Attributes:
        name: what it is.
        percent: whether it is an AP, shown in percent.
        values: of each run; nan where there is none.
        differences: of each run to the first evaluation; None for that one, and where data sets differ.
    """

    name: str
    percent: bool
    values: tuple[float, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class Setting:
    """A setting of all runs: empty where a run's training has none, None where no training is known."""

    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        """Whether not all trainings have the same."""
        return len({value for value in self.values if value is not None}) > 1


NUMBERS: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
    ("Mask AP by mask score", True, ("ap", "mask_by_mask", "AP")),
    ("Mask AP by class score", True, ("ap", "mask_by_class", "AP")),
    ("Mask AP by the oracle", True, ("ap", "mask_by_oracle", "AP")),
    ("Mask AP50 by mask score", True, ("ap", "mask_by_mask", "AP50")),
    ("Mask AP75 by mask score", True, ("ap", "mask_by_mask", "AP75")),
    ("Box AP", True, ("ap", "box", "AP")),
    ("Gain by mask score", True, ("ap", "gain")),
    ("Oracle gap closed", False, ("ap", "oracle_gap_closed")),
    ("Correlation with the true MaskIoU", False, ("maskiou", "all_detections", "maskiou_pearson")),
    ("Correlation, matched detections", False, ("maskiou", "matched", "maskiou_pearson")),
    ("Calibration error of the mask score", False, ("calibration", "mask_score", "error")),
    ("Calibration error of the class score", False, ("calibration", "class_score", "error")),
)


def at(summary: Mapping[str, Any] | None, path: Sequence[str]) -> float:
    """A number of `summary.json`; nan where there is none."""
    value: Any = summary
    for key in path:
        value = value[key] if value is not None else None
    return nan_if_none(value)


def lines_of(runs: Sequence[Run], intervals: Mapping[tuple[int, str], Difference]) -> list[Line]:
    """The numbers side by side.

    Args:
        runs: the first evaluation is what the others are compared with.
        intervals: from `intervals_of`.
    """
    base, found = baseline(runs), []
    for name, percent, path in NUMBERS:
        values = tuple(at(run.summary, path) for run in runs)
        differences: list[Difference | None] = []
        for index, run in enumerate(runs):
            known = intervals.get((index, path[1])) if path[0] == "ap" and path[-1] == "AP" else None
            comparable = index != base and run.dataset and run.dataset == runs[base].dataset
            differences.append((known or Difference(values[index] - values[base])) if comparable else None)
        found.append(Line(name, percent, values, tuple(differences)))
    return found


def intervals_of(
    runs: Sequence[Run], states: Mapping[int, CocoAP], bootstrap: int, seed: int, log: Callable[[str], None]
) -> dict[tuple[int, str], Difference]:
    """The differences to the first evaluation that have an interval, by run and ranking.

    A resampling of 5,000 images with 100 detections each takes 0.08 s on two cores, 300 of them a minute for each run.

    Args:
        runs: the first evaluation is what the others are compared with.
        states: of those whose rows were read.
        bootstrap: resamplings of the images.
        seed: of these.
        log: takes lines that say how far it is.
    """
    base = baseline(runs)
    others = [i for i in states if i != base and base in states and runs[i].dataset == runs[base].dataset]
    pairs = [(i, ranking) for i in others for ranking in RANKINGS]
    if not pairs or not bootstrap:
        return {}
    log(f"comparing with {runs[base].name}: {len(pairs)} differences, {bootstrap} resamplings of the images each")
    progress = Progress(len(pairs), log, unit="differences")
    found = {}
    for index, ranking in pairs:
        value, (low, high) = states[index].difference(states[base], RANKINGS[ranking], bootstrap, seed)
        found[index, ranking] = Difference(value, low, high)
        progress.add(1)
    return found


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """The settings of the trainings, by dotted name; those that differ first."""
    flat = [flatten(run.training.record.settings) if run.training else None for run in runs]
    names = list(dict.fromkeys(name for of in flat for name in of or ()))
    found = [Setting(name, tuple(_value(of, name) for of in flat)) for name in names]
    return sorted(found, key=lambda setting: not setting.differs)


def other_data(runs: Sequence[Run]) -> str:
    """Which runs cannot be compared with the first evaluation, in a sentence; empty if all can."""
    first = runs[baseline(runs)]
    others = [run.name for run in runs if run.dataset != first.dataset]
    if not others:
        return ""
    return (f"{', '.join(others)}: evaluated on other data than {first.name}, or not at all. The numbers stand side "
            "by side, but no difference is taken.")  # fmt: skip


def _value(settings: Mapping[str, Any] | None, name: str) -> str | None:
    if settings is None:
        return None
    value = settings.get(name, "")
    return "none" if value is None else str(value)
