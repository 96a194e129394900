"""The command line: one verb a stage, its dataclass as options. Answers `--help` without importing torch or Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msrcnn import __version__
from msrcnn.data.shapes_config import ShapesConfig
from msrcnn.errors import InputError
from msrcnn.presets import find_preset

INTERRUPTED, FAILED = 130, 1
PRESET = "r18-fpn"
PRESET_VERBS = {"train": ("shards", "run"), "sweep": ("spaces", "shards", "validation", "out")}
"""Verbs whose settings start from a preset, and their options without a default."""


@dataclass(frozen=True)
class ShapesCommand(ShapesConfig):
    """Write the built-in data set: seeded images of shapes with COCO annotations."""

    out: Path = Path("shapes")
    """folder to make: train/, val/ and annotations/"""


def run_shapes(config: ShapesCommand) -> None:
    """`msrcnn shapes`."""
    from msrcnn.data.shapes import write_shapes

    fields = {name: getattr(config, name) for name in ShapesConfig.__dataclass_fields__}
    write_shapes(ShapesConfig(**fields), config.out)
    print(f"{config.out}: {config.train} training and {config.val} validation images of {config.size} pixels")


def run_shard(config: Any) -> None:
    """`msrcnn shard`, and its `--verify`."""
    from pipelines.options import VerifyConfig

    if isinstance(config, VerifyConfig):
        from pipelines.verify import verify

        verify(config)
        return
    from pipelines.shard import shard

    report = shard(config)
    print(f"{report.out}: {report.rows} images, {report.instances} instances in {report.shards} shards, "
          f"{report.bytes / 1e6:.1f} MB, {report.seconds:.0f} s")  # fmt: skip


def run_train(config: Any) -> None:
    """`msrcnn train`."""
    from pipelines.train import train

    train(config)


def run_evaluate(config: Any) -> None:
    """`msrcnn evaluate`."""
    from pipelines.evaluate import evaluate

    evaluate(config)


def run_score(config: Any) -> None:
    """`msrcnn score`."""
    from pipelines.score import score

    score(config)


def run_rescore(config: Any) -> None:
    """`msrcnn rescore`."""
    from pipelines.rescore import rescore

    rescore(config)


def run_export(config: Any) -> None:
    """`msrcnn export`."""
    from pipelines.export import export

    export(config)


def run_sweep(config: Any) -> None:
    """`msrcnn sweep`."""
    from pipelines.sweep import sweep

    if sweep(config).failures:
        sys.exit(FAILED)


def run_data(config: Any) -> None:
    """`msrcnn data`."""
    from pipelines.data import inspect

    inspect(config)


def run_doctor(config: Any) -> None:
    """`msrcnn doctor`."""
    from pipelines.doctor import doctor

    if doctor(config).failed:
        sys.exit(FAILED)


@dataclass(frozen=True)
class Verb:
    """A command: one line about it, its options, what runs it."""

    about: str
    options: Callable[[], type]
    run: Callable[[Any], None]


def _shard_options() -> type:
    from pipelines.options import ShardConfig

    return ShardConfig


def _train_options() -> type:
    from pipelines.options import TrainConfig

    return TrainConfig


def _sweep_options() -> type:
    from pipelines.sweep_options import SweepConfig

    return SweepConfig


def _data_options() -> type:
    from pipelines.options import InspectConfig

    return InspectConfig


def _evaluate_options() -> type:
    from pipelines.options import EvaluateConfig

    return EvaluateConfig


def _score_options() -> type:
    from pipelines.scoring_options import ScoreConfig

    return ScoreConfig


def _rescore_options() -> type:
    from pipelines.scoring_options import RescoreConfig

    return RescoreConfig


def _export_options() -> type:
    from pipelines.scoring_options import ExportConfig

    return ExportConfig


def _doctor_options() -> type:
    from pipelines.doctor_options import DoctorConfig

    return DoctorConfig


VERBS = {
    "shapes": Verb("write the built-in data set, in COCO format", lambda: ShapesCommand, run_shapes),
    "shard": Verb("turn COCO annotations and images into Parquet shards", _shard_options, run_shard),
    "data": Verb("count what is in a folder of shards, draw examples", _data_options, run_data),
    "train": Verb("train on shards; the same command again goes on where it stopped", _train_options, run_train),
    "evaluate": Verb("detect on shards, store the detections, compute every number", _evaluate_options, run_evaluate),
    "score": Verb("compute every number from stored detections or COCO results", _score_options, run_score),
    "rescore": Verb("mask AP of stored detections under other fusions of scores", _rescore_options, run_rescore),
    "sweep": Verb("train and evaluate what a table of the paper varies, print the table", _sweep_options, run_sweep),
    "export": Verb("write stored detections as COCO results", _export_options, run_export),
    "doctor": Verb("check a cluster before a long job: nodes, room, storage, shards", _doctor_options, run_doctor),
}


def usage() -> str:
    """What `msrcnn --help` prints."""
    lines = [f"  {name:<10} {verb.about}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: msrcnn [--debug] VERB [OPTIONS]",
            "",
            "Mask Scoring R-CNN as a distributed pipeline on Ray.",
            "",
            *lines,
            "",
            "msrcnn VERB --help shows its options. --debug shows tracebacks. --version shows the version.",
        ]
    )


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The options of a verb as its dataclass.

    Raises:
        InputError: a value is not accepted, or the preset is unknown.
    """
    import tyro

    options = VERBS[name].options()
    if name == "shard" and "--verify" in arguments:
        from pipelines.options import VerifyConfig

        options = VerifyConfig
        arguments = [a for a in arguments if a != "--verify"]
    # A preset may have switched something on that its option must switch off: --data.flip, --data.no-flip.
    config = () if name in PRESET_VERBS else (tyro.conf.FlagCreatePairsOff,)
    defaults = {}
    if name in PRESET_VERBS:
        preset = find_preset(_value_of("--preset", arguments, PRESET))
        parts = {"model": preset.model, "solver": preset.solver, "data": preset.data}
        defaults["default"] = options(**dict.fromkeys(PRESET_VERBS[name], tyro.MISSING), **parts)
    parsed = tyro.cli(
        options,
        prog=f"msrcnn {name}",
        args=list(arguments),
        config=config,
        **defaults,
    )
    return replace(parsed, given=tuple(_settings_in(arguments))) if name == "sweep" else parsed


def _settings_in(arguments: Sequence[str]) -> list[str]:
    """The settings that options name, by dotted name: preset, model.*, solver.*, data.*."""
    names = []
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
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


def main() -> None:
    """Entry point: exit code 0, 1 if part of the work failed, 2 for input that cannot be used, 130 when interrupted."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(__version__)
        return
    try:
        if arguments[0] not in VERBS:
            raise InputError(f"'{arguments[0]}' is not a command; there are {', '.join(VERBS)}")
        VERBS[arguments[0]].run(parse(arguments[0], arguments[1:]))
    except InputError as error:
        if debug:
            raise
        print(f"msrcnn: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if debug or error.filename is None:
            raise
        print(f"msrcnn: {error.filename}: {error.strerror}; choose another path", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        print("msrcnn: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
