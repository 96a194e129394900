"""A trial of a sweep: a training and its evaluation, unchanged, as a function that Ray Tune runs.

OUT/runs/NAME          run directory of the training
OUT/evaluations/NAME   detections and numbers
OUT/results/NAME.json  the trial's outcome; its presence means that nothing is left to do
OUT/settings/NAME.json what is special about a trial that was begun

Killed at any moment, the same trial goes on where its training or evaluation was.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from msrcnn.errors import InputError
from pipelines.options import EvaluateConfig, TrainConfig
from pipelines.run_directory import VALIDATION, VALIDATION_AP
from pipelines.scoring import Summary
from pipelines.scoring_options import ExportConfig
from pipelines.storage import Location, locate

RUNS, EVALUATIONS, RESULTS, SETTINGS = "runs", "evaluations", "results", "settings"
TEST_DEV, LOGS = "test_dev", "logs"
LOOK_SECONDS = 5.0
"""How often the numbers of a training's validations are looked for; behind a URL each look is a request."""
AP = "AP"
"""What Tune knows a trial by: mask AP by mask score."""
EPOCH = "epoch"


@dataclass(frozen=True)
class Trial:
    """One training of a sweep and how it is measured.

    Attributes:
        name: of its folders.
        digest: of everything that its numbers follow from but the data sets; the end of its name.
        settings: in which it differs from other trials, dotted names.
        train: with `validation` where Tune may stop it early.
        test_dev: shards to write an archive for COCO's server from.
    """

    name: str
    digest: str
    settings: Mapping[str, Any]
    train: TrainConfig
    evaluate: EvaluateConfig
    test_dev: str | None = None


def result_file(out: Location, name: str) -> Location:
    """Of a trial in the folder of its sweep."""
    return out / RESULTS / f"{name}.json"


def read_result(out: Location, name: str) -> dict[str, Any] | None:
    """A trial's outcome, or None where it has none yet.

    Raises:
        InputError: the file is damaged.
    """
    place = result_file(out, name)
    if place.size() is None:
        return None
    try:
        return dict(json.loads(place.read()))
    except ValueError as error:
        raise InputError(f"{place}: damaged ({error}); delete it, and the same command computes it again") from None


def write_result(out: Location, name: str, value: Mapping[str, Any]) -> None:
    """Stores a trial's outcome."""
    (out / RESULTS).make_folder()
    result_file(out, name).write_json(value)


def outcome(out: Location, trial: Trial, asha: bool) -> dict[str, Any] | None:
    """What a trial came to; None where something is left to do, as for one that was stopped where nobody stops trials.

    Raises:
        InputError: the file is damaged.
    """
    found = read_result(out, trial.name)
    if found is None or (found.get("stopped") and not asha) or (trial.test_dev is not None and "archive" not in found):
        return None
    return found


def run_trial(trial: Trial, out: Location, parent: str, report: Callable[[dict[str, float]], None]) -> None:
    """Trains, evaluates and stores the outcome; a trial that has one reports it and does nothing.

    Args:
        trial: what to do.
        out: folder of the sweep.
        parent: MLflow run of the sweep.
        report: takes the trial's mask AP so far (`AP`, in percent) and after how many epochs (`EPOCH`). It may not
            return: a scheduler ends trials in it.
    """
    done = outcome(out, trial, asha=trial.train.validation is not None)
    if done is None:
        from pipelines.train import train

        log = log_of(out, trial.name)
        (out / SETTINGS).make_folder()
        (out / SETTINGS / f"{trial.name}.json").write(json.dumps(dict(trial.settings)).encode())
        _beside(lambda: train(trial.train, log, parent), locate(trial.train.run), trial.train, report)
        done = _measure(trial, log)
        write_result(out, trial.name, done)
    report({AP: done[AP] if done[AP] is not None else math.nan, EPOCH: done[EPOCH]})


