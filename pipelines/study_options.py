"""The options of `msrcnn study`. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from msrcnn.config import require
from pipelines.options import worker_range


@dataclass(frozen=True)
class StudyConfig:
    """Train with several seeds, measure every way to rank masks on each, write the tables with intervals.

    Run again after an interruption, it resumes.
    """

    name: tyro.conf.Positional[Literal["quick", "shapes", "nuclei", "coco_sample"]]
    """which study: quick and shapes make their own data"""
    out: Path
    """folder for shards, runs, evaluations, results.json and results.md"""
    data: Path | None = None
    """nuclei, coco_sample: folder with annotations/instances_TRAIN.json, annotations/instances_VAL.json, TRAIN/ and
    VAL/, where the names are train and val, or train2017 and val2017"""
    weights: str | None = None
    """weights that every trunk starts from, as `msrcnn train --weights`; nuclei and coco_sample want ImageNet's"""
    workers: str = "1"
    """processes that train and that detect: a number, or MIN:MAX; without GPUs one a core is the fastest from some
    minutes of training on"""
    gpu: bool = False
    """one GPU a training worker and inference process"""
    draws: int = 1000
    """bootstrap draws of images for the intervals"""
    tracking: str | None = None
    """MLflow tracking address; sqlite:///OUT/mlflow.db if absent"""
    address: str | None = None
    """Ray cluster to join; a local Ray if absent"""

    def __post_init__(self) -> None:
        worker_range(self.workers)
        require(self.draws >= 100, "--draws", self.draws, "at least 100")
        made = self.name in ("quick", "shapes")
        require(made or self.data is not None, "--data", self.data, f"a folder: {self.name} does not make its own data")
        require(not made or self.data is None, "--data", str(self.data), f"absent: {self.name} makes its own data")
