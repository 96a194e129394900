"""The page: everything that was found, put into the templates. One file, no network, nothing that came from data runs.

The templates escape what they are given. Style and script are the only ones that the page's content security policy
lets through, by their SHA-256; pictures are in the page itself.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from msrcnn.metrics.coco_ap import METRICS
from pipelines.report.comparison import Line, Setting, other_data
from pipelines.report.curves import training_figures
from pipelines.report.facts import data_facts, made_facts, origin_facts, training_facts
from pipelines.report.figures import (
    PAPER_CORRELATION,
    calibration,
    density,
    per_run,
    precision_recall,
    run_class,
    score_bins,
    tide,
)
from pipelines.report.numbers import DASH, interval, nan_if_none, percent, points, shown, signed
from pipelines.report.picks import KINDS
from pipelines.report.pictures import Picture
from pipelines.report.published import Published, published_for
from pipelines.report.runs import Run, baseline
from pipelines.report.tables import category_table, labels_of, number_rows, threshold_rows
from pipelines.report.verdict import verdict
from pipelines.run_directory import VALIDATION_AP
from pipelines.summary_table import SHOWN

TEMPLATES = Path(__file__).parent / "templates"
COCO_VAL = (5000, 80)
"""Images and categories of COCO val2017."""
ABOUT = {
    "rescued": "Good masks (true MaskIoU from 0.75 on) that the mask score took past worse ones, most of these first; "
    "by mask score they stand among the first as many of their category as it has instances.",
    "misled": "Poor masks (true MaskIoU below 0.5) with the highest mask scores: where the score is wrong.",
    "missed": "Instances that no detection of their category covers with IoU 0.5, large ones that nothing comes near "
    "first.",
}


@dataclass(frozen=True)
class Found:
    """What a page says, beside what the runs hold.

    Attributes:
        lines: numbers of several runs side by side; empty for one.
        settings: of the trainings.
        pictures: of each run, by its name.
        instances: of each category by number and name, of the first evaluation's data.
        made: by which program and command, and when (`pipelines.provenance.made`).
    """

    lines: Sequence[Line] = ()
    settings: Sequence[Setting] = ()
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    instances: Mapping[tuple[int, str], int] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tile:
    """A number of the headline."""

    name: str
    value: str
    about: str
    paper: str = ""
    css: str = ""


def render(runs: Sequence[Run], found: Found) -> str:
    """The page as text."""
    style, script = ((TEMPLATES / name).read_text() for name in ("style.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {
        "points": points, "interval": interval, "percent": percent, "shown": shown, "signed": signed,
        "run_class": run_class, "kinds": KINDS, "about": ABOUT, "metrics": METRICS, "cuts": SHOWN,
    }  # fmt: skip
    evaluated = [run for run in runs if run.summary]
    pictures = [(run, picture) for run in runs for picture in found.pictures.get(run.name, ())]
    return environment.get_template("page.html").render(
        title=_title(runs), runs=runs, evaluated=evaluated, found=found, style=style, script=script,
        policy=policy(style, script), headlines=[_headline(run) for run in runs],
        other_data=other_data(runs) if len(runs) > 1 else "", training=training_figures(runs),
        curves=precision_recall(runs),
        figures=per_run(runs, (score_bins, density)), errors=per_run(runs, (calibration, tide)),
        categories=category_table(evaluated, found.instances) if evaluated else None,
        facts=[(run, data_facts(run), training_facts(run.training), origin_facts(run)) for run in runs],
        page_facts=made_facts(found.made),
        pictures=pictures, labels=labels_of((p.pick.category, p.category) for _, p in pictures), base=baseline(runs),
    )  # fmt: skip


def policy(style: str, script: str) -> str:
    """The content security policy: our style, our script, pictures in the page; nothing else, and no network."""
    hashes = (b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    of_style, of_script = (f"'sha256-{value}'" for value in hashes)
    return (f"default-src 'none'; img-src data:; style-src {of_style}; script-src {of_script}; base-uri 'none'; "
            "form-action 'none'")  # fmt: skip


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(run.summary["dataset"] for run in runs if run.summary))
    what = " and ".join(names) if names else "training"
    return f"{what}: {len(runs)} runs" if len(runs) > 1 else f"{what}: {runs[0].name}"


def _headline(run: Run) -> dict[str, Any]:
    """A run's verdict, tiles and table."""
    model = run.training.record.settings.get("model", {}) if run.training else {}
    paper = published_for(model) if model else None
    if run.summary is None:
        return {"run": run, "verdict": [], "tiles": _validated(run), "rows": [], "thresholds": [], "paper": None,
                "comparable": "", "scale": None}  # fmt: skip
    return {
        "run": run, "verdict": verdict(run.summary), "tiles": _tiles(run.summary, paper),
        "rows": number_rows(run.summary, paper), "thresholds": threshold_rows(run.summary), "paper": paper,
        "comparable": comparable(run.summary, paper), "scale": scale(run.summary),
    }  # fmt: skip


