"""The options of `msrcnn predict`. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from msrcnn.config import Precision, check_precision, require


@dataclass(frozen=True)
class PredictConfig:
    """Detect in images and videos: overlays, rows (Parquet), COCO results (JSON). No annotations, no shards needed.

    msrcnn predict runs/first photos/ 'more/*.jpg' s3://bucket/folder/ holiday.mp4

    Runs in this process, on its GPU if it has one. With --address or --actors it runs as processes of a Ray cluster,
    which read model and images themselves: paths must then be where every node sees them, or URLs. The same command
    again, after it was interrupted, goes on where it stopped. The exit code is 1 if an image could not be used.
    """

    model: Annotated[tyro.conf.Positional[str | Path], tyro.conf.arg(metavar="MODEL")]
    """run directory of a finished training, or a model file; a local path or a URL"""
    images: Annotated[tyro.conf.Positional[tuple[str | Path, ...]], tyro.conf.arg(metavar="IMAGES...")]
    """files, folders (every image below, by its suffix), patterns (*, **, [...], and ? in local ones), videos (by name
    or pattern; needs the extra 'video'); local or URLs (s3://, gs://, whatever fsspec knows)"""
    out: str | Path = "predictions"
    """folder for overlays/, detections.parquet, detections.json and images.json; a local path or a URL"""
    min_score: float = 0.5
    """least mask score (class score x predicted MaskIoU) of a detection, in overlays and files alike: 0.5 leaves few
    false ones, 0.3 finds more, 0 leaves out only the few whose predicted MaskIoU is below 0"""
    overlays: bool = True
    """draw no overlays"""
    batch: int = 0
    """images a step of the network; 0: 8 on a GPU, 1 on a CPU, which more at a time slow down"""
    precision: Precision = "float32"
    """what layers compute in; bfloat16 is faster where the device has instructions for it and gives nearly the same
    detections: scores, boxes and masks stay float32"""
    actors: int = 0
    """processes of the Ray cluster, at most one a GPU (with --gpu) or CPU; 0: with --address, from one to as many as
    there is work and room for"""
    gpu: bool = False
    """one GPU a process; without --address and --actors, fail where there is none"""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS if absent"""

    def __post_init__(self) -> None:
        require(len(self.images) > 0, "IMAGES", self.images, "one or more files, folders, patterns or URLs")
        require(math.isfinite(self.min_score), "--min-score", self.min_score, "a number")
        check_precision("--precision", self.precision)
        for name in ("batch", "actors"):
            require(getattr(self, name) >= 0, f"--{name}", getattr(self, name), "0 or more")
