"""The best trial of a search: where its model is, and the command that trains it anew."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from pipelines.options import TrainingOptions
from pipelines.storage import locate
from pipelines.sweep_options import SweepConfig
from pipelines.sweep_results import Best, TableResult
from pipelines.sweep_trials import PARTS, TrialMaker
from pipelines.trial import RUNS
from tune_spaces.definition import Space
from tune_spaces.settings import short

ELSEWHERE = ("preset", *PARTS, "tracking", "experiment", "address")
"""Options of trainings that are settings of the trial, or say nothing about the model."""
RUN = "runs/best"


def best_of(config: SweepConfig, space: Space, table: TableResult) -> Best | None:
    """The first complete row of a search's table whose rows stand best first; None where none has a number.

    Args:
        config: of the sweep.
        space: what varied.
        table: its rows.
    """
    column = table.columns[0]
    row = next((row for row in table.rows if row.settings and not row.state), None)  # one that was stopped has no model
    if row is None or not math.isfinite(row.ours(column).mean):
        return None
    maker = TrialMaker(config, space.fixed)
    trial, settings = maker.trial(row.settings, config.seeds[0]), maker.settings(row.settings)
    text = (f"The best: {short(row.settings)}, {column} {row.ours(column).mean:.1f}, chosen on the images that it was "
            f"measured on. Its model is in {locate(config.out) / RUNS / trial.name}. To train it anew, perhaps for "
            "longer:")  # fmt: skip
    return Best(text, command_of(config, settings))


def command_of(config: SweepConfig, settings: Mapping[str, Any]) -> str:
    """The `msrcnn train` of a trial with these settings."""
    given: dict[str, Any] = {"shards": config.shards, "run": RUN}
    given |= {name: value for name, value in settings.items() if name != "solver.seed"}
    if seed := config.seeds[0]:
        given["solver.seed"] = seed
    for option in fields(TrainingOptions):
        if option.name not in ELSEWHERE and (value := getattr(config, option.name)) != option.default:
            given[option.name] = value
    return shlex.join(["msrcnn", "train", *(word for name, value in given.items() for word in _words(name, value))])


def _words(name: str, value: Any) -> Iterator[str]:
    """An option and its value as the command line has them."""
    group, dot, field = name.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        yield f"--{group}{dot}{'' if value else 'no-'}{field}"
    elif isinstance(value, (tuple, list)) and value and isinstance(value[0], (tuple, list)):
        for number, part in enumerate(value):
            yield from _words(f"{name}.{number}", part)
    else:
        yield f"--{group}{dot}{field}"
        yield from map(str, value if isinstance(value, (tuple, list)) else (value,))