def _tiles(summary: Mapping[str, Any], paper: Published | None) -> list[Tile]:
    ap, agreement = summary["ap"], summary["maskiou"]
    by_mask = percent(ap["mask_by_mask"]["AP"])
    closed = nan_if_none(ap["oracle_gap_closed"])
    spread = interval(*ap["gain_interval"])
    gain = oracle = box = mask = ""
    if paper:
        base, best = paper.by_class["AP"], paper.by_mask["AP"]
        mask, gain, box = f"{best:.1f}", f"{best - base:+.1f}", f"{paper.by_mask['box AP']:.1f}"
        oracle = f"{100 * (best - base) / (paper.oracle - base):.0f}%" if paper.oracle else ""
    pearson = agreement["all_detections"]["maskiou_pearson"]
    return [
        Tile("Mask AP", by_mask, f"by mask score; {percent(ap['mask_by_class']['AP'])} by class score, "
             f"{percent(ap['mask_by_oracle']['AP'])} by the oracle", mask, "c-mask"),
        Tile("Gain by mask score", points(nan_if_none(ap["gain"])),
             f"95% interval {spread}" if spread else "no interval", gain),
        Tile("Oracle gap closed", f"{shown(100 * closed, 0)}%" if closed == closed else DASH,
             f"of {points(nan_if_none(ap['oracle_gap']))} AP that perfect MaskIoUs would bring", oracle),
        Tile("Correlation", shown(pearson, 2), "of predicted and true MaskIoU; class score "
             f"{shown(agreement['all_detections']['class_pearson'], 2)}", f"{PAPER_CORRELATION:.2f}" if paper else "",
             "c-maskiou"),
        Tile("Box AP", percent(ap["box"]["AP"]), "by class score", box, "c-box"),
    ]  # fmt: skip


def _validated(run: Run) -> list[Tile]:
    """Of a training alone: what its last validation gave."""
    lines = [line for line in (run.training.lines if run.training else ()) if VALIDATION_AP in line]
    if not lines:
        return []
    last = lines[-1]
    names = {"Mask AP": VALIDATION_AP, "Gain by mask score": "validation/gain/AP", "Box AP": "validation/box/AP"}
    return [Tile(name, (points if name.startswith("Gain") else percent)(last.get(key, float("nan"))),
                 f"validation after step {last['step']:,}") for name, key in names.items()]  # fmt: skip


def scale(summary: Mapping[str, Any]) -> dict[str, float] | None:
    """Where mask AP by mask score stands between that by class score and that by the oracle, for a bar: percent."""
    ap = {key: nan_if_none(summary["ap"][key]["AP"]) for key in ("mask_by_class", "mask_by_mask", "mask_by_oracle")}
    low, at, high = ap.values()
    if not high > low:
        return None
    return {"low": low, "at": at, "high": high, "share": 100 * min(1.0, max(0.0, (at - low) / (high - low)))}


def comparable(summary: Mapping[str, Any], paper: Published | None) -> str:
    """What of the paper's numbers can be held against these."""
    if paper is None:
        return "The paper has no numbers of this model's trunk, or no training is known."
    of = (summary["images"]["total"], len(summary["ap"]["per_category"]))
    trunk = "" if paper.exact else f" The model here only has the trunk of the paper's {paper.name}."
    if of == COCO_VAL:
        return f"The paper's numbers are of COCO val2017, which this data set is by its counts.{trunk}"
    return ("The paper's numbers are of COCO val2017, these of other data: an AP here says nothing beside an AP there. "
            "Gain, closed gap and correlation tell how well the score works, and can be held side by side with care."
            f"{trunk}")  # fmt: skip