def _beside(work: Callable[[], object], run: Location, config: TrainConfig, report: Callable[..., None]) -> None:
    """Does the work in a thread, and reports the numbers of each validation as it comes.

    Tune ends a trial inside `report`, in this thread; the other ends with the process.
    """
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded, daemon=True, name="training")
    thread.start()
    told = 0
    while thread.is_alive():
        thread.join(LOOK_SECONDS)
        if config.validation is not None:
            new: list[tuple[int, float]] = []
            with suppress(OSError):  # a storage that does not answer: look again
                new = validations(run, config.solver.epochs, told)
            for epoch, ap in new:
                told += 1
                report({AP: ap, EPOCH: epoch})
    if failed:
        raise failed[0]


def validations(run: Location, epochs: int, told: int = 0) -> list[tuple[int, float]]:
    """Epoch and mask AP by mask score, in percent, after each epoch but the last, whose numbers are the outcome.

    Args:
        run: directory of the training.
        epochs: that it has in all.
        told: epochs from the first on that are not asked for.
    """
    names = sorted(name for name in (run / VALIDATION).list() if name.endswith(".json"))
    found = []
    for epoch, name in enumerate(names[: epochs - 1], start=1):
        if epoch > told:
            ap = json.loads((run / VALIDATION / name).read()).get(VALIDATION_AP)
            found.append((epoch, math.nan if ap is None else 100 * ap))
    return found


def _measure(trial: Trial, log: Callable[[str], None]) -> dict[str, Any]:
    """Evaluates a trained model: everything that a table may show of it."""
    from pipelines.evaluate import evaluate
    from pipelines.reporting import mark

    mark(locate(trial.evaluate.out))  # an evaluation that was finished before its trial was is computed from its rows
    summary = evaluate(trial.evaluate, log)
    heads = {"": summary} | summary.heads
    value: dict[str, Any] = {
        "settings": dict(trial.settings),
        "seed": trial.train.solver.seed,
        EPOCH: trial.train.solver.epochs,
        "heads": {name: measured(found) for name, found in heads.items()},
    }
    value[AP] = value["heads"][""]["mask"]["AP"]
    if trial.test_dev is not None:
        value["archive"] = _archive(trial, log)
    return value


def measured(summary: Summary) -> dict[str, dict[str, float | None]]:
    """AP and its kin in percent by ranking, None where they are undefined; and what the head knows."""
    ap, quality = summary.ap, summary.maskiou
    rankings = {"box": ap.box, "class": ap.mask_by_class, "mask": ap.mask_by_mask, "oracle": ap.mask_by_oracle}
    found = {key: {name: _finite(100 * value) for name, value in values.items()} for key, values in rankings.items()}
    found["maskiou"] = {"pearson": _finite(quality.all_detections.maskiou_pearson),
                        "pearson_matched": _finite(quality.matched.maskiou_pearson)}  # fmt: skip
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _archive(trial: Trial, log: Callable[[str], None]) -> str:
    """Detects on images without annotations and writes the archive that COCO's server takes; its path."""
    from pipelines.evaluate import detect_only
    from pipelines.export import export

    assert trial.test_dev is not None
    out = locate(trial.evaluate.out).parent.parent / TEST_DEV / trial.name
    detect_only(replace(trial.evaluate, shards=trial.test_dev, out=out.url), log)
    export(ExportConfig(out.url, trial.test_dev, out.url, test_dev=trial.name), log)
    return str(out / f"detections_test-dev2017_{trial.name}_results.zip")


def log_of(out: Location, name: str) -> Callable[[str], None]:
    """Takes a trial's lines: into OUT/logs/NAME.txt where the folder is local, else into Ray's own logs."""
    if out.local is None:
        return print
    (out / LOGS).make_folder()
    file = out.local / LOGS / f"{name}.txt"

    def log(line: str) -> None:
        with file.open("a") as stream:
            stream.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    return log
