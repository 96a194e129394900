"""Where a seed's numbers come from: program, machine, data, weights. Stored with them and shown with the tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.pretrained import TRUNK, load_weights
from pipelines.manifest import read_manifest
from pipelines.provenance import made
from pipelines.storage import sha256_of
from pipelines.study_data import StudyShards
from pipelines.study_options import StudyConfig
from pipelines.study_plan import CONFIRM, Study
from pipelines.train_setup import local_weights

MADE = ("time", "git_commit", "machine", "gpus", "version/torch")
"""What is kept of `made`."""
BOUND = ("data", "weights")
"""What all seeds of a study have in common."""


def origin_of(config: StudyConfig, plan: Study, shards: StudyShards) -> dict[str, Any]:
    """Of what is measured now, as JSON takes it; the data by its annotation files' SHA-256.

    Raises:
        InputError: the weights or the shards cannot be used.
    """
    now = made()
    return {name: now[name] for name in MADE if name in now} | {
        "workers": config.workers,
        "data": {name: read_manifest(getattr(shards, name)).source["plan"]["annotations_sha256"]
                 for name in ("train", "val")},
        "weights": weights_of(config, plan, shards),
    }  # fmt: skip


def weights_of(config: StudyConfig, plan: Study, shards: StudyShards) -> dict[str, Any] | None:
    """The weights that every trunk begins with: their name, a file's SHA-256, tensors of the trunk that they lack."""
    if config.weights is None:
        return None
    categories = [category.name for category in read_manifest(shards.train).categories]
    model = MaskScoringRCNN(replace(plan.model(CONFIRM, "plain"), num_classes=len(categories)))
    with local_weights(config.weights) as path:
        report, file = load_weights(model, path, categories), Path(path)
        checksum = sha256_of(file) if file.is_file() else None
    return {
        "name": config.weights.rstrip("/").rpartition("/")[2],
        "sha256": checksum,
        "missing": [name for name in report.missing if name.startswith(TRUNK)],
    }


def check_origin(file: Path, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses what was trained on other data, or from other weights.

    Raises:
        InputError: it did.
    """
    for name in BOUND:
        if stored[name] != now[name]:
            raise InputError(f"{file}: made with other {name} than are given; choose another --out")
