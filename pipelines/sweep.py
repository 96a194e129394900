"""`msrcnn sweep`: the trials of a space of settings, as many at a time as the cluster holds, and the table of them.

OUT/.sweep.json                           data sets and MLflow run
OUT/runs, evaluations, results, settings, test_dev, logs   of the trials (`pipelines.trial`)
OUT/NAMES.md, NAMES.json                  the report, named by the spaces in it
OUT/NAME-gain, NAME-parallel .png, .svg   figures of a space

What is in `results` is finished, so that the same command, after any kill, does only what is missing. More seeds, or a
space that shares trials with an earlier one, go into the same folder.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from cluster.session import connect
from msrcnn.config import difference
from msrcnn.errors import InputError
from pipelines.evaluate import other_categories
from pipelines.manifest import Manifest, read_manifest
from pipelines.mlflow_errors import reason
from pipelines.progress import duration
from pipelines.run_directory import check_same
from pipelines.run_directory import read_record as read_run
from pipelines.storage import Location, exclusively, locate, on_disk
from pipelines.sweep_options import SweepConfig
from pipelines.sweep_outcomes import tables_of
from pipelines.sweep_places import check_tracking, places
from pipelines.sweep_plan import Plan, make_plan, report_names
from pipelines.sweep_plots import write_figures
from pipelines.sweep_results import TableResult
from pipelines.sweep_table import lines, write_report
from pipelines.sweep_tune import run_trials
from pipelines.text_tables import counted
from pipelines.tracking import Tracker, resolved, status_of
from pipelines.train_setup import prepare
from pipelines.trial import EPOCH, RUNS, read_result

SWEEP = ".sweep.json"
STOPPED, FAILED = "sweep.stopped", "sweep.failed"
"""Tags of trials' runs that say why they ended."""
REPORT = "sweep"
"""In MLflow, the folder of the report's files."""


@dataclass(frozen=True)
class SweepRecord:
    """What the folder of a sweep says about itself."""

    datasets: dict[str, str]
    """fingerprints of the shards that are trained and evaluated on"""
    mlflow_run: str
    mlflow_address: str


@dataclass(frozen=True)
class SweepReport:
    """What came of a sweep.

    Attributes:
        tables: one a space.
        failures: why trials failed, by name; the same command tries them again.
    """

    tables: tuple[TableResult, ...]
    failures: dict[str, str]


def sweep_all(config: SweepConfig) -> int:
    """`msrcnn sweep`: 1 if a trial failed."""
    return int(bool(sweep(config).failures))


def sweep(config: SweepConfig, log: Callable[[str], None] = print) -> SweepReport:
    """Runs what is missing of a sweep and reports.

    Raises:
        InputError: a space, a setting, the data or the folder cannot be used, or the cluster is too small; said before
            anything starts.
    """
    began, out = time.monotonic(), locate(config.out)
    record = read_record(out)
    config = replace(config, tracking=resolved(config.tracking or (record.mlflow_address if record else None)))
    plan = make_plan(config)
    manifest, validation = read_manifest(config.shards), read_manifest(config.validation)
    check_trials(plan, manifest)
    for place, other in ((config.validation, validation), (config.test_dev, None)):
        if place is not None:
            check_categories(manifest, other or read_manifest(place), config.shards, place)
    datasets = {"shards": manifest.fingerprint, "validation": validation.fingerprint}
    if record is not None and (changed := difference(record.datasets, datasets)):
        raise InputError(f"{out}: holds a sweep on other shards ({'; '.join(changed)}); choose another --out")
    if record is None and out.list():
        raise InputError(f"{out}: neither empty nor the folder of a sweep; choose another --out")
    out.make_folder()
    with exclusively(out, "sweeping into"), connect(config.address, dashboard=True):
        concurrent = places(config, plan)
        check_tracking(resolved(config.tracking))
        tracker = parent_run(config, out, record, datasets)
        try:
            failures = run_trials(plan, config, out, tracker.run_id, concurrent, log)
            tables = tables_of(config, plan, out, failures)
            files = report(out, config, plan, tables)
        except BaseException as error:
            with suppress(Exception):  # a server that is gone must not hide why the sweep ends
                close_trials(out, tracker, {})
            tracker.close(status_of(error))
            raise
        for table in tables:
            for line in lines(table):
                log(line)
        try:
            close_trials(out, tracker, failures)
            tell(tracker, config, tables, files)
            tracker.end()
        except Exception as error:  # all of it is in the folder
            log(f"warning: MLflow at {tracker.shown} does not have the report ({reason(error)}); the same command "
                "again sends it")  # fmt: skip
    log(f"swept in {duration(time.monotonic() - began)}: {out}")
    if failures:
        log(f"{counted(len(failures), 'trial')} failed; the same command tries again")
    return SweepReport(tables, failures)


