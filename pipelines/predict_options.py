"""The options of `msrcnn predict`. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from msrcnn.config import require
from msrcnn.inference_config import InferenceConfig
from pipelines.option_names import OnUnlessNot


@dataclass(frozen=True)
class PredictConfig(InferenceConfig):
    """Detect in images and videos: overlays, rows (Parquet), COCO results (JSON). No annotations, no shards needed.

    msrcnn predict runs/first photos/ 'more/*.jpg' s3://bucket/folder/ holiday.mp4

    Runs in this process, on its GPU if it has one. With --address or --actors it runs as processes of a Ray cluster,
    which read model and images themselves: paths must then be where every node sees them, or URLs. Run again after an
    interruption, it resumes. The exit code is 1 if more images than --max-failed could not be used.
    """

    model: Annotated[tyro.conf.Positional[str | Path], tyro.conf.arg(metavar="MODEL")]
    """run directory of a finished training, for its model.pt, or a model file, as RUN/best.pt; a local path or a URL"""
    images: Annotated[tyro.conf.Positional[tuple[str | Path, ...]], tyro.conf.arg(metavar="IMAGES...")]
    """files, folders (every image below, by its suffix), patterns (*, **, [...], and ? in local ones), videos (by name
    or pattern; needs the package av); local or URLs (s3://, gs://, whatever fsspec knows)"""
    out: str | Path = "predictions"
    """folder for overlays/, detections.parquet, detections.json and images.json; a local path or a URL"""
    min_score: float = 0.5
    """least mask score (class score x predicted MaskIoU) of a detection, in overlays and files alike: 0.5 leaves few
    false ones, 0.3 finds more, 0 leaves out only the few whose predicted MaskIoU is below 0; scores of a model of a +ap
    preset are lower: 0.1 keeps about as many as 0.5 does otherwise"""
    overlays: OnUnlessNot = True
    """draw no overlays"""
    batch: int = 0
    """images a step of the network; 0: 8 on a GPU, 1 on a CPU, which more at a time slow down"""
    actors: int = 0
    """processes of the Ray cluster, at most one a GPU (with --gpu) or CPU; 0: with --address, from one to as many as
    there is work and room for"""
    max_failed: int = 0
    """images that may fail before the exit code is 1; each that fails is a row with its error, whatever this says"""
    gpu: bool = False
    """one GPU a process; without --address and --actors, fail where there is none"""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS if absent"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.images) > 0, "IMAGES", self.images, "one or more files, folders, patterns or URLs")
        require(math.isfinite(self.min_score), "--min-score", self.min_score, "a number")
        for name in ("batch", "actors", "max_failed"):
            require(getattr(self, name) >= 0, f"--{name.replace('_', '-')}", getattr(self, name), "0 or more")
