"""`msrcnn sweep`: the trials of a space of settings, as many at a time as the cluster holds, and the table of them.

OUT/sweep.json          data sets and MLflow run
OUT/runs, evaluations, results, logs   of the trials (`pipelines.trial`)
OUT/tune                Ray Tune's own state
OUT/NAME.md, NAME.json, NAME-*.png, .svg   the report of each space

What is in `results` is finished, so that the same command, after any kill, does only what is missing. More seeds, or a
space that shares trials with an earlier one, go into the same folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray

from cluster.session import connect
from msrcnn.config import difference
from msrcnn.errors import InputError
from pipelines.manifest import Manifest, read_manifest
from pipelines.options import TrainConfig
from pipelines.progress import duration
from pipelines.reading import READER_CPUS, READERS
from pipelines.storage import Location, exclusively, locate
from pipelines.sweep_options import SweepConfig
from pipelines.sweep_plan import Plan, make_plan
from pipelines.sweep_results import outcomes, tables_of
from pipelines.sweep_table import TableResult, table_text, write_report
from pipelines.sweep_tune import run_trials
from pipelines.tracking import Tracker
from pipelines.train_setup import check_resources, prepare, worker_resources

SWEEP = "sweep.json"
TRIAL_CPUS = 0.1
"""Of the process that a trial's training and evaluation are driven from."""


@dataclass(frozen=True)
class SweepRecord:
    """What the folder of a sweep says about itself."""

    datasets: dict[str, str]
    """fingerprints of the shards that are trained and evaluated on"""
    mlflow_run: str
    mlflow_address: str


def sweep(config: SweepConfig, log: Callable[[str], None] = print) -> tuple[TableResult, ...]:
    """Runs what is missing of a sweep and reports.

    Raises:
        InputError: a space, a setting, the data or the folder cannot be used, or the cluster is too small; said before
            anything starts.
    """
    began, out = time.monotonic(), locate(config.out)
    plan = make_plan(config)
    manifest, validation = read_manifest(config.shards), read_manifest(config.validation)
    check_trials(plan, manifest)
    datasets = {"shards": manifest.fingerprint, "validation": validation.fingerprint}
    record = read_record(out)
    if record is not None and (changed := difference(record.datasets, datasets)):
        raise InputError(f"{out}: holds a sweep on other shards ({'; '.join(changed)}); choose another --out")
    if record is None and out.list():
        raise InputError(f"{out}: neither empty nor the folder of a sweep; choose another --out")
    out.make_folder()
    with exclusively(out, "sweeping into"), connect(config.address, dashboard=config.asha):
        concurrent = places(config, plan)
        tracker = parent_run(config, out, record, datasets)
        try:
            failures = run_trials(plan, config, out, tracker.run_id, concurrent, log)
            tables = tables_of(plan, out, failures)
            files = write_report(out, tables)
            close_trials(plan, out, tracker, failures)
            tell(tracker, plan, tables)
            for file in files:
                if file.local is not None:
                    tracker.artifact(file.local, "sweep")
        except BaseException as error:
            tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        tracker.close()
    for table in tables:
        log(table_text(table))
    log(f"swept in {duration(time.monotonic() - began)}: {out}")
    return tables
