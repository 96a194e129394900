"""The options of `msrcnn sweep`. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from msrcnn.config import require
from pipelines.options import TrainingOptions

FROM_SCRATCH = "none"
"""As --weights: random ones, whatever the space says."""


@dataclass(frozen=True)
class SweepConfig(TrainingOptions):
    """Train and evaluate what a space of settings says, and print the table.

    Run again after an interruption, it resumes. Spaces are the paper's tables (table1 to table7, or input_fusion,
    training_target, tau, backbone, test_dev, oracle), hyperparameters, or TOML files of the same form; or --vary makes
    one. --preset, --model, --solver and --data change the settings of every trial that its space does not vary.
    """

    spaces: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[SPACES...]")] = field(
        default=(), kw_only=True
    )
    """names or files of spaces"""
    shards: str | Path
    """shards to train on; a local path or a URL"""
    validation: str | Path
    """shards to evaluate on"""
    out: str | Path
    """folder for runs, evaluations and tables; a local path, which on a cluster every node must see, or a URL"""
    weights: str | None = None
    """weights that every trial starts from, instead of the space's; none: random ones"""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """instead of a space: SETTING=VALUE,VALUE,..., as solver.lr=0.005,0.01,0.02; given for several settings, every
    combination is tried"""
    many_heads: bool = False
    """train the MaskIoU heads of all rows at once on one trunk, which learns nothing from them; for spaces that differ
    in nothing but the MaskIoU head"""
    trunk: str | None = None
    """with --many-heads: model file or run directory of a finished Mask R-CNN; its heads alone are trained"""
    search: Literal["grid", "random", "bayes"] | None = None
    """how settings are chosen, instead of the space's own way; bayes needs the package optuna"""
    samples: int | None = None
    """trials of a random or Bayesian search, instead of the space's number"""
    asha: bool = False
    """evaluate after every epoch and stop trials whose mask AP falls behind; for spaces that vary settings"""
    seeds: tuple[int, ...] = (0,)
    """train every trial once for each of these"""
    concurrent: int = 0
    """trials at a time; 0: as many as the cluster has room for, without GPUs a core for each thread of --threads"""
    given: tyro.conf.Suppress[tuple[str, ...]] = ()
    """names of the settings above (preset, model.*, solver.*, data.*) that go before those of the spaces: those that
    the command line names"""
    test_dev: str | Path | None = None
    """shards of images without annotations: write the archive for COCO's server from every trial's model"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.spaces and self.vary), "--vary", self.vary, "absent with a space, which says what varies")
        require(self.samples is None or self.samples >= 1, "--samples", self.samples, "at least 1")
        require(self.concurrent >= 0, "--concurrent", self.concurrent, "0 or more")
        good = bool(self.seeds) and all(s >= 0 for s in self.seeds) and len({*self.seeds}) == len(self.seeds)
        require(good, "--seeds", self.seeds, "different numbers from 0")
        require(self.trunk is None or self.many_heads, "--trunk", self.trunk, "absent without --many-heads")
        require(not (self.trunk and self.weights), "--weights", self.weights, "absent with --trunk")
        require(not (self.asha and self.many_heads), "--asha", self.asha,
                "absent with --many-heads, which has one trial")  # fmt: skip
