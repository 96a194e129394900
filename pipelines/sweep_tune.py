"""Ray Tune, as a sweep uses it: a function a trial, several at a time, and schedulers that stop the hopeless."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher

from msrcnn.errors import InputError
from pipelines.progress import duration
from pipelines.storage import Location
from pipelines.sweep_options import SweepConfig
from pipelines.sweep_plan import Plan, TrialMaker, rounded
from pipelines.trial import AP, EPOCH, RESULTS, Trial, epochs, read_result, run_trial, write_result
from tune_spaces.definition import Range, Space

TUNE = "tune"
TRIAL = "trial"
"""The only parameter of trials that are known beforehand: the name."""
TRIAL_CPUS = 0.1
"""Of the process that drives a trial's training and evaluation, which ask for what they need themselves."""
LOOK_SECONDS = 1.0
REDUCTION = 3
"""Of ASHA: at each rung a third of the trials goes on."""
ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep; Tune would return as if it were complete
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files beside MLflow
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_trials(
    plan: Plan, config: SweepConfig, out: Location, parent: str, concurrent: int, log: Callable[[str], None]
) -> dict[str, str]:
    """Runs the trials that have no outcome yet.

    Args:
        parent: MLflow run of the sweep.
        concurrent: trials at a time.

    Returns:
        why trials failed, by name.

    Raises:
        InputError: a Bayesian search without optuna.
    """
    missing = {name: t for name, t in plan.trials.items() if read_result(out, name) is None}
    number = len(plan.trials) if plan.search is None else plan.search.samples
    if plan.search is None and not missing:
        log(f"{number} trials, all of them done already")
        return {}
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are said below, in a line each
    done = number - len(missing) if plan.search is None else 0
    log(f"{number} trials, {concurrent} at a time" + (f"; {done} done already" if done else ""))
    with watched(out, number, done, log):
        results = _tuner(plan, config, out, parent, concurrent, missing).fit()
    failures: dict[str, str] = {}
    for result in (results[i] for i in range(len(results))):
        name = _name_of(plan, config, result.config or {})
        if result.error is not None:
            failures[name] = reason_of(result.error)
            log(f"trial {name} failed: {failures[name]}")
        elif read_result(out, name) is None and result.metrics:  # stopped, and ended before it could say so
            write_result(out, name, stopped(result.metrics, {}))
    return failures


def _tuner(
    plan: Plan, config: SweepConfig, out: Location, parent: str, concurrent: int, missing: Mapping[str, Trial]
) -> tune.Tuner:
    """A Tune run; where its own state matters, the same one as before if it was interrupted."""
    place = out / TUNE / _digest(plan)
    stateful = config.asha or plan.search is not None
    function = _searched_trial if plan.search is not None else _planned_trial
    trials: Any = plan.maker if plan.search is not None else plan.trials
    trainable = tune.with_resources(
        tune.with_parameters(function, trials=trials, seed=config.seeds[0], out=out, parent=parent), {"CPU": TRIAL_CPUS}
    )
    if stateful and tune.Tuner.can_restore(place.path, storage_filesystem=place.filesystem):
        return tune.Tuner.restore(place.path, trainable, storage_filesystem=place.filesystem, resume_errored=True)
    place.remove_folder()
    space = {TRIAL: tune.grid_search(list(missing))} if plan.search is None else _domains(plan.search)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=_search_algorithm(plan.search, config.seeds[0]),
            scheduler=_scheduler(config),
            num_samples=1 if plan.search is None else plan.search.samples,
            max_concurrent_trials=concurrent,
            trial_dirname_creator=_folder_of,
        ),
        run_config=tune.RunConfig(
            name=place.name, storage_path=place.parent.path, storage_filesystem=place.filesystem, verbose=0
        ),
    )


def _digest(plan: Plan) -> str:
    text = repr((sorted(plan.trials), plan.search, plan.maker.fixed))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _folder_of(trial: Any) -> str:
    return str(trial.trial_id)


