"""The options of `msrcnn compare`. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from msrcnn.config import require


@dataclass(frozen=True)
class CompareConfig:
    """Say by how much evaluation B differs from evaluation A of the same shards, and whether that may be chance.

    All of it comes from what is stored; no network runs. Where a side was trained with several seeds, its numbers are
    means over them, and the intervals are over images and seeds.
    """

    a: Annotated[tyro.conf.Positional[str | Path], tyro.conf.arg(metavar="A")]
    """folder that `msrcnn evaluate` or `msrcnn score` made; a local path or a URL"""
    b: Annotated[tyro.conf.Positional[str | Path], tyro.conf.arg(metavar="B")]
    """likewise: what is compared with A"""
    more_a: tuple[str | Path, ...] = ()
    """evaluations of the same as A trained with other seeds"""
    more_b: tuple[str | Path, ...] = ()
    """evaluations of the same as B trained with other seeds"""
    out: str | Path = ""
    """JSON file for the numbers, of every category too; a local path or a URL; none if absent"""
    shards: str | Path = ""
    """where the shards are now, if not where the evaluation A found them"""
    bootstrap: int = 1000
    """draws of the images for the intervals"""
    seed: int = 0
    """of the draws"""

    def __post_init__(self) -> None:
        require(self.bootstrap >= 1, "--bootstrap", self.bootstrap, "1 or more")
        require(self.seed >= 0, "--seed", self.seed, "0 or more")
