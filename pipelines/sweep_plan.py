"""What a sweep is going to do: its trials, and which of them stand behind each row of each table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from msrcnn.errors import InputError, require
from msrcnn.maskiou_config import MaskIoUConfig
from pipelines.storage import locate
from pipelines.sweep_options import SweepConfig
from pipelines.sweep_trials import SearchTrials, TrialMaker, brief, given, rounded
from pipelines.trial import Trial
from tune_spaces.definition import Choices, Range, Row, Space
from tune_spaces.heads import heads_of
from tune_spaces.settings import base_of, configure
from tune_spaces.space import find_space, space_of

ALONE = "trained alone"
BY_CLASS = "class score of the same detections"


@dataclass(frozen=True)
class Shown:
    """A line of a table, and what stands behind it.

    Attributes:
        trials: by name, one a seed; none for what is only published.
        head: of the trials' model, as `ModelConfig.heads` names it; empty: the main one.
        how: it came about, for the reader.
        settings: in which it differs, dotted names.
    """

    row: Row
    trials: tuple[str, ...]
    head: str
    how: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Planned:
    """A space, and the lines of its table; no lines where a Bayesian search will find them."""

    space: Space
    rows: tuple[Shown, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before a trial runs."""

    tables: tuple[Planned, ...]
    trials: dict[str, Trial]
    search: SearchTrials | None = None
    """makes those of a Bayesian search, of which there are none yet"""

    def examples(self) -> list[Trial]:
        """All trials; of a Bayesian search one that it might make."""
        return list(self.trials.values()) if self.search is None else [self.search.example()]


def make_plan(config: SweepConfig) -> Plan:
    """Reads the spaces and settles every trial that can be.

    Raises:
        InputError: a space is unknown or has a mistake, a setting is not accepted, or options contradict each other.
    """
    require(bool(config.spaces or config.vary), "the space", "nothing",
            "one or more names or TOML files, as table4, or --vary SETTING=VALUE,VALUE,...")  # fmt: skip
    spaces = [find_space(name) for name in config.spaces] or [space_of(config.vary)]
    names = report_names(config)
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"{twice[0]}: two spaces of this name; leave one out or give its file another name")
    spaces = [_searched(config, space) for space in spaces]
    _check(config, spaces)
    if config.many_heads:
        return _many_heads(config, spaces)
    if spaces[0].vary and spaces[0].search == "bayes":
        return Plan((Planned(spaces[0], ()),), {}, SearchTrials(config, spaces[0]))
    tables: list[Planned] = []
    trials: dict[str, Trial] = {}  # by digest
    for space in spaces:
        maker = TrialMaker(config, space.fixed)
        shown = []
        for row in _rows(config, space):
            made = [] if row.only_published else [maker.trial(row.settings, seed) for seed in config.seeds]
            # Rows of one table, or of two, that come to the same are one trial.
            of_row = tuple(trials.setdefault(trial.digest, trial).name for trial in made)
            shown.append(Shown(row, of_row, "", "published" if row.only_published else ALONE, row.settings))
        tables.append(Planned(space, tuple(shown)))
    return Plan(tuple(tables), {trial.name: trial for trial in trials.values()})


def report_names(config: SweepConfig) -> list[str]:
    """Of the files of each space's report."""
    spaces = [Path(space).stem for space in config.spaces] or [space_of(config.vary).name]
    return [re.sub(r"[^A-Za-z0-9.]+", "-", space) for space in spaces]


def _searched(config: SweepConfig, space: Space) -> Space:
    """The space with the command line's way of searching."""
    if config.search is None and config.samples is None:
        return space
    if not space.vary:
        raise InputError(f"--search and --samples: {space.name} has rows, and each is one trial; leave them out")
    search = config.search or space.search
    samples = 0 if search == "grid" else config.samples or space.samples
    try:
        return replace(space, search=search, samples=samples)
    except InputError as error:
        raise InputError(f"{space.name} with --search {search}: {error}") from None


def _check(config: SweepConfig, spaces: Sequence[Space]) -> None:
    varied = [space.name for space in spaces if space.vary]
    if varied and len(spaces) > 1:
        raise InputError(f"{varied[0]} varies settings; give it alone")
    if varied and spaces[0].search != "grid" and len(config.seeds) > 1:
        raise InputError("--seeds: a random or Bayesian search draws new settings instead; give one")
    if config.asha and not varied:
        raise InputError("--asha: it would leave rows of a table without numbers; leave it out")
    if varied and spaces[0].search == "bayes" and find_spec("optuna") is None:
        raise InputError("--search bayes: optuna is not installed; `pip install optuna`, or take random")
    for space in spaces:
        if space.archive and config.test_dev is None:
            raise InputError(f"{space.name} makes archives for COCO's server; give --test-dev the shards of its images")
        taken = {name for row in space.rows for name in row.settings} | {*space.vary}
        for name in given(config):
            if name in taken:
                raise InputError(f"--{name.replace('_', '-')}: {space.name} varies it; leave it out")


