"""The options of `msrcnn report`. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from msrcnn.config import require

MOST_PICTURES = 160
"""Of each kind, so that a page stays under about 5 MB."""


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about evaluations: numbers, curves, every category, pictures of what went right and wrong.

    The page opens from disk and loads nothing. All of it comes from what is stored; no network runs. Several runs stand
    side by side, compared with the first evaluation.
    """

    runs: Annotated[tyro.conf.Positional[tuple[str | Path, ...]], tyro.conf.arg(metavar="RUNS...")]
    """folders that `msrcnn evaluate` or `msrcnn score` made, or, for its curves alone, a run directory of `msrcnn
    train`; local paths or URLs"""
    out: str | Path = "report.html"
    """the page; a local path or a URL"""
    shards: tuple[str | Path, ...] = ()
    """where the shards are now, if not where the evaluation found them: one place for all runs, or one for each"""
    training: tuple[str | Path, ...] = ()
    """likewise the run directories of the trainings"""
    gallery: int = 80
    """pictures of each kind, over all runs at most; 0: none, and neither shards nor detections are read"""
    bootstrap: int = 1000
    """draws of the images for the intervals of differences between runs; 0: none"""
    seed: int = 0
    """of the draws"""

    def __post_init__(self) -> None:
        require(bool(self.runs), "RUNS", "nothing", "one or more folders that `msrcnn evaluate` made")
        good = 0 <= self.gallery <= MOST_PICTURES
        require(good, "--gallery", self.gallery, f"0 to {MOST_PICTURES}, for the page's size")
        for name in ("bootstrap", "seed"):
            require(getattr(self, name) >= 0, f"--{name}", getattr(self, name), "0 or more")
        for name in ("shards", "training"):
            number = len(getattr(self, name))
            good = number in (0, 1, len(self.runs))
            require(good, f"--{name}", f"{number} places", f"one place, or one for each of the {len(self.runs)} runs")
