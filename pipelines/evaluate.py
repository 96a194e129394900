"""`msrcnn evaluate`: one pass of the network writes detection rows; every number is computed from them.

`pipelines.reporting` says what is in the folder that it makes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.session import connect
from msrcnn.errors import InputError
from msrcnn.inference_config import InferenceConfig
from msrcnn.weights import load_model
from pipelines.detection_parts import DETECTIONS, VERSION, Origin, StoredDetections, report_failures
from pipelines.inference import DetectJob, detect
from pipelines.manifest import Manifest, read_manifest
from pipelines.options import EvaluateConfig
from pipelines.output_folder import beginning
from pipelines.pool import Pool
from pipelines.progress import duration
from pipelines.reading import RowGroup, row_groups
from pipelines.reporting import SUMMARY, Evaluated, check_output, finish, finished, follows_from, mark, report
from pipelines.run_directory import find_model
from pipelines.scoring import Summary, score_all
from pipelines.storage import Location, exclusively, locate, on_disk, sha256_of
from pipelines.tracking import Tracker, absolute, here, status_of


def other_categories(known: Sequence[str], manifest: Manifest) -> str:
    """How a model's categories differ from the shards'; empty if they do not."""
    asked = [c.name for c in manifest.categories]
    if list(known) == asked:
        return ""
    return next((f"{a!r} where the shards have {b!r}" for a, b in zip(known, asked, strict=False) if a != b),
                f"{len(known)} where the shards have {len(asked)}")  # fmt: skip


def origin_of(weights: Location, manifest: Manifest, shards: object, inference: InferenceConfig) -> Origin:
    """What the detections of this model on these shards follow from.

    Raises:
        InputError: model and shards have different categories, or `inference` means nothing with this model.
    """
    with on_disk(weights) as path:
        checkpoint = load_model(path)
        checksum = sha256_of(path)
    if wrong := other_categories([name for _, _, name in checkpoint.categories], manifest):
        raise InputError(f"{weights}: its categories are not those of {shards} ({wrong}); "
                         "use a model that was trained for this data set")  # fmt: skip
    model = checkpoint.model.config
    settings: dict[str, Any] = {"rows": VERSION, "heads": list(model.heads)}
    if changed := inference.changed(model):
        settings["inference"] = changed
    return Origin(checksum, manifest.fingerprint, settings)


def evaluate_once(config: EvaluateConfig, log: Callable[[str], None] = print) -> None:
    """`msrcnn evaluate`: as `evaluate`, but nothing to do where the folder holds what it would compute.

    A scheduler that gives the command of a finished job again, as RayJobs and Slurm may, learns that all is well.
    """
    out = locate(config.out)
    held = finished(out, out / DETECTIONS)
    if held is not None and not (config.strict and held.get("images", {}).get("failed")):
        weights, manifest = find_model(config.model)[0], read_manifest(config.shards)
        origin = origin_of(weights, manifest, config.shards, config.inference)
        wanted = follows_from(origin, config)
        if wanted == {name: held.get(name) for name in wanted}:
            log(f"{out}: holds the numbers of this model on these shards, nothing to do")
            return
    evaluate(config, log)


def evaluate(config: EvaluateConfig, log: Callable[[str], None] = print) -> Summary:
    """Detects, stores, scores, draws, logs.

    Raises:
        InputError: model, shards or output folder cannot be used, model and shards have different categories, or
            an image failed with `strict`.
    """
    began = time.monotonic()
    out = locate(config.out)
    manifest = read_manifest(config.shards)
    weights, record = find_model(config.model)
    check_output(out)
    origin = origin_of(weights, manifest, config.shards, config.inference)
    mark(out)  # fails before anything is noted elsewhere
    given = absolute(config.tracking) if config.tracking else None
    joined = record if record and given in (None, record.mlflow_address) and here(record.mlflow_address) else None
    with exclusively(out, "evaluating into"):
        tracker = Tracker(
            joined.mlflow_address if joined else config.tracking, config.experiment,
            joined.mlflow_run if joined else None, f"evaluate {out.name}",
        )  # fmt: skip
        try:
            with connect(config.address):
                groups = row_groups(manifest)
                detections = _detections(config, manifest, groups, DetectJob(
                    weights.url, out / DETECTIONS, origin, config.batch, config.inference), log)  # fmt: skip
                scores = score_all(manifest, groups, detections, log)
            seconds = round(time.monotonic() - began, 1)
            evaluated = Evaluated(manifest, groups, detections)
            made_from = {"model": str(weights), "seconds": seconds}
            summary = report(evaluated, scores, config, out, made_from, log)
        except BaseException as error:
            tracker.close(status_of(error))
            raise
        finish(tracker, weights, evaluated, summary, out, log)
    log(f"evaluated in {duration(time.monotonic() - began)}: {out / SUMMARY}")
    return summary


def detect_only(config: EvaluateConfig, log: Callable[[str], None] = print) -> StoredDetections:
    """Detects and stores, for images whose truth somebody else has.

    Raises:
        InputError: as `evaluate`.
    """
    out, manifest = locate(config.out), read_manifest(config.shards)
    weights, _ = find_model(config.model)
    origin = origin_of(weights, manifest, config.shards, config.inference)
    job = DetectJob(weights.url, out / DETECTIONS, origin, config.batch, config.inference)
    with beginning(out):
        out.make_folder()
    with exclusively(out, "evaluating into"), connect(config.address):
        return _detections(config, manifest, row_groups(manifest), job, log)


def _detections(
    config: EvaluateConfig, manifest: Manifest, groups: Sequence[RowGroup], job: DetectJob, log: Callable[[str], None]
) -> StoredDetections:
    """The inference stage, with what there is to say about it."""
    began = time.monotonic()
    log(f"detecting on {manifest.name}: {manifest.rows} images")
    parts = detect(groups, job, Pool.of_cluster(config.actors, config.gpu, len(groups)), log)
    seconds = time.monotonic() - began
    log(f"detected in {duration(seconds)}, start of the processes included")
    report_failures(parts.values(), config.strict, log)
    return StoredDetections(job.folder, job.origin, tuple(parts.values()))
