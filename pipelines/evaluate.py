"""`msrcnn evaluate`: one pass of the network writes detection rows; every number is computed from them.

OUT/detections/*.parquet   one row a detection (`pipelines.schema.DETECTION_ROW`)
OUT/summary.json           every number, and what it was computed from; written last
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.session import connect
from msrcnn.errors import InputError
from msrcnn.weights import load_model
from pipelines.inference import Pool, infer, store
from pipelines.manifest import Manifest, read_manifest, written_aside
from pipelines.options import EvaluateConfig
from pipelines.progress import duration
from pipelines.reading import evaluation_rows, row_groups
from pipelines.run_directory import find_model
from pipelines.scoring import Summary, read_detections, score, summary_metrics
from pipelines.storage import Location, locate, on_disk
from pipelines.summary_table import summary_lines
from pipelines.tracking import Tracker, absolute

DETECTIONS = "detections"
SUMMARY = "summary.json"
UNFINISHED = ".unfinished"
"""Marks a folder whose detections an interrupted evaluation left, and which the next may replace."""


def plain(value: Any) -> Any:
    """A summary as JSON takes it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_output(out: Path) -> None:
    """Raises InputError where `out` holds something that is not ours to replace, or a finished evaluation."""
    if (out / SUMMARY).exists():
        raise InputError(f"{out}: already holds an evaluation; choose another --out or delete it")
    if out.exists() and any(out.iterdir()) and not (out / UNFINISHED).exists():
        raise InputError(f"{out}: is not empty; choose another --out")


def other_categories(known: Sequence[str], manifest: Manifest) -> str:
    """How a model's categories differ from the shards'; empty if they do not."""
    asked = [c.name for c in manifest.categories]
    if list(known) == asked:
        return ""
    return next((f"{a!r} where the shards have {b!r}" for a, b in zip(known, asked, strict=False) if a != b),
                f"{len(known)} where the shards have {len(asked)}")  # fmt: skip


def evaluate(config: EvaluateConfig, log: Callable[[str], None] = print) -> Summary:
    """Detects, stores, scores, logs.

    Raises:
        InputError: model, shards or output folder cannot be used, or model and shards have different categories.
    """
    began = time.monotonic()
    out = config.out.absolute()
    check_output(out)
    manifest = read_manifest(config.shards)
    weights, record = find_model(config.model)
    with on_disk(weights) as path:
        known = [name for _, _, name in load_model(path).categories]
    if wrong := other_categories(known, manifest):
        raise InputError(f"{weights}: its categories are not those of {config.shards} ({wrong}); "
                         "use a model that was trained for this data set")  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)  # fails before anything is noted elsewhere
    (out / UNFINISHED).touch()
    given = absolute(config.tracking) if config.tracking else None
    joined = record if record and given in (None, record.mlflow_address) else None
    tracker = Tracker(
        joined.mlflow_address if joined else config.tracking, config.experiment,
        joined.mlflow_run if joined else None, f"evaluate {out.name}",
    )  # fmt: skip
    try:
        detect(config, manifest, weights, out, log)
        summary = score(manifest, read_detections(locate(out / DETECTIONS)), config.bootstrap, config.seed)
        for line in summary_lines(summary):
            log(line)
        with written_aside(out / SUMMARY) as aside:
            value = {"model": str(weights), "shards": manifest.fingerprint, **plain(asdict(summary))}
            aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        (out / UNFINISHED).unlink()
    except BaseException:
        tracker.close("FINISHED" if joined else "FAILED")  # the training that the run belongs to did not fail
        raise
    try:
        tracker.metrics(summary_metrics(summary))
        tracker.artifact(out / SUMMARY, f"evaluation-{manifest.name}")
    except Exception as error:  # the numbers are on disk; a server that is gone is no reason to compute them again
        log(f"warning: MLflow at {tracker.address} did not take the numbers ({error}); they are in {out / SUMMARY}")
    tracker.close()
    log(f"evaluated in {duration(time.monotonic() - began)}: {out / SUMMARY}")
    return summary


def detect(
    config: EvaluateConfig, manifest: Manifest, weights: Location, out: Path, log: Callable[[str], None]
) -> None:
    """Runs the inference stage into `out`/detections, whole or not at all."""
    log(f"detecting on {manifest.name}: {manifest.rows} images")
    aside = out / f".{DETECTIONS}"
    for folder in (aside, out / DETECTIONS):  # of an evaluation that did not end
        shutil.rmtree(folder, ignore_errors=True)
    aside.mkdir(parents=True)
    with connect(config.address):
        groups = row_groups(manifest)
        pool = Pool.of_cluster(config.actors or len(groups), config.gpu)
        rows = infer(evaluation_rows(groups), weights.url, config.batch, pool)
        began = time.monotonic()
        store(rows, locate(aside))
    aside.rename(out / DETECTIONS)
    seconds = time.monotonic() - began
    log(f"detected in {duration(seconds)}, {manifest.rows / seconds:.1f} images/s, start of the processes included")
