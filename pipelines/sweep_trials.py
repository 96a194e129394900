"""The trials of a sweep: what settings make of the command line's configuration, and under which name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from msrcnn.config import DataConfig, ModelConfig, SolverConfig, to_dict, without_defaults
from pipelines.options import EvaluateConfig, TrainConfig, TrainingOptions
from pipelines.storage import Location, locate
from pipelines.sweep_options import FROM_SCRATCH, SweepConfig
from pipelines.tracking import flatten
from pipelines.trial import EVALUATIONS, RESULTS, RUNS, Trial
from tune_spaces.definition import Range, Space
from tune_spaces.settings import base_of, configure

PARTS = ("model", "solver", "data")
SLUG = 60
"""Letters of a trial's name that say what is special about it."""


class TrialMaker:
    """Turns settings into trials.

    Settings come from, the last first: what varies, the command line, the space's [fixed], the preset.

    Args:
        fixed: of the space.
    """

    def __init__(self, config: SweepConfig, fixed: Mapping[str, Any]) -> None:
        self.config = config
        self.known = known_trials(locate(config.out))
        self.fixed = {**fixed, **given(config)}

    def settings(self, varied: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of a trial."""
        found = {**self.fixed, **varied}
        weights = self.config.weights or found.get("weights")
        if weights and weights != FROM_SCRATCH:
            return {**found, "weights": weights}
        return {name: value for name, value in found.items() if name != "weights"}

    def trial(self, varied: Mapping[str, Any], seed: int) -> Trial:
        """The trial with these settings."""
        settings = self.settings(varied)
        model, solver, data = configure(base_of(settings), settings)
        return self.build(varied, seed, (model, solver, data), settings.get("weights"))

    def build(
        self,
        varied: Mapping[str, Any],
        seed: int,
        parts: tuple[ModelConfig, SolverConfig, DataConfig],
        weights: str | None,
    ) -> Trial:
        """A trial from its configuration.

        Args:
            varied: what is special about it.
            parts: model, solver, data.
        """
        config, out = self.config, locate(self.config.out)
        model, solver, data = parts
        solver = replace(solver, seed=seed)
        digest = _digest([*map(without_defaults, (model, solver, data)), weights])
        name = self.known.get(digest) or f"{_slug(varied)}-seed{seed}-{digest}"
        common = {f.name: getattr(config, f.name) for f in fields(TrainingOptions)}
        validation = locate(config.validation).url  # a trial's process runs in another folder
        train = TrainConfig(
            **{**common, "model": model, "solver": solver, "data": data}, shards=locate(config.shards).url,
            run=(out / RUNS / name).url, weights=_absolute(weights), register="",
            validation=validation if config.asha else None,
        )  # fmt: skip
        evaluate = EvaluateConfig(  # of its numbers no table has an interval
            (out / RUNS / name).url, validation, (out / EVALUATIONS / name).url, gpu=config.gpu, bootstrap=0,
            figures=False, tracking=config.tracking, experiment=config.experiment, address=config.address,
        )  # fmt: skip
        test_dev = None if config.test_dev is None else locate(config.test_dev).url
        return Trial(name, digest, dict(varied), train, evaluate, test_dev)


class SearchTrials(TrialMaker):
    """Makes the trials of a Bayesian search, which has one seed.

    Args:
        space: that is searched.
    """

    def __init__(self, config: SweepConfig, space: Space) -> None:
        super().__init__(config, space.fixed)
        self.space, self.seed = space, config.seeds[0]

    def suggested(self, found: Mapping[str, Any]) -> Trial:
        """The trial with what Tune suggests."""
        vary = self.space.vary.items()
        settings = {n: rounded(found[n], of) if isinstance(of, Range) else found[n] for n, of in vary}
        return self.trial(settings, self.seed)

    def example(self) -> Trial:
        """A trial at a corner of the space."""
        corner = {name: of.low if isinstance(of, Range) else of.values[0] for name, of in self.space.vary.items()}
        return self.trial(corner, self.seed)

    def made(self, settings: Mapping[str, Any], name: str) -> bool:
        """Whether a trial with these settings and this name is one of the search."""
        return settings.keys() == self.space.vary.keys() and self.trial(settings, self.seed).name == name


def given(config: SweepConfig) -> dict[str, Any]:
    """The settings that the command line names, by dotted name."""
    values: dict[str, Any] = {"preset": config.preset}
    for part in PARTS:
        values |= flatten(to_dict(getattr(config, part)), f"{part}.")
    return {name: values[name] for name in config.given}


def known_trials(out: Location) -> dict[str, str]:
    """Names of the trials that earlier commands began, by digest: what two spaces share has the name of the first."""
    names = [*(out / RUNS).list(), *(name.removesuffix(".json") for name in (out / RESULTS).list())]
    return {name.rpartition("-")[2]: name for name in names}


def rounded(value: float, of: Range) -> float | int:
    """To a whole number where that is wanted, else to four digits, inside the range."""
    value = min(max(float(f"{value:.4g}"), of.low), of.high)
    return round(value) if of.whole else value


def _absolute(weights: str | None) -> str | None:
    """A file's path from anywhere; a name of torchvision's as it is."""
    return locate(weights).url if weights and Path(weights).exists() else weights


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def _slug(varied: Mapping[str, Any]) -> str:
    parts = [
        brief(value) if name == "preset" else f"{name.split('.')[-1]}-{brief(value)}"
        for name, value in varied.items()
        if name != "weights"
    ]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts) or "default")[:SLUG].strip("-.")


def brief(value: Any) -> str:
    """A setting's value for a name."""
    return f"{value:g}" if isinstance(value, float) else str(value)
