"""An evaluation's charts, each from `summary.json`, with a legend, a caption, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from msrcnn.metrics.tide import ERRORS
from pipelines.report.charts import Chart
from pipelines.report.numbers import DASH, nan_if_none, shown
from pipelines.report.runs import Run

LEVELS = 12
"""Shades of a density."""
CLASS, MASK, MASKIOU, ORACLE, IDEAL = "c-class", "c-mask", "c-maskiou", "c-oracle", "c-ideal"
"""CSS classes of the page."""


@dataclass(frozen=True)
class Figure:
    """A chart and what belongs to it.

    Attributes:
        title: what question it answers.
        svg: the chart.
        legend: CSS class and name of each thing that is drawn.
        caption: what is drawn, and how to read it.
        head: names of the columns of its numbers.
        rows: the numbers.
        run: whose it is, where each run has its own.
    """

    title: str
    svg: str
    legend: tuple[tuple[str, str], ...]
    caption: str
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    run: str = ""


def run_class(index: int) -> str:
    """The CSS class of a run's curves."""
    return f"c-run{index % 6}"


def score_bins(run: Run, summary: dict[str, Any]) -> Figure:
    """Fig. 2."""
    bins = summary["bins"]
    chart = Chart((0, len(bins)), (0, 1), (440, 360))
    chart.axes("true MaskIoU", "mean score", x_ticks=(), grid_x=False)
    for i, b in enumerate(bins):
        for offset, key, css in ((0.14, "class_score", CLASS), (0.5, "mask_score", MASK)):
            if b[key] is not None:
                chart.bar((i + offset, i + offset + 0.36), (0, b[key]), css)
        chart.line([(i, b["low"]), (i + 1, b["high"])], IDEAL)
        middle, _ = chart.at(i + 0.5, 0)
        chart.text(middle, chart.bottom + 15, f"{b['low']:.1f}{DASH}{b['high']:.1f}", "middle")
    rows = tuple(
        (f"{b['low']:.1f} to {b['high']:.1f}", f"{b['count']:,}", shown(b["class_score"]), shown(b["mask_score"]))
        for b in bins
    )
    words = ", ".join(f"{row[0]}: class score {row[2]}, mask score {row[3]}" for row in rows)
    return Figure(
        "Does the score follow the quality of the mask?",
        chart.svg(f"Mean scores by true MaskIoU. {words}."),
        ((CLASS, "mean class score"), (MASK, "mean mask score"), (IDEAL, "score = true MaskIoU")),
        "The paper's Fig. 2: detections with class score and true MaskIoU above 0.5. A score that tells good masks "
        "from poor ones rises with the dashed line.",
        ("true MaskIoU", "detections", "class score", "mask score"), rows, run.name,
    )  # fmt: skip


def density(run: Run, summary: dict[str, Any]) -> Figure:
    """Fig. 5."""
    cells, counts = summary["density"]["cells"], summary["density"]["counts"]
    most = max((count for *_, count in counts), default=1)
    shades: dict[int, list[tuple[int, int]]] = {}
    for predicted, true, count in counts:
        shade = 1 + int((LEVELS - 1) * math.log(count) / math.log(most)) if most > 1 else LEVELS
        shades.setdefault(min(shade, LEVELS), []).append((true, predicted))
    chart = Chart((0, 1), (0, 1), (440, 360))
    chart.axes("true MaskIoU", "predicted MaskIoU")
    for shade, where in sorted(shades.items()):
        chart.cells(where, 1 / cells, 0.12 + 0.88 * shade / LEVELS)
    chart.line([(0, 0), (1, 1)], IDEAL)
    agreement = summary["maskiou"]
    everything, matched = agreement["all_detections"], agreement["matched"]
    words = (f"Correlation {shown(everything['maskiou_pearson'])} over all {everything['count']:,} detections, "
             f"{shown(matched['maskiou_pearson'])} over the {matched['count']:,} with true MaskIoU from 0.5 "
             "on")  # fmt: skip
    rows = tuple(
        (name, f"{a['count']:,}", shown(a["maskiou_pearson"]), shown(a["maskiou_spearman"]),
         shown(a["class_pearson"]), shown(a["mean_absolute_error"]))
        for name, a in (("all", everything), ("matched", matched))
    )  # fmt: skip
    return Figure(
        "Does the network know how good its masks are?",
        chart.svg(f"Predicted against true MaskIoU. {words}."),
        (("c-heat", f"1 to {most:,} detections a cell, log scale"), (IDEAL, "predicted = true")),
        f"The paper's Fig. 5. {words}. The paper reports about {PAPER_CORRELATION:.2f} on COCO.",
        ("detections", "number", "Pearson", "Spearman", "class score, Pearson", "mean absolute error"), rows, run.name,
    )  # fmt: skip


PAPER_CORRELATION = 0.74
"""Fig. 5, both backbones: predicted and true MaskIoU over the top 100 detections of every image."""