def check_trials(plan: Plan, manifest: Manifest) -> None:
    """Raises InputError, naming the trial, where one could not train on these shards, or was begun with other settings:
    a default of an earlier version, for names tell of other values than defaults alone."""
    for trial in plan.examples():
        try:
            _, settings = prepare(trial.train, manifest)
            run = locate(trial.train.run)
            if (record := read_run(run)) is not None:
                check_same(run, record, settings, "--out")
        except InputError as error:
            raise InputError(f"trial {trial.name}: {error}") from None


def report(out: Location, config: SweepConfig, plan: Plan, tables: Sequence[TableResult]) -> list[Location]:
    """Writes the tables, and a figure or two of each; the files."""
    names = report_names(config)
    files = list(write_report(out, "-".join(names), tables))
    for name, planned, table in zip(names, plan.tables, tables, strict=True):
        files += write_figures(out, name, table, planned.space.vary)
    return files


def check_categories(manifest: Manifest, other: Manifest, shards: object, place: object) -> None:
    """Raises InputError where a model of these shards could not be evaluated on others."""
    if wrong := other_categories([c.name for c in manifest.categories], other):
        raise InputError(f"{place}: its categories are not those of {shards} ({wrong})")


def read_record(out: Location) -> SweepRecord | None:
    """What the folder says about itself, or None where it says nothing.

    Raises:
        InputError: the record is damaged.
    """
    place = out / SWEEP
    if place.size() is None:
        return None
    try:
        return SweepRecord(**json.loads(place.read()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{place}: not a sweep's record ({error}); choose another --out") from None


def parent_run(config: SweepConfig, out: Location, record: SweepRecord | None, datasets: dict[str, str]) -> Tracker:
    """The MLflow run that the trials' runs are shown under, new or continued."""
    if record is not None:
        tracker = Tracker(config.tracking, config.experiment, record.mlflow_run)
        try:
            tracker.reopen()
        except Exception as error:
            began_at = Tracker(record.mlflow_address, "", record.mlflow_run).shown
            raise InputError(f"MLflow at {tracker.shown}: {reason(error)}; the sweep began with {began_at}, give that, "
                             "or another --out") from None  # fmt: skip
        return tracker
    tracker = Tracker(config.tracking, config.experiment, None, f"sweep {' '.join(config.spaces or config.vary)}")
    record = SweepRecord(datasets, tracker.run_id, tracker.address)
    (out / SWEEP).write_json(asdict(record))
    return tracker


def close_trials(out: Location, parent: Tracker, failures: Mapping[str, str]) -> None:
    """Leaves no trial's run open in MLflow, and marks those that were stopped or failed."""
    for name in (out / RUNS).list():
        run = read_run(out / RUNS / name)
        if run is None:
            continue
        tracker, found = Tracker(run.mlflow_address, "", run.mlflow_run), read_result(out, name)
        if found is not None and found.get("stopped"):
            tracker.tags({STOPPED: f"after {counted(found[EPOCH], 'epoch')}"})
            tracker.end("KILLED")
        elif name in failures:
            tracker.tags({FAILED: failures[name]})
            tracker.end("FAILED")
        else:
            for tag in (STOPPED, FAILED):
                with suppress(Exception):  # most have none
                    tracker.client.delete_tag(tracker.run_id, tag)
            tracker.end("FINISHED" if found is not None else "KILLED")
    for left in parent.children("RUNNING"):  # of processes killed before they could note their run
        parent.client.set_terminated(left, "KILLED")


def tell(tracker: Tracker, config: SweepConfig, tables: Sequence[TableResult], files: Sequence[Location]) -> None:
    """The sweep's own run in MLflow gets its options, every row's mean, and the report."""
    tracker.tags({
        "sweep.spaces": " ".join(config.spaces or config.vary), "sweep.seeds": " ".join(map(str, config.seeds)),
        "sweep.many_heads": config.many_heads, "sweep.asha": config.asha,
    })  # fmt: skip
    for table in tables:
        tracker.metrics({
            f"{legal(table.title)}/{legal(row.name)}/{column}": row.ours(column).mean
            for row in table.rows for column in table.columns
        })  # fmt: skip
    for file in files:
        with on_disk(file) as path:
            tracker.artifact(path, REPORT)


def legal(text: str) -> str:
    """As a name in MLflow."""
    return re.sub(r"[^A-Za-z0-9_. -]+", " ", text).strip()