def _scheduler(config: SweepConfig) -> TrialScheduler:
    if not config.asha:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr=EPOCH, metric=AP, mode="max", max_t=config.solver.epochs + 1, grace_period=1,
        reduction_factor=REDUCTION,
    )  # fmt: skip


def _search_algorithm(space: Space | None, seed: int) -> Searcher | SearchAlgorithm | None:
    if space is None:
        return None
    try:
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric=AP, mode="max", seed=seed)
    except (ImportError, AssertionError):
        raise InputError("--search bayes: optuna is not installed; `pip install msrcnn[optuna]`, or random") from None


def _domains(space: Space) -> dict[str, Any]:
    """The space as Tune has it."""
    domains: dict[str, Any] = {}
    for name, of in space.vary.items():
        if isinstance(of, Range):
            domains[name] = (tune.loguniform if of.log else tune.uniform)(of.low, of.high)
        else:
            domains[name] = tune.choice(list(of.values))
    return domains


def _settings(space: Space, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial of a Bayesian search varies, from what Tune gives it."""
    return {name: rounded(found[name], of) if isinstance(of, Range) else found[name] for name, of in space.vary.items()}


def _name_of(plan: Plan, config: SweepConfig, found: Mapping[str, Any]) -> str:
    if plan.search is None:
        return str(found[TRIAL])
    return plan.maker.trial(_settings(plan.search, found), config.seeds[0]).name


def _planned_trial(found: dict[str, Any], trials: Mapping[str, Trial], seed: int, out: Location, parent: str) -> None:  # noqa: ARG001
    _guarded(trials[found[TRIAL]], out, parent)


def _searched_trial(found: dict[str, Any], trials: TrialMaker, seed: int, out: Location, parent: str) -> None:
    assert trials.space is not None
    _guarded(trials.trial(_settings(trials.space, found), seed), out, parent)


def _guarded(trial: Trial, out: Location, parent: str) -> None:
    """Runs a trial in the process that Tune started for it."""
    last: dict[str, float] = {}

    def report(metrics: dict[str, float]) -> None:
        last.update(metrics)
        tune.report(metrics)

    try:
        run_trial(trial, out, parent, report)
    except SystemExit:  # the scheduler's decision reaches a function inside its report
        if read_result(out, trial.name) is None:
            write_result(out, trial.name, stopped(last, trial.settings))
        raise


def stopped(metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of a trial that a scheduler stopped: the numbers of its last validation."""
    ap = float(metrics[AP])
    return {
        "settings": dict(settings), EPOCH: int(metrics[EPOCH]), "stopped": True, AP: ap if ap == ap else None,
        "heads": {"": {"mask": {"AP": ap if ap == ap else None}}},
    }  # fmt: skip


def reason_of(error: BaseException) -> str:
    """The innermost reason of an error that a trial ended with, in a line."""
    while getattr(error, "cause", None) is not None or error.__cause__ is not None:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


@contextmanager
def watched(out: Location, number: int, done: int, log: Callable[[str], None]) -> Iterator[None]:
    """Says of each trial when it is done, and how long the rest will take."""
    ended, began = threading.Event(), time.monotonic()
    seen = {*(out / RESULTS).list()}

    def look() -> None:
        for file in sorted({*(out / RESULTS).list()} - seen):
            name = file.removesuffix(".json")
            if not file.endswith(".json") or (found := read_result(out, name)) is None:
                continue
            seen.add(file)
            so_far = len(seen) - before
            spent = time.monotonic() - began
            left = spent / so_far * max(0, number - done - so_far)
            ap = "-" if found[AP] is None else f"{found[AP]:.1f}"
            how = f"stopped after {epochs(found[EPOCH])}" if found.get("stopped") else "done"
            log(f"trial {name}: {how}, mask AP {ap}; {done + so_far} of {number} trials, {duration(spent)}, "
                f"{duration(left)} left")  # fmt: skip

    before = len(seen)

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True, name="sweep")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()