def precision_recall(runs: Sequence[Run]) -> list[Figure]:
    """One chart an IoU threshold: three rankings of one run, or the masks by mask score of several."""
    evaluated = [(i, run, run.summary) for i, run in enumerate(runs) if run.summary]
    found = []
    for iou in (0.5, 0.75):
        drawn: list[tuple[str, str, list[float]]] = []
        for index, run, summary in evaluated:
            by = {c["ranking"]: c["precision"] for c in summary["curves"] if c["iou"] == iou}
            if len(evaluated) > 1:
                drawn.append((run_class(index), run.name, by["mask"]))
            else:
                drawn += [(CLASS, "by class score", by["class"]), (MASK, "by mask score", by["mask"]),
                          (ORACLE, "by the oracle", by["oracle"])]  # fmt: skip
        if not any(value is not None for _, _, values in drawn for value in values):
            continue
        chart = Chart((0, 1), (0, 1))
        chart.axes("recall", "precision")
        for css, _, values in drawn:
            chart.line([(i / (len(values) - 1), nan_if_none(v)) for i, v in enumerate(values)], css)
        areas = [(name, sum(map(nan_if_none, values)) / len(values)) for _, name, values in drawn]
        words = ", ".join(f"{name} AP {100 * area:.1f}" for name, area in areas)
        at = range(0, 101, 10)
        rows = tuple((f"{i / 100:.1f}", *(shown(values[i], 2) for _, _, values in drawn)) for i in at)
        found.append(Figure(
            f"A mask is right from IoU {iou:g} on",
            chart.svg(f"Precision against recall at IoU {iou:g}: {words}."),
            tuple((css, f"{name}: AP {100 * area:.1f}") for (css, *_), (name, area) in zip(drawn, areas, strict=True)),
            "Precision, mean over the categories, against the share of the instances that were found"
            + ("; masks ranked by mask score." if len(evaluated) > 1 else "."),
            ("recall", *(name for name, _ in areas)), rows,
        ))  # fmt: skip
    return found


def calibration(run: Run, summary: dict[str, Any]) -> Figure:
    """Reliability diagram of the three scores."""
    chart = Chart((0, 1), (0, 1), (440, 360))
    chart.axes("score", "mean true MaskIoU")
    chart.line([(0, 0), (1, 1)], IDEAL)
    parts = (("class score", CLASS, "class_score"), ("predicted MaskIoU", MASKIOU, "maskiou"),
             ("mask score", MASK, "mask_score"))  # fmt: skip
    for _, css, key in parts:
        chart.line([(b["score"], b["true"]) for b in summary["calibration"][key]["bins"] if b["count"]], css, True)
    errors = [(name, css, summary["calibration"][key]["error"]) for name, css, key in parts]
    words = ", ".join(f"{name} off by {shown(error)}" for name, _, error in errors)
    bins = zip(*(summary["calibration"][key]["bins"] for _, _, key in parts), strict=True)
    rows = tuple(
        (f"{of[0]['low']:.2f}{DASH}{of[0]['high']:.2f}", *(f"{shown(b['true'], 2)} ({b['count']:,})" for b in of))
        for of in bins
    )
    return Figure(
        "Is the score the MaskIoU?",
        chart.svg(f"Mean true MaskIoU by score. On average {words}."),
        (*((css, f"{name}, off by {shown(error)}") for name, css, error in errors), (IDEAL, "score = true MaskIoU")),
        "Mean true MaskIoU of the detections by score, in bins of 0.05. Below the dashed line a score promises too "
        "much. Off by: mean distance from the line, bins weighted by their detections.",
        ("score", "class score: true MaskIoU (detections)", "predicted MaskIoU", "mask score"), rows, run.name,
    )  # fmt: skip


def tide(run: Run, summary: dict[str, Any]) -> Figure | None:
    """What AP50 is lost to; None where the evaluation did not compute it."""
    lost = summary["tide"]
    if not lost:
        return None
    values = [100 * nan_if_none(lost[by][kind]) for by in ("by_class", "by_mask") for kind in ERRORS]
    most = max([1.0, *(v for v in values if math.isfinite(v))])
    chart = Chart((0, most * 1.12), (0, len(ERRORS)), (440, 36 * len(ERRORS) + 44), left=178)
    for row, (kind, text) in enumerate(ERRORS.items()):
        top = len(ERRORS) - row
        for offset, by, css in ((0.1, "by_class", CLASS), (0.48, "by_mask", MASK)):
            value = 100 * nan_if_none(lost[by][kind])
            if math.isfinite(value):
                chart.bar((0, max(0.0, value)), (top - offset, top - offset - 0.34), css)
                x, y = chart.at(max(0.0, value), top - offset - 0.17)
                chart.text(x + 4, y + 4, f"{value:.1f}")
        _, y = chart.at(0, top - 0.5)
        chart.text(chart.left - 8, y + 4, text, "end", "label")
    chart.text((chart.left + chart.right) / 2, chart.height - 6, "AP50 that it costs (points)", "middle", "label")
    rows = tuple((text, *(f"{100 * nan_if_none(lost[by][kind]):.1f}" for by in ("by_class", "by_mask")))
                 for kind, text in ERRORS.items())  # fmt: skip
    words = ", ".join(f"{text} {by_mask}" for text, _, by_mask in rows)
    return Figure(
        "What is AP50 lost to?",
        chart.svg(f"AP50 points lost, masks ranked by mask score: {words}."),
        ((CLASS, "ranked by class score"), (MASK, "ranked by mask score")),
        f"How much higher AP50 would be without one kind of error (TIDE), on {lost['images']:,} images. The last two "
        "kinds contain the others, and the costs do not add up.",
        ("error", "by class score", "by mask score"), rows, run.name,
    )  # fmt: skip


def per_run(runs: Iterable[Run], kinds: Sequence[Callable[[Run, dict[str, Any]], Figure | None]]) -> list[Figure]:
    """What each run has for itself, kind by kind."""
    evaluated = [(run, run.summary) for run in runs if run.summary]
    figures = (draw(run, summary) for draw in kinds for run, summary in evaluated)
    return [figure for figure in figures if figure is not None]
