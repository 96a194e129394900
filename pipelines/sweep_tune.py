"""Ray Tune, as a sweep uses it: a function a trial, several at a time, and schedulers that stop the hopeless."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.execution import class_cache
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from cluster.reasons import reason
from pipelines.progress import duration
from pipelines.storage import Location, locate
from pipelines.sweep_options import SweepConfig
from pipelines.sweep_plan import Plan
from pipelines.sweep_trials import SearchTrials
from pipelines.text_tables import counted
from pipelines.trial import (
    AP,
    EPOCH,
    RESULTS,
    SETTINGS,
    Trial,
    outcome,
    read_result,
    run_trial,
    validations,
    write_result,
)
from tune_spaces.definition import Range, Space
from tune_spaces.settings import typed

TRIAL = "trial"
"""The only parameter of trials that are known beforehand: the name."""
TRIAL_CPUS = 0.1
"""Of the process that drives a trial's training and evaluation, which ask for what they need themselves."""
TRIES = 4
"""Times that a trial is begun whose process is lost again and again; it goes on where it was."""
LOOK_SECONDS = 1.0
NO_LIMIT = 100_000
"""Epochs after which a scheduler would end a trial; trials end by themselves."""
REDUCTION = 3
"""Of ASHA: at each rung a third of the trials goes on."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""Variables that Tune would copy from the driver into what every log of Ray's agents shows; nodes have their own."""
ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep; Tune would return as if it were complete
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files beside MLflow
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Failure(NamedTuple):
    """Why a trial ended without an outcome."""

    reason: str
    lost: bool  # with its process, as when its node is taken away: no fault of its own


def run_trials(
    plan: Plan, config: SweepConfig, out: Location, parent: str, concurrent: int, log: Callable[[str], None]
) -> dict[str, str]:
    """Runs the trials that have no outcome yet; those whose process is lost, with its node perhaps, again.

    Tune's own state is dropped with the run: what is in `out` tells where each trial is, what a Bayesian search has
    seen, and the numbers of the trials that a scheduler compares others with.

    Args:
        parent: MLflow run of the sweep.
        concurrent: trials at a time.

    Returns:
        why trials failed, by name.
    """
    known, missing = _known(plan, config, out)
    done = len(known) - len(missing)
    number = len(plan.trials) if plan.search is None else max(plan.search.space.samples, len(known))
    if done == number:
        log(f"{counted(number, 'trial')}, all done already")
        return {}
    os.environ.update(ENVIRONMENT)
    keep_keys()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are said below, in a line each
    log(f"{counted(number, 'trial')}, {min(number, concurrent)} at a time" + (f"; {done} done already" if done else ""))
    failures: dict[str, Failure] = {}
    held = reservations()
    with watched(out, number, done, log):
        for _ in range(TRIES):
            known, missing = _known(plan, config, out)
            missing = {name: trial for name, trial in missing.items() if name not in failures or failures[name].lost}
            failures = {name: failure for name, failure in failures.items() if not failure.lost}
            if missing:
                scheduler, space = _scheduler(config, known, out), {TRIAL: tune.grid_search([*missing])}
                failures |= _run(_planned_trial, missing, space, out, parent, concurrent, log, scheduler=scheduler)
            if plan.search is not None and len(known) < number:
                seen = _begun(plan.search, out)
                scheduler, search = _scheduler(config, seen, out), _search_algorithm(plan.search, seen, out)
                failures |= _run(_searched_trial, plan.search, {}, out, parent, concurrent, log, scheduler=scheduler,
                                 search_alg=search, num_samples=number - len(known))  # fmt: skip
            if not any(failure.lost for failure in failures.values()):
                break
            give_back(reservations() - held)
    return {name: failure.reason for name, failure in failures.items()}


def _known(plan: Plan, config: SweepConfig, out: Location) -> tuple[dict[str, Trial], dict[str, Trial]]:
    """The trials that are known, of a Bayesian search those that were begun; and of these the ones without outcome."""
    known = plan.trials if plan.search is None else _begun(plan.search, out)
    return dict(known), {name: t for name, t in known.items() if outcome(out, t, config.asha) is None}


def reservations() -> set[str]:
    """The placement groups of this job, by their ids in hexadecimal, whose end is the job's."""
    job = ray.get_runtime_context().get_job_id()
    return {name for name, of in placement_group_table().items() if name.endswith(job) and of["state"] != "REMOVED"}


def give_back(groups: Iterable[str]) -> None:
    """Removes what the workers of lost trials had reserved: Ray Train does so only once they have begun, and where
    there is a dashboard."""
    for name in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def keep_keys() -> None:
    """Keeps the keys of an object store out of the runtime environments of trials."""
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(KEYS)


