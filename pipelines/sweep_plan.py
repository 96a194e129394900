"""What a sweep is going to do: its trials, and which of them stand behind each row of each table."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from msrcnn.config import DataConfig, ModelConfig, SolverConfig, to_dict, without_defaults
from msrcnn.errors import InputError, require
from msrcnn.maskiou_config import MaskIoUConfig
from pipelines.options import EvaluateConfig, TrainConfig, TrainingOptions
from pipelines.storage import Location, locate
from pipelines.sweep_options import FROM_SCRATCH, SweepConfig
from pipelines.tracking import flatten
from pipelines.trial import EVALUATIONS, FUSED, RESULTS, RUNS, Trial
from tune_spaces.definition import Choices, Range, Row, Space
from tune_spaces.heads import heads_of
from tune_spaces.settings import FUSION, base_of, configure, fusion_of
from tune_spaces.space import find_space, space_of

PARTS = ("model", "solver", "data")
ALONE = "trained alone"
BY_CLASS = "class score of the same detections"
SLUG = 60
"""Letters of a trial's name that say what is special about it."""


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
    maker: TrialMaker
    """makes further trials of a Bayesian search"""
    search: Space | None = None
    """the space of a Bayesian search"""

    def examples(self) -> list[Trial]:
        """All trials; of a Bayesian search, which has none yet, one at a corner of its space."""
        if self.search is None:
            return list(self.trials.values())
        corner = {name: of.low if isinstance(of, Range) else of.values[0] for name, of in self.search.vary.items()}
        return [self.maker.trial(corner, self.maker.config.seeds[0])]

    def made(self, settings: Mapping[str, Any], name: str) -> bool:
        """Whether a trial with these settings and this name is one of the Bayesian search."""
        if self.search is None or settings.keys() != self.search.vary.keys():
            return False
        return self.maker.trial(settings, self.maker.config.seeds[0]).name == name


class TrialMaker:
    """Turns settings into trials.

    Settings come from, the last first: what varies, the command line, the space's [fixed], the preset.

    Args:
        fixed: of the space.
        space: of a Bayesian search, for those who make its trials.
    """

    def __init__(self, config: SweepConfig, fixed: Mapping[str, Any], space: Space | None = None) -> None:
        self.config, self.space = config, space
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
        return self.build(varied, seed, (model, solver, data), settings.get("weights"), fusion_of(settings))

    def suggested(self, found: Mapping[str, Any]) -> Trial:
        """The trial of a Bayesian search with what Tune suggests."""
        assert self.space is not None
        vary = self.space.vary.items()
        settings = {n: rounded(found[n], of) if isinstance(of, Range) else found[n] for n, of in vary}
        return self.trial(settings, self.config.seeds[0])

    def build(
        self, varied: Mapping[str, Any], seed: int, parts: tuple[ModelConfig, SolverConfig, DataConfig],
        weights: str | None, fusion: tuple[float, float] = (1.0, 1.0),
    ) -> Trial:  # fmt: skip
        """A trial from its configuration.

        Args:
            varied: what is special about it.
            parts: model, solver, data.
        """
        config, out = self.config, locate(self.config.out)
        model, solver, data = parts
        solver = replace(solver, seed=seed)
        digest = _digest([*map(without_defaults, (model, solver, data)), weights, fusion])
        name = self.known.get(digest) or f"{_slug(varied)}-seed{seed}-{digest}"
        common = {f.name: getattr(config, f.name) for f in fields(TrainingOptions)}
        validation = locate(config.validation).url  # a trial's process runs in another folder
        train = TrainConfig(
            **{**common, "model": model, "solver": solver, "data": data}, shards=locate(config.shards).url,
            run=(out / RUNS / name).url, weights=_absolute(weights), register="",
            validation=validation if config.asha else None,
        )  # fmt: skip
        evaluate = EvaluateConfig(
            (out / RUNS / name).url, validation, (out / EVALUATIONS / name).url, gpu=config.gpu, figures=False,
            tracking=config.tracking, experiment=config.experiment, address=config.address,
        )  # fmt: skip
        test_dev = None if config.test_dev is None else locate(config.test_dev).url
        return Trial(name, digest, dict(varied), train, evaluate, fusion, test_dev)


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
        return Plan((Planned(spaces[0], ()),), {}, TrialMaker(config, spaces[0].fixed, spaces[0]), spaces[0])
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
    return Plan(tuple(tables), {trial.name: trial for trial in trials.values()}, TrialMaker(config, {}))


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
    if config.asha and any(name in FUSION for name in spaces[0].vary):
        raise InputError(f"--asha: it sees mask AP by class score x MaskIoU, and {spaces[0].name} varies fusion.*; "
                         "leave it out")  # fmt: skip
    if varied and spaces[0].search == "bayes" and find_spec("optuna") is None:
        raise InputError("--search bayes: optuna is not installed; `pip install msrcnn[optuna]`, or take random")
    for space in spaces:
        unknown = [c for c in space.columns if not c.startswith("box ") and c not in FUSED]
        if unknown and any(name in FUSION for name in space.vary):
            raise InputError(f"{space.name}: columns {', '.join(unknown)} are not computed where fusion.* varies; "
                             "leave them out")  # fmt: skip
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
        yield Row(", ".join(f"{name.split('.')[-1]} {_brief(value)}" for name, value in varied.items()), varied)


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


def rounded(value: float, of: Range) -> float | int:
    """To a whole number where that is wanted, else to four digits, inside the range."""
    value = min(max(float(f"{value:.4g}"), of.low), of.high)
    return round(value) if of.whole else value


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
    return Plan(tuple(tables), {trial.name: trial for trial in made}, maker)


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


def _absolute(weights: str | None) -> str | None:
    """A file's path from anywhere; a name of torchvision's as it is."""
    return locate(weights).url if weights and Path(weights).exists() else weights


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def _slug(varied: Mapping[str, Any]) -> str:
    parts = [
        _brief(value) if name == "preset" else f"{name.split('.')[-1]}-{_brief(value)}"
        for name, value in varied.items()
        if name != "weights"
    ]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts) or "default")[:SLUG].strip("-.")


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
