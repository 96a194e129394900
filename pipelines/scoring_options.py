"""The options of the verbs that work on stored detections. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msrcnn.config import require
from pipelines.option_names import OnUnlessNot

NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""What COCO's server takes as the name of an algorithm in the name of a file."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the verbs that compute all numbers of an evaluation have in common."""

    bootstrap: int = 1000
    """draws of the images for the intervals; 0: none"""
    seed: int = 0
    """of the draws, and of the images that errors are told apart on"""
    figures: OnUnlessNot = True
    """draw no figures"""
    tracking: str | None = None
    """MLflow tracking address; MLFLOW_TRACKING_URI if absent, else sqlite:///mlflow.db"""
    experiment: str = "msrcnn"
    """MLflow experiment, for what belongs to no run of a training"""
    address: str | None = None
    """Ray cluster to join; a local Ray if absent"""

    def __post_init__(self) -> None:
        for name in ("bootstrap", "seed"):
            require(getattr(self, name) >= 0, f"--{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class ScoreConfig(ReportOptions):
    """Compute every number of an evaluation from stored detections, or from any detector's COCO results."""

    detections: str | Path
    """folder of an evaluation or its detections; or a JSON file of COCO results with run lengths, by any detector: a
    list of {image_id, category_id, segmentation, score}, and maskiou (1 if absent) to rank masks by score x maskiou;
    what msrcnn predict writes is ranked by its class_score and worth"""
    shards: str | Path
    """the shards of the images that were detected on; a local path or a URL"""
    out: str | Path
    """folder for the numbers (summary.json) and figures, and for the rows of a JSON file; a local path or a URL"""


@dataclass(frozen=True)
class ExportConfig:
    """Write stored detections as COCO results: OUT/segm.json, without boxes, and OUT/bbox.json.

    Category ids are those of the annotation file. Boxes are ranked by class score.
    """

    detections: str | Path
    """folder of an evaluation or its detections"""
    shards: str | Path
    """the shards of the images that were detected on, with or without annotations"""
    out: str | Path
    """folder for the files, made if absent; a local path or a URL"""
    score: Literal["mask", "class"] = "mask"
    """what ranks the masks in segm.json: the mask score (class score x predicted MaskIoU, or x `worth`), or the class
    score"""
    test_dev: str = ""
    """also write the archive that COCO's server takes for test-dev2017, under this name of the method:
    detections_test-dev2017_NAME_results.zip, the masks"""

    def __post_init__(self) -> None:
        good = not self.test_dev or NAME.fullmatch(self.test_dev)
        require(bool(good), "--test-dev", self.test_dev, "a name of letters, digits, '-', '_' and '.'")


@dataclass(frozen=True)
class RescoreConfig:
    """Mask AP if masks were ranked otherwise: class score^a x predicted MaskIoU^b, thresholds, fewer detections.

    Every combination of the values is computed from stored detections; no network runs.
    """

    detections: str | Path
    """folder of an evaluation or its detections"""
    shards: str | Path
    """the shards of the images that were detected on; a local path or a URL"""
    out: str | Path
    """JSON file for the numbers"""
    class_powers: tuple[float, ...] = (1.0,)
    """exponents of the class score"""
    maskiou_powers: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    """exponents of the predicted MaskIoU; 0 ranks as Mask R-CNN does"""
    thresholds: tuple[float, ...] = (0.0,)
    """drop detections whose score is lower"""
    top_k: tuple[int, ...] = (0,)
    """keep so many detections of an image, the best; 0: all"""

    def __post_init__(self) -> None:
        for name in ("class_powers", "maskiou_powers", "thresholds"):
            values = getattr(self, name)
            good = values and all(math.isfinite(v) and v >= 0 for v in values)
            require(bool(good), f"--{name.replace('_', '-')}", values, "one or more numbers from 0")
        require(bool(self.top_k) and all(k >= 0 for k in self.top_k), "--top-k", self.top_k, "one or more of 0, 1, ...")