def _run(
    function: Callable[..., None], trials: Any, space: dict[str, Any], out: Location, parent: str, concurrent: int,
    log: Callable[[str], None], **settings: Any,
) -> dict[str, Failure]:  # fmt: skip
    """One run of Tune; why trials failed, by name."""
    with tempfile.TemporaryDirectory(prefix="msrcnn-tune-") as folder:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(function, trials=trials, out=out, parent=parent), {"CPU": TRIAL_CPUS}
            ),
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, trial_dirname_creator=_folder_of, **settings),
            run_config=tune.RunConfig(name="sweep", storage_path=folder, verbose=0),
        ).fit()
    failures: dict[str, Failure] = {}
    for result in (results[i] for i in range(len(results))):
        found = result.config or {}
        trial = trials.suggested(found) if isinstance(trials, SearchTrials) else trials[found[TRIAL]]
        settled = read_result(out, trial.name) is not None
        if result.error is not None and not settled:
            failure = Failure(reason(result.error), isinstance(result.error, RayActorError))
            failures[trial.name] = failure
            how = "lost its process" if failure.lost else "failed"
            log(f"trial {trial.name} {how}: {failure.reason}")
        elif not settled and result.metrics and AP in result.metrics:  # stopped, and ended before it could say so
            write_result(out, trial.name, stopped(result.metrics, trial.settings))
    return failures


def _begun(search: SearchTrials, out: Location) -> dict[str, Trial]:
    """The trials of a Bayesian search that earlier commands began."""
    found = {}
    for file in sorted((out / SETTINGS).list()):
        name, settings = file.removesuffix(".json"), json.loads((out / SETTINGS / file).read())
        if search.made(settings, name):
            found[name] = search.trial(settings, search.seed)
    return found


def _folder_of(trial: Any) -> str:
    return str(trial.trial_id)


def _scheduler(config: SweepConfig, trials: Mapping[str, Trial], out: Location) -> TrialScheduler:
    """What stops trials; with the numbers of those that earlier commands finished or stopped."""
    if not config.asha:
        return FIFOScheduler()
    scheduler = AsyncHyperBandScheduler(
        time_attr=EPOCH, metric=AP, mode="max", max_t=NO_LIMIT, grace_period=1, reduction_factor=REDUCTION
    )
    (bracket,) = scheduler._brackets  # Tune keeps no scheduler for a later run
    for name, trial in trials.items():
        if read_result(out, name) is not None:
            for epoch, ap in validations(locate(trial.train.run), trial.train.solver.epochs):
                bracket.on_result(cast(Any, SimpleNamespace(trial_id=name)), epoch, ap)
    return scheduler


def _search_algorithm(search: SearchTrials, seen: Mapping[str, Trial], out: Location) -> Searcher:
    """Optuna's, which knows what earlier commands found."""
    from ray.tune.search.optuna import OptunaSearch

    found = {name: read_result(out, name) for name in seen}
    # From JSON, where tuples are lists: Optuna looks its choices up by value.
    known = [({key: typed(key, of) for key, of in seen[name].settings.items()}, value[AP])
             for name, value in found.items() if value and value[AP] is not None]  # fmt: skip
    return OptunaSearch(
        space=_domains(search.space), metric=AP, mode="max", seed=search.seed + len(seen),
        points_to_evaluate=[settings for settings, _ in known] or None,
        evaluated_rewards=[ap for _, ap in known] or None,
    )  # fmt: skip


def _domains(space: Space) -> dict[str, Any]:
    """The space as Tune has it."""
    domains: dict[str, Any] = {}
    for name, of in space.vary.items():
        if isinstance(of, Range):
            if of.whole:
                domains[name] = (tune.lograndint if of.log else tune.randint)(int(of.low), int(of.high) + 1)
            else:
                domains[name] = (tune.loguniform if of.log else tune.uniform)(of.low, of.high)
        else:
            domains[name] = tune.choice(list(of.values))
    return domains


def _planned_trial(found: dict[str, Any], trials: Mapping[str, Trial], out: Location, parent: str) -> None:
    _guarded(trials[found[TRIAL]], out, parent)


def _searched_trial(found: dict[str, Any], trials: SearchTrials, out: Location, parent: str) -> None:
    _guarded(trials.suggested(found), out, parent)


def _guarded(trial: Trial, out: Location, parent: str) -> None:
    """Runs a trial in the process that Tune started for it."""
    last: dict[str, float] = {}

    def report(metrics: dict[str, float]) -> None:
        last.update(metrics)
        tune.report(metrics)

    try:
        run_trial(trial, out, parent, report)
    except SystemExit:  # the scheduler's decision reaches a function inside its report
        if outcome(out, trial, asha=True) is None:
            write_result(out, trial.name, stopped(last, trial.settings))
        raise


def stopped(metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of a trial that a scheduler stopped: the numbers of its last validation."""
    ap = float(metrics[AP])
    return {
        "settings": dict(settings), EPOCH: int(metrics[EPOCH]), "stopped": True, AP: ap if ap == ap else None,
        "heads": {"": {"mask": {"AP": ap if ap == ap else None}}},
    }  # fmt: skip


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
            how = f"stopped after {counted(found[EPOCH], 'epoch')}" if found.get("stopped") else "done"
            log(f"trial {name}: {how}, mask AP {ap}; {done + so_far} of {counted(number, 'trial')}, {duration(spent)}, "
                f"{duration(left)} left")  # fmt: skip

    before = len(seen)

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            with suppress(OSError):  # a storage that does not answer: look again
                look()

    thread = threading.Thread(target=watch, daemon=True, name="sweep")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()
