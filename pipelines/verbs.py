"""The verbs, and their options from a command line. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from msrcnn.presets import DEFAULT_PRESET, find_preset


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        about: it in a line.
        options: where its dataclass is, MODULE:NAME; imported only when it is asked for, as the next is.
        run: where the function is that takes the dataclass; an integer that it returns is the exit code.
        preset: the options without a default, where its settings start from a preset.
    """

    about: str
    options: str
    run: str
    preset: tuple[str, ...] = ()


VERBS = {
    "shapes": Verb(
        "write the built-in data set, in COCO format", "pipelines.shapes:ShapesCommand", "pipelines.shapes:shapes"
    ),
    "shard": Verb(
        "turn COCO annotations and images into Parquet shards", "pipelines.options:ShardConfig",
        "pipelines.shard:shard_or_verify",
    ),
    "data": Verb(
        "count what is in a folder of shards, draw examples", "pipelines.options:InspectConfig",
        "pipelines.data:inspect",
    ),
    "train": Verb(
        "train on shards; run again after an interruption, it resumes", "pipelines.options:TrainConfig",
        "pipelines.train:train", ("shards", "run"),
    ),
    "evaluate": Verb(
        "detect on shards, store the detections, compute every number", "pipelines.options:EvaluateConfig",
        "pipelines.evaluate:evaluate_once",
    ),
    "score": Verb(
        "compute every number from stored detections or COCO results", "pipelines.scoring_options:ScoreConfig",
        "pipelines.score:score_once",
    ),
    "rescore": Verb(
        "mask AP of stored detections under other fusions of scores", "pipelines.scoring_options:RescoreConfig",
        "pipelines.rescore:rescore",
    ),
    "predict": Verb(
        "detect in images and videos: overlays, rows, COCO results", "pipelines.predict_options:PredictConfig",
        "pipelines.predict:predict",
    ),
    "sweep": Verb(
        "train and evaluate what a table of the paper varies, print the table", "pipelines.sweep_options:SweepConfig",
        "pipelines.sweep:sweep_all", ("shards", "validation", "out"),
    ),
    "study": Verb(
        "is the mask score better than the class score, and what is better still: seeds, tables, intervals",
        "pipelines.study_options:StudyConfig", "pipelines.study:study",
    ),
    "report": Verb(
        "write one HTML page about evaluations: numbers, curves, categories, pictures",
        "pipelines.report_options:ReportConfig", "pipelines.report.command:report",
    ),
    "compare": Verb(
        "by how much two evaluations differ, and whether that may be chance", "pipelines.compare_options:CompareConfig",
        "pipelines.compare:compare",
    ),
    "export": Verb(
        "write stored detections as COCO results", "pipelines.scoring_options:ExportConfig", "pipelines.export:export"
    ),
    "serve": Verb(
        "answer images sent over HTTP with their detections", "pipelines.serving_options:ServeConfig",
        "pipelines.serve:serve",
    ),
    "doctor": Verb(
        "check a cluster before a long job: nodes, room, storage, shards", "pipelines.doctor_options:DoctorConfig",
        "pipelines.doctor:doctor_exit",
    ),
    "submit": Verb(
        "run any of the above on a Ray cluster, and follow it", "pipelines.submit_options:SubmitConfig",
        "pipelines.submit:submit",
    ),
    "jobs": Verb("list the jobs of a cluster", "pipelines.submit_options:JobsConfig", "pipelines.jobs:jobs"),
    "logs": Verb("print what a job prints", "pipelines.submit_options:LogsConfig", "pipelines.jobs:logs"),
    "stop": Verb("stop a job", "pipelines.submit_options:StopConfig", "pipelines.jobs:stop"),
    "context": Verb(
        "keep a cluster's address for the four above", "pipelines.submit_options:ContextConfig",
        "pipelines.jobs:context",
    ),
}  # fmt: skip

OF_A_CLUSTER = ("submit", "jobs", "logs", "stop", "context")
"""The verbs that talk about a cluster, and so are no jobs themselves."""


def resolve(place: str) -> Any:
    """The object that MODULE:NAME means."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The options of a verb as its dataclass.

    Raises:
        InputError: an option is unknown or missing, its value is not accepted, or the preset is unknown.
        SystemExit: help was asked for and has been printed.
    """
    import tyro

    from pipelines.option_names import check_names, in_one_line

    verb = VERBS[name]
    options = resolve(verb.options)
    given, arguments = tuple(arguments), list(arguments)
    if name == "submit":
        arguments = arguments[: command_at(arguments)]
    if name == "shard" and "--verify" in arguments:
        from pipelines.options import VerifyConfig

        options = VerifyConfig
        arguments.remove("--verify")
    check_names(f"msrcnn {name}", options, arguments)
    # A preset may have switched something on that its option must switch off: --data.flip, --data.no-flip.
    config = () if verb.preset else (tyro.conf.FlagCreatePairsOff,)
    defaults = {}
    if verb.preset:
        preset = find_preset(_value_of("--preset", arguments, DEFAULT_PRESET))
        parts = {"model": preset.model, "solver": preset.solver, "data": preset.data}
        defaults["default"] = options(**dict.fromkeys(verb.preset, tyro.MISSING), **parts)
    command = f"msrcnn {name}"
    parsed = in_one_line(command, lambda: tyro.cli(options, prog=command, args=arguments, config=config, **defaults))
    if name == "submit":
        return replace(parsed, command=given[len(arguments) :])
    return replace(parsed, given=tuple(_settings_in(given))) if name == "sweep" else parsed


def command_at(arguments: Sequence[str]) -> int:
    """Where in the arguments of `submit` the command begins that is to be run: at the first verb."""
    return next((i for i, argument in enumerate(arguments) if argument in VERBS), len(arguments))


def run_of(name: str) -> Callable[[Any], object]:
    """What runs a verb."""
    return resolve(VERBS[name].run)


def _settings_in(arguments: Sequence[str]) -> list[str]:
    """The settings that options name, by dotted name: preset, model.*, solver.*, data.*."""
    names = []
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
        name = re.sub(r"\.\d+$", "", name)  # a part of a tuple is given for the whole
        if argument.startswith("--") and (name == "preset" or name.partition(".")[0] in ("model", "solver", "data")):
            group, dot, field = name.rpartition(".")
            names.append(f"{group}{dot}{field.removeprefix('no_')}")
    return names


def _value_of(option: str, arguments: Sequence[str], default: str) -> str:
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
    return default
