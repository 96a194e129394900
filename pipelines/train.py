"""`msrcnn train`: shards stream through Ray Data into Ray Train workers.

The driver prepares the run directory and the MLflow run, starts `train_loop` on each worker, and meanwhile stores and
shows what they tell. Killed at any moment, the same command goes on from the last checkpoint: the run directory is Ray
Train's own, and everything in it is either whole or absent.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.train import TrainingFailedError

from cluster.reasons import reason
from cluster.session import connect
from msrcnn.config import SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.solver import REFERENCE_BATCH
from msrcnn.weights import save_model
from pipelines.checkpoint_list import checkpoint_name, next_step, tidy
from pipelines.display import Display
from pipelines.job import Job
from pipelines.manifest import Manifest, read_manifest
from pipelines.mlflow_model import log_model
from pipelines.options import TrainConfig
from pipelines.outbox import Outbox
from pipelines.output_folder import beginning
from pipelines.progress import duration
from pipelines.provenance import made
from pipelines.run_directory import (
    BEST,
    INITIAL,
    MODEL,
    TRACKED,
    WORKERS,
    RunRecord,
    check_same,
    read_record,
    wait_for_workers,
    write_record,
)
from pipelines.storage import ASIDE, Location, exclusively, locate, on_disk
from pipelines.tracking import Tracker, status_of
from pipelines.train_setup import check_resources, initial_model, prepare, worker_resources
from pipelines.validation import check_beside, validating
from pipelines.worker_group import Bookkeeper, fit

TRACKING_SECONDS = 60.0
"""How long the end waits for a tracking server that takes nothing; the same command again sends the rest."""
MAX_TRIES = 5
"""Times that Ray Train is started again without getting any further."""
NO_PLACE = "WorkerGroupStartupTimeoutError"
"""Ray Train's internal name for workers that could not be placed in a minute."""


@dataclass(frozen=True)
class TrainReport:
    """What a training left behind."""

    model: Location
    steps: int
    seconds: float


def train(config: TrainConfig, log: Callable[[str], None] | None = None, parent: str | None = None) -> TrainReport:
    """Trains, or goes on with, the run in `config.run`.

    Args:
        log: takes plain lines; printed if absent, with a live line on a terminal.
        parent: MLflow run that a new run is shown under, if it is a sweep's.

    Raises:
        InputError: the shards or the run directory cannot be used, or training cannot go on.
    """
    began = time.monotonic()
    run = locate(config.run)
    manifest = read_manifest(config.shards)
    validation = read_manifest(config.validation) if config.validation is not None else None
    job, settings = prepare(config, manifest)
    with Display(job, log) as display:
        record = read_record(run)
        if record is None and any(name != WORKERS and not ASIDE.fullmatch(name) for name in run.list()):
            raise InputError(f"{run}: neither empty nor a run directory; choose another --run")
        if record is not None:
            check_same(run, record, settings)
        done = record is not None and (run / MODEL).size() is not None and _step(run) >= job.total_steps
        if done and (run / TRACKED).size() is not None:
            display.log(f"{run}: already trained, nothing to do")
            return TrainReport(run / MODEL, job.total_steps, 0.0)
        begun = record is not None and (job.initial is None or (run / INITIAL).size() is not None)
        initial = None if begun else initial_model(config, job, display.log)
        with beginning(run, "--run"):
            run.make_folder()  # fails before anything is noted elsewhere
        with exclusively(run, "training in", "--run"):
            if read_record(run) != record:
                raise InputError(f"{run}: another process has begun a run in it meanwhile; give the same command again")
            tracker = start_run(config, job, settings, record, initial, parent)
            del initial
            with telling(tracker, run, display) as outbox:
                # Of a continued run too: what began it may have been killed before MLflow took them.
                outbox.do("the settings", lambda: tracker.params(settings))
                outbox.do("the number of workers", lambda: tracker.tags({"workers": config.workers}))
                books = Bookkeeper(job, display.record, outbox.record, display.log)
                with suppress(ValueError):  # the list of checkpoints is cut short; once repaired, workers begin with it
                    begins = next_step(run)
                    books.metrics.keep(lambda line: line["step"] <= begins)
                for line in books.metrics.values():  # what MLflow has of them, it takes no second time
                    outbox.record(line)
                if not done:
                    display.log(headline(job, manifest, run))
                    run_workers(config, job, manifest, validation, books, display)
                outbox.do("the model", lambda: hand_over(run, tracker, config))
    seconds = time.monotonic() - began
    best = f"; the best by mask AP on --validation: {run / BEST}" if (run / BEST).size() is not None else ""
    display.log(f"trained in {duration(seconds)}: {run / MODEL}{best}")
    return TrainReport(run / MODEL, job.total_steps, seconds)


def _step(run: Location) -> int:
    try:
        return next_step(run)
    except ValueError:  # a list of checkpoints that `tidy` will repair
        return 0


