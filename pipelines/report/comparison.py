"""Runs side by side: every number as a difference to the first evaluation's, with an interval where rows allow one.

Differences are taken on one data set only. Intervals come from a bootstrap over the images that draws the same images
for all runs (`msrcnn.metrics.matches`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msrcnn.metrics.matches import RESAMPLED, Matches
from msrcnn.metrics.resampling import percentiles
from pipelines.progress import Progress
from pipelines.report.numbers import nan_if_none
from pipelines.report.runs import Run, baseline
from pipelines.tracking import flatten

RANKINGS = {"mask_by_mask": "mask", "mask_by_class": "class", "box": "box"}
"""Those of `summary.json` that get intervals, and what `Matches` calls them."""


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


Intervals = Mapping[tuple[int, str, str], tuple[float, float]]
"""Of a run's difference to the first evaluation, by run, ranking and metric."""


def lines_of(runs: Sequence[Run], intervals: Intervals) -> list[Line]:
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
            ends = intervals.get((index, path[1], path[-1]), (math.nan, math.nan))
            comparable = index != base and run.dataset and run.dataset == runs[base].dataset
            differences.append(Difference(values[index] - values[base], *ends) if comparable else None)
        found.append(Line(name, percent, values, tuple(differences)))
    return found


def intervals_of(
    runs: Sequence[Run], states: Mapping[int, Matches], bootstrap: int, seed: int, log: Callable[[str], None]
) -> Intervals:
    """The intervals of the differences to the first evaluation.

    A draw of 5,000 images with 100 detections each takes 0.1 s for each run on one core, 1000 of them two minutes.

    Args:
        runs: the first evaluation is what the others are compared with.
        states: of those whose rows were read.
        bootstrap: draws of the images.
        seed: of these.
        log: takes lines that say how far it is.
    """
    base = baseline(runs)
    others = [i for i in states if i != base and base in states and runs[i].dataset == runs[base].dataset]
    if not others or not bootstrap:
        return {}
    log(f"comparing with {runs[base].name}: {bootstrap} draws of the images")
    progress = Progress(1 + len(others), log, unit="runs")
    of_base, found = states[base].resample(bootstrap, seed), {}
    progress.add(1)
    for index in others:
        of_run = states[index].resample(bootstrap, seed)
        for name, ranking in RANKINGS.items():
            for metric in RESAMPLED:
                found[index, name, metric] = percentiles(of_run[ranking][metric] - of_base[ranking][metric])
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
