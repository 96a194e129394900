"""A training's curves: each loss term, the learning rate, validations; those of several runs lie over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipelines.report.charts import Chart
from pipelines.report.figures import CLASS, MASK, Figure, run_class
from pipelines.report.runs import Run, Training
from pipelines.run_directory import VALIDATION_AP

POINTS = 240
"""Of a curve at most."""
SMALL = (290, 180)


def training_figures(runs: Sequence[Run]) -> list[Figure]:
    """Each loss term, the learning rate and the validation's AP over the epochs; runs over each other."""
    lines = {run.name: run.training.lines for run in runs if run.training}
    keys = list(dict.fromkeys(key for of in lines.values() for line in of for key in line if key.startswith("loss/")))
    keys.sort(key=lambda key: key != "loss/total")
    found = [_curves(runs, _loss_name(key), (key,), ("loss",)) for key in keys]
    found.append(_curves(runs, "Learning rate", ("lr",), ("learning rate",)))
    found.append(
        _curves(runs, "Validation", ("validation/mask_by_class/AP", VALIDATION_AP),
                ("mask AP by class score", "mask AP by mask score"), 100)
    )  # fmt: skip
    return [figure for figure in found if figure is not None]


def _loss_name(key: str) -> str:
    name = key.removeprefix("loss/").replace("_", " ").replace("rpn", "RPN").replace("maskiou", "MaskIoU")
    return f"Loss: {name}"


def _curves(
    runs: Sequence[Run], title: str, keys: Sequence[str], names: Sequence[str], factor: float = 1.0
) -> Figure | None:
    several = sum(run.training is not None for run in runs) > 1
    curves: list[tuple[str, str, list[tuple[float, float]]]] = []
    for index, run in enumerate(runs):
        for key, name, css in zip(keys, names, (CLASS, MASK)[-len(keys) :], strict=True):
            if points := curve(run.training, key, factor) if run.training else []:
                if several:
                    css = run_class(index) + (" thin" if css == CLASS else "")
                    name = f"{run.name}: {name}" if len(keys) > 1 else run.name
                curves.append((css, name, points))
    if not curves:
        return None
    xs, ys = ([p[i] for _, _, points in curves for p in points] for i in (0, 1))
    low = min(0.0, *ys) if len(keys) == 1 else min(ys) - 1
    chart = Chart((min(0.0, *xs), max(xs)), (low, max(ys) * 1.05 if len(keys) == 1 else max(ys) + 1), SMALL, left=52)
    chart.axes("epoch", "")
    for css, _, points in curves:
        chart.line(points, css, marks=len(points) < 12)
    ends = "; ".join(f"{name} {points[0][1]:.4g} to {points[-1][1]:.4g}" for _, name, points in curves)
    legend = tuple((css, name) for css, name, _ in curves) if len(curves) > 1 else ()
    return Figure(title, chart.svg(f"{title} over the epochs: {ends}."), legend, f"First to last: {ends}.")


def curve(training: Training, key: str, factor: float = 1.0) -> list[tuple[float, float]]:
    """A record's number by epoch, at most `POINTS` points, each the mean of the records that it stands for."""
    per_epoch = _steps_per_epoch(training)
    points = [
        (line.get("epoch", line["step"] / per_epoch), factor * line[key])
        for line in training.lines
        if isinstance(line.get(key), (int, float)) and math.isfinite(line[key])
    ]
    size = -(-len(points) // POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def _steps_per_epoch(training: Training) -> float:
    """From any record that has both."""
    return next((line["step"] / line["epoch"] for line in training.lines if line.get("epoch")), 1.0)
