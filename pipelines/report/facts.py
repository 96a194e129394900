"""Where a run comes from: data sets, model, program, machine, commands. Names and values, as stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msrcnn.inference_config import described
from pipelines.data import LARGE, SMALL, read_columns
from pipelines.detection_parts import SHORT
from pipelines.progress import duration
from pipelines.report.runs import Run, Training
from pipelines.storage import locate

Facts = list[tuple[str, str]]
MEMORY = {
    "memory of the GPU at most": "system/gpu_memory_peak_megabytes",
    "memory of a worker's process at most": "system/worker_memory_megabytes",
}
"""In the records of a training."""


def data_facts(run: Run) -> Facts:
    """The data set of an evaluation; counts of the shards where they are read."""
    summary = run.summary or {}
    if not summary:
        return []
    images = summary["images"]
    facts = [
        ("data set", summary["dataset"]),
        ("images", f"{images['total']:,}"),
        ("detections", f"{summary['detections']:,}"),
        ("images without a detection", f"{images['without_detections']:,}"),
        ("images that failed", f"{images['failed']:,}"),
        ("fingerprint of the shards", run.dataset),
    ]
    manifest = run.manifest
    if manifest is None:
        return facts
    columns = read_columns(manifest)
    areas = columns.areas[~columns.crowd]
    small, large = int((areas < SMALL).sum()), int((areas >= LARGE).sum())
    facts += [
        ("shards", str(locate(manifest.folder))),
        ("categories", f"{len(manifest.categories):,}"),
        ("instances", f"{manifest.instances:,}, of them {int(columns.crowd.sum()):,} crowds"),
        ("objects", f"{small:,} small (under 32 x 32 pixels), {len(areas) - small - large:,} medium, {large:,} large "
                    "(from 96 x 96)"),
        ("set aside when sharding", _counts(manifest.rejected)),
        ("corrected when sharding", _counts(manifest.corrected)),
    ]  # fmt: skip
    return facts


def training_facts(training: Training | None) -> Facts:
    """Data, speed and duration of a training."""
    if training is None:
        return []
    settings, lines = training.record.settings, [line for line in training.lines if "loss/total" in line]
    data = settings.get("dataset", {})
    facts = [
        ("run directory", str(training.folder)),
        ("data set", str(data.get("name", ""))),
        ("images", f"{data.get('images', 0):,}"),
        ("fingerprint of the shards", str(data.get("fingerprint", ""))),
    ]
    if lines:
        last = lines[-1]
        facts.append(("steps", f"{last['step']:,} of {settings['solver']['batch']} images, {last['epoch']:.2f} epochs"))
        speed = sorted(line["images_per_second"] for line in lines)[len(lines) // 2]
        wait = sum(line["data_wait"] for line in lines) / len(lines)
        facts.append(("speed", f"{speed:.1f} images/s (median), {100 * wait:.1f}% of the time waiting for data"))
        facts.append(("workers", str(last["workers"])))
        facts.append(("from the first record to the last", duration(last["time"] - lines[0]["time"])))
        for name, key in MEMORY.items():
            if used := [line[key] for line in lines if key in line]:
                facts.append((name, f"{max(used):,.0f} MB"))
    facts.append(("MLflow run", training.record.mlflow_run))
    return [(name, value) for name, value in facts if value]


def origin_facts(run: Run) -> Facts:
    """Model, program, machine and commands."""
    summary = run.summary or {}
    facts: list[tuple[str, Any]] = [("run", str(run.place)), ("model", summary.get("model", "")),
                                    ("SHA-256 of the model", summary.get("model_sha256", "")[:SHORT])]  # fmt: skip
    if inference := described(summary.get("inference", {})):
        facts.append(("detected otherwise than the model's file says", inference))
    if "seconds" in summary:
        facts.append(("evaluated or scored in", duration(summary["seconds"])))
    facts += made_facts(summary.get("made", {}), " of the evaluation")
    facts += made_facts(run.training.record.made if run.training else {}, " of the training")
    return [(name, str(value)) for name, value in facts if value]


def made_facts(made: Mapping[str, str], of: str = "") -> Facts:
    """What `pipelines.provenance.made` says; `of` goes behind the names."""
    names = {"command": "command", "time": "time", "machine": "machine", "gpus": "GPUs", "git_commit": "git commit"}
    versions = [f"{key.removeprefix('version/')} {value}" for key, value in made.items() if key.startswith("version/")]
    facts = [(f"{name}{of}", made[key]) for key, name in names.items() if key in made]
    return [*facts, (f"versions{of}", ", ".join(versions))] if versions else facts


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{count:,} x {kind}" for kind, count in sorted(counted.items()) if count) or "nothing"
