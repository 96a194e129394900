"""The page's tables as cells: numbers by ranking, and every category."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msrcnn.metrics.coco_ap import METRICS
from pipelines.report.numbers import DASH, nan_if_none, percent, points, shown
from pipelines.report.published import Published
from pipelines.report.runs import Run
from pipelines.summary_table import RANKED, SHOWN

CSS = {"box": "c-box", "mask_by_class": "c-class", "mask_by_mask": "c-mask", "mask_by_oracle": "c-oracle"}
"""Of `RANKED` the classes in the page."""


@dataclass(frozen=True)
class Cell:
    """A table's cell: what is read, and what it is sorted by (a number, or the text itself)."""

    text: str
    value: float | None = None
    css: str = ""


def number_rows(summary: Mapping[str, Any], paper: Published | None) -> list[tuple[str, str, list[str]]]:
    """CSS class, name and the 12 COCO numbers of each ranking; below them the paper's."""
    rows = [(CSS[key], name, [percent(summary["ap"][key][m]) for m in METRICS]) for key, name in RANKED.items()]
    for head, of in summary.get("heads", {}).items():
        rows.append(("c-mask", f"masks, mask score of head {head}",
                     [percent(of["ap"]["mask_by_mask"][metric]) for metric in METRICS]))  # fmt: skip
    if paper is None:
        return rows
    of = {"AP": 0, "AP50": 1, "AP75": 2}

    def cells(values: Mapping[str, float], prefix: str = "") -> list[str]:
        return [f"{values[prefix + m]:.1f}" if m in of and prefix + m in values else "" for m in METRICS]

    rows += [("paper", f"paper, {paper.name}: boxes, MS R-CNN", cells(paper.by_mask, "box ")),
             ("paper", f"paper, {paper.name}: masks, Mask R-CNN", cells(paper.by_class)),
             ("paper", f"paper, {paper.name}: masks, MS R-CNN", cells(paper.by_mask))]  # fmt: skip
    if paper.oracle is not None:
        rows.append(("paper", f"paper, {paper.name}: masks, oracle", cells({"AP": paper.oracle})))
    return rows


def threshold_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """CSS class, score and IoU; precision and recall from some scores on; where F1 is highest."""
    rows = []
    for of in summary["thresholds"]:
        cells = [f"{percent(k['precision'])} / {percent(k['recall'])}" for k in of["grid"] if k["score"] in SHOWN]
        best = of["best"]
        cells.append(f"{percent(best['f1'])} from {shown(best['score'])} on" if best else DASH)
        rows.append((f"c-{of['ranking']}", f"{of['ranking']} score, IoU {of['iou']:g}", cells))
    return rows


@dataclass(frozen=True)
class CategoryTable:
    """Every category of all runs.

    Attributes:
        groups: name and number of columns of each run, where there are several.
        head: the columns after the category's name.
        rows: name of the category and its cells.
    """

    groups: tuple[tuple[str, int], ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def category_table(runs: Sequence[Run], instances: Mapping[tuple[int, str], int]) -> CategoryTable:
    """AP of each category under three scores, the gain, and with several runs the difference to the first.

    A category of one run is that of another if number and name are the same.

    Args:
        runs: evaluations.
        instances: of each category by number and name, of the first run's data; empty where they were not read.
    """
    by_run = [{(c["number"], c["name"]): c for c in run.summary["ap"]["per_category"]} for run in runs if run.summary]
    labels = labels_of(key for of in by_run for key in of)
    several = len(by_run) > 1
    same = [run.dataset == runs[0].dataset for run in runs]
    columns = ("AP by class score", "AP by mask score", "AP by oracle", "gain")
    head: list[str] = ["instances"]
    groups: list[tuple[str, int]] = []
    for index, run in enumerate(runs):
        extra = ("change",) if index and same[index] else ()
        head += [*columns, *extra]
        groups.append((run.name, len(columns) + len(extra)))
    rows = []
    for key, label in labels.items():
        count = instances.get(key)
        cells = [Cell(DASH if count is None else f"{count:,}", count)]
        first = by_run[0].get(key)
        for index, categories in enumerate(by_run):
            category = categories.get(key)
            values = [
                nan_if_none(category[of]) if category else math.nan for of in ("by_class", "by_mask", "by_oracle")
            ]
            gain = values[1] - values[0]
            cells += [_cell(values[0], "first"), *map(_cell, values[1:]), _signed(gain)]
            if index and same[index]:
                cells.append(_signed(values[1] - (nan_if_none(first["by_mask"]) if first else math.nan)))
        rows.append((label, tuple(cells)))
    return CategoryTable(tuple(groups) if several else (), tuple(head), tuple(rows))


def labels_of(keys: Iterable[tuple[int, str]]) -> dict[tuple[int, str], str]:
    """Categories, each once, by number and name; the label is the name, with the number where others have the name."""
    each = dict.fromkeys(keys)
    count = Counter(name for _, name in each)
    return {(number, name): name if count[name] == 1 else f"{name} (number {number})" for number, name in each}


def _cell(value: float, css: str = "") -> Cell:
    return Cell(percent(value), value if math.isfinite(value) else None, css)


def _signed(value: float) -> Cell:
    finite = math.isfinite(value)
    css = "up" if finite and value >= 0.0005 else "down" if finite and value <= -0.0005 else ""
    return Cell(points(value), value if finite else None, css)
