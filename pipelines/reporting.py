"""The folder of an evaluation, and how its numbers get there: printed, stored, drawn, told to MLflow.

OUT/detections/    rows, one a detection (`pipelines.detection_parts`)
OUT/figures/       see `pipelines.drawing`
OUT/summary.json   every number, and what it was computed from
OUT/.unfinished    there from the beginning until everything else is
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from msrcnn.errors import InputError
from msrcnn.inference_config import described
from msrcnn.metrics.coco_ap import CocoAP
from msrcnn.metrics.quality import MaskIoUQuality
from pipelines.detection_parts import SHORT, Origin, StoredDetections
from pipelines.drawing import draw
from pipelines.manifest import Manifest
from pipelines.output_folder import beginning, held_in
from pipelines.provenance import made
from pipelines.reading import RowGroup
from pipelines.scoring import PartialScores, Summary, summarise, summary_metrics
from pipelines.scoring_options import ReportOptions
from pipelines.storage import ASIDE, Location, locate, on_disk
from pipelines.summary_table import summary_lines
from pipelines.tracking import Tracker

FIGURES = "figures"
SUMMARY = "summary.json"
DENSITY_CELLS = 50
"""A side of the joint histogram of predicted and true MaskIoU that is stored."""
UNFINISHED = ".unfinished"
"""Marks a folder whose evaluation has not ended: the same command goes on in it."""


@dataclass(frozen=True)
class Evaluated:
    """What the numbers are computed from.

    Attributes:
        manifest: of the shards.
        groups: all their row groups.
        detections: the parts of these.
    """

    manifest: Manifest
    groups: Sequence[RowGroup]
    detections: StoredDetections


def plain(value: Any) -> Any:
    """A summary as JSON takes it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_output(out: Location) -> None:
    """Raises InputError where `out` holds something that is not ours to go on in, or a finished evaluation."""
    held = held_in(out)
    if UNFINISHED in held:
        return
    if SUMMARY in held:
        raise InputError(f"{out}: already holds an evaluation; choose another --out or delete it")
    if held:
        raise InputError(f"{out}: is not empty; choose another --out")


def finished(out: Location, detections: Location) -> dict[str, Any] | None:
    """`summary.json` of a finished evaluation whose detections are in that folder; None if it is none."""
    with suppress(OSError, ValueError):
        if (out / UNFINISHED).size() is None and detections.is_folder():
            return dict(json.loads((out / SUMMARY).read()))
    return None


def follows_from(origin: Origin, wanted: ReportOptions) -> dict[str, Any]:
    """What numbers and figures follow from, as `summary.json` has it: detections, and options."""
    return {
        "model_sha256": origin.model, "shards": origin.dataset, "inference": origin.inference,
        "asked": {"bootstrap": wanted.bootstrap, "seed": wanted.seed, "figures": wanted.figures},
    }  # fmt: skip


def mark(out: Location) -> None:
    """Makes the folder and says that what is in it is not finished.

    Raises:
        InputError: it cannot be written.
    """
    with beginning(out):
        out.make_folder()
        (out / UNFINISHED).write(b"")


def report(
    evaluated: Evaluated, scores: PartialScores, wanted: ReportOptions, out: Location, made_from: Mapping[str, Any],
    log: Callable[[str], None],
) -> Summary:  # fmt: skip
    """Summarises, prints, draws and stores the numbers.

    Args:
        evaluated: what they are from.
        scores: of all images.
        wanted: draws of the images, seed, and whether there are figures.
        out: the folder.
        made_from: what stands first in `summary.json`.
        log: takes lines.
    """
    summary = summarise(evaluated.manifest.name, scores, wanted.bootstrap, wanted.seed)
    for line in summary_lines(summary):
        log(line)
    tide: dict[str, Any] | None = None
    curves = CocoAP.from_bytes(scores.ap).curves()
    if wanted.figures and math.isfinite(summary.ap.mask_by_class["AP"]):  # else there is no truth to compare with
        tide = draw(evaluated, scores, summary, curves, wanted.seed, out / FIGURES, log)
    origin = evaluated.detections.origin
    value = {
        "made": made(), **made_from, "shards_folder": str(locate(evaluated.manifest.folder)),
        **follows_from(origin, wanted), **plain(asdict(summary)), "tide": plain(tide),
        "curves": plain([asdict(curve) for curve in curves]), "density": density_of(scores),
    }  # fmt: skip
    (out / SUMMARY).write_json(value)
    return summary


def density_of(scores: PartialScores) -> dict[str, Any]:
    """Fig. 5 as JSON takes it: `counts` lists [predicted, true, detections] of the cells that hold any, a side of
    which is 1 / `cells`."""
    density = MaskIoUQuality.from_bytes(scores.quality).density(False, DENSITY_CELLS)
    rows, columns = density.nonzero()
    counts = zip(rows.tolist(), columns.tolist(), density[rows, columns].tolist(), strict=True)
    return {"cells": DENSITY_CELLS, "counts": [list(cell) for cell in counts]}


def finish(
    tracker: Tracker, model: Location, evaluated: Evaluated, summary: Summary, out: Location, log: Callable[[str], None]
) -> None:
    """Tells MLflow everything, ends its run and takes the mark away.

    Args:
        tracker: the run. Where it has those of another model or data set, or of a model that detected otherwise, these
            go to one under it.
        model: or detections, from which the numbers come.
        evaluated: what they are from.
        summary: the numbers.
        out: the folder that holds them.
        log: takes a warning where MLflow cannot be told.
    """
    folder = f"evaluation-{summary.dataset}"
    manifest, inference = evaluated.manifest, described(evaluated.detections.origin.inference)
    evaluation = f"{model.name} on {manifest.name} {manifest.fingerprint[:SHORT]}{inference and f' with {inference}'}"
    try:
        tracker = tracker.of_evaluation(evaluation, f"evaluate {out.name}")
        tracker.metrics(summary_metrics(summary))
        for place, where in [(out / SUMMARY, folder), *_figures(out, f"{folder}/{FIGURES}")]:
            with on_disk(place) as path:
                tracker.artifact(path, where)
    except Exception as error:  # the numbers are on disk; a server that is gone is no reason to compute them again
        log(f"warning: MLflow at {tracker.shown} did not take the numbers ({error}); they are in {out / SUMMARY}")
    tracker.close()
    (out / UNFINISHED).remove()


def _figures(out: Location, where: str) -> list[tuple[Location, str]]:
    return [(out / FIGURES / name, where) for name in sorted((out / FIGURES).list()) if not ASIDE.fullmatch(name)]