def headline(job: Job, manifest: Manifest, run: Location) -> str:
    """What is going to be done; a decay that would never come is seen by it, as after --solver.epochs alone."""
    rest = job.rows - job.steps_per_epoch * job.solver.batch
    rate = job.solver.lr * job.solver.batch / REFERENCE_BATCH
    left_out = f" ({rest} images left out of each epoch)" if rest else ""
    return (
        f"training {manifest.name}: {manifest.rows} images, {len(manifest.categories)} categories, "
        f"{job.total_steps} steps of {job.solver.batch} images{left_out} at learning rate {rate:g}, "
        f"{falls(job.solver)}; run directory {run}"
    )


def falls(solver: SolverConfig) -> str:
    """When the learning rate falls, in words."""
    if epochs := [str(epoch) for epoch in solver.decay_epochs if epoch < solver.epochs]:
        return f"falling after epoch {' and '.join(epochs)} of {solver.epochs}"
    late = " ".join(map(str, solver.decay_epochs))
    return (
        f"which never falls (--solver.decay-epochs {late} in {solver.epochs} epochs)" if late else "which never falls"
    )


def start_run(
    config: TrainConfig, job: Job, settings: dict[str, Any], record: RunRecord | None,
    initial: MaskScoringRCNN | None, parent: str | None,
) -> Tracker:  # fmt: skip
    """The MLflow run, new or that of the record; a new run's directory gets its record and initial weights."""
    run = locate(config.run)
    address = config.tracking or (record.mlflow_address if record else None)
    tracker = Tracker(address, config.experiment, record.mlflow_run if record else None, run.name, parent)
    if record is None:
        write_record(run, RunRecord(settings, tracker.run_id, tracker.address, made()))
    if initial is not None:
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder) / INITIAL, initial, job.data, job.categories)
            (locate(folder) / INITIAL).copy_to(run / INITIAL)
    return tracker


@contextmanager
def telling(tracker: Tracker, run: Location, display: Display) -> Iterator[Outbox]:
    """A thread that tells MLflow what is put into it, and at the end how the run ended."""
    outbox = Outbox(tracker, display.log).start()
    outbox.do("that the run goes on", tracker.reopen)
    try:
        yield outbox
    except BaseException as error:
        status = status_of(error)
        outbox.do("how the run ended", lambda: tracker.end(status))
        outbox.close(TRACKING_SECONDS / 6)
        raise
    outbox.do("that the run has ended", tracker.end)
    missing = outbox.close(TRACKING_SECONDS)
    if missing:
        display.log(f"warning: MLflow at {tracker.shown} does not have {', '.join(missing)}; the same command again "
                    "sends it")  # fmt: skip
    else:
        (run / TRACKED).write(b"")


def run_workers(
    config: TrainConfig, job: Job, manifest: Manifest, validation: Manifest | None, books: Bookkeeper, display: Display
) -> None:
    """Trains to the last step and leaves the model in the run directory.

    Ray Train replaces workers. Whatever else ends it (its own processes lost, a storage that did not answer) is
    answered by starting it again, as long as training gets on, and for ever where the cluster lacks the nodes.
    """
    run = locate(job.run)
    (run / MODEL).remove()  # of a training that --max-steps ended earlier
    (run / TRACKED).remove()
    reached, tries, first = -1, 0, True
    while True:
        try:
            with connect(config.address):
                if first:  # later a cluster may lack the nodes that it will get again
                    check_resources(config)
                    if validation is not None:
                        check_beside(config, validation)
                first = False
                wait_for_workers(run, display.log)
                tidy(run, display.log)
                with validating(config, job, validation, books, display.log):
                    if next_step(run) < job.total_steps:
                        fit(config, job, manifest, books)
            break
        except (TrainingFailedError, RayError) as error:
            step = _step(run)
            if type(getattr(error, "controller_failure", None)).__name__ == NO_PLACE:
                display.log(f"the cluster has no place for the workers ({worker_resources(config)} each); waiting")
                continue
            reached, tries = (step, 0) if step > reached else (reached, tries + 1)
            if tries == MAX_TRIES:
                raise
            display.log(f"{reason(error)}; Ray Train is started again, from step {step} on")
    step = next_step(run)
    if step < job.total_steps:
        raise RuntimeError(f"{run}: the last checkpoint is at step {step} of {job.total_steps}")
    (run / checkpoint_name(step) / MODEL).copy_to(run / MODEL)  # its presence says that all is done
    tidy(run, display.log)


def hand_over(run: Location, tracker: Tracker, config: TrainConfig) -> None:
    """Gives MLflow and its registry the finished model, and the best where validation chose one."""
    for name, file, ending in (("model", MODEL, ""), ("best", BEST, "-best")):
        if (run / file).size() is not None:
            with on_disk(run / file) as path:
                log_model(tracker, path, name, f"{config.register}{ending}" if config.register else None)