def _rows(config: SweepConfig, space: Space) -> Iterator[Row]:
    """The rows of a table; those of a grid or random search are its combinations."""
    if space.rows:
        yield from space.rows
        return
    combinations = space.combinations() if space.search == "grid" else _draws(config, space)
    for varied in combinations:
        yield Row(", ".join(f"{name.split('.')[-1]} {brief(value)}" for name, value in varied.items()), varied)


def _draws(config: SweepConfig, space: Space) -> list[dict[str, Any]]:
    """Independent draws; the seed of the search is that of the training, so the same command draws the same."""
    generator = np.random.default_rng(config.seeds[0])
    draws: list[dict[str, Any]] = []
    for _ in range(20 * space.samples):  # a small space may be drawn empty
        if len(draws) == space.samples:
            break
        drawn = {name: draw(of, generator) for name, of in space.vary.items()}
        if drawn not in draws:
            draws.append(drawn)
    return draws


def draw(of: Choices | Range, generator: np.random.Generator) -> Any:
    """A value of a setting; numbers with four digits, which is as much as anybody can tell apart."""
    if isinstance(of, Choices):
        return of.values[generator.integers(len(of.values))]
    low, high = (math.log(of.low), math.log(of.high)) if of.log else (of.low, of.high)
    value = generator.uniform(low, high)
    value = math.exp(value) if of.log else value
    return rounded(value, of)


def _many_heads(config: SweepConfig, spaces: Sequence[Space]) -> Plan:
    """One training for the heads of all rows."""
    if "model.heads" in config.given:
        raise InputError("--model.heads: --many-heads takes the heads from the spaces; leave one of them out")
    texts: list[dict[str, str]] = []
    for space in spaces:
        found, reason = heads_of(space, given(config))
        if found is None:
            raise InputError(f"--many-heads: {space.name} cannot share a trunk: {reason}; leave it out")
        texts.append(found)
    if different := next((s.name for s in spaces if s.fixed != spaces[0].fixed), None):
        raise InputError(f"--many-heads: {spaces[0].name} and {different} fix other settings; give them one by one")
    maker = TrialMaker(config, spaces[0].fixed)
    heads = list(dict.fromkeys(text for of in texts for text in of.values()))
    if len(heads) < 2:
        raise InputError("--many-heads: there is one MaskIoU head in all rows; leave it out")
    main = "" if "" in heads else heads[0]
    configs = {text: MaskIoUConfig().variant(text) if text else MaskIoUConfig() for text in heads}
    relative = {text: configs[main].name_of(head) for text, head in configs.items()}
    settings = maker.settings({})
    model, solver, data = configure(base_of(settings), settings)
    model = replace(model, maskiou=configs[main], heads=tuple(name for name in relative.values() if name),
                    trained="maskiou" if config.trunk else model.trained)  # fmt: skip
    weights = _trunk(config.trunk) if config.trunk else settings.get("weights")
    made = [maker.build({"heads": len(heads)}, seed, (model, solver, data), weights) for seed in config.seeds]
    names = tuple(trial.name for trial in made)
    how = f"one of {len(heads)} heads on one trunk"
    notes = (_difference_to_alone(config),)
    tables = []
    for space, of_rows in zip(spaces, texts, strict=True):
        shown = []
        for row in space.rows:
            text = of_rows.get(row.name)
            if row.only_published:
                shown.append(Shown(row, (), "", "published", row.settings))
            elif text is None:
                shown.append(Shown(replace(row, ranked="class"), names, "", BY_CLASS, row.settings))
            else:
                shown.append(Shown(row, names, relative[text], how, row.settings))
        tables.append(Planned(space, tuple(shown), notes))
    return Plan(tuple(tables), {trial.name: trial for trial in made})


def _trunk(place: str) -> str:
    """The model file of a run directory."""
    from pipelines.run_directory import find_model

    return find_model(place)[0].url


def _difference_to_alone(config: SweepConfig) -> str:
    """In which way the numbers differ from those of trainings end to end."""
    if config.trunk:
        trunk = f"The trunk is the finished one of {locate(config.trunk)}; it is not trained any more"
    else:
        trunk = "The trunk is trained as Mask R-CNN, at the same time as the heads"
    return (
        f"{trunk}. All heads see the same RoIs of it, and no gradient of theirs reaches it or another head. Trained "
        "each end to end, as in the paper, a head's loss would also shape the features and masks that it reads; here "
        "boxes and masks are the same in every row, so rows differ by the ranking alone, and Mask R-CNN's row is the "
        "class score of the same detections."
    )
