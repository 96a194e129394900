"""`msrcnn train`: shards stream through Ray Data into Ray Train workers.

The driver prepares the run directory and the MLflow run, starts `train_loop` on each worker, and meanwhile prints and
stores what rank 0 reports. The run directory is Ray Train's own, so the same command again goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
import torch
from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.session import connect
from msrcnn.config import to_dict
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.pretrained import load_weights
from msrcnn.weights import save_model
from pipelines.manifest import Manifest, read_manifest, written_aside
from pipelines.options import TrainConfig
from pipelines.progress import Follower, Mailbox, duration
from pipelines.reading import RowGroup, row_groups, training_plan, training_rows
from pipelines.run_directory import (
    INITIAL,
    LOCK,
    METRICS,
    MODEL,
    WORKERS,
    RunRecord,
    check_same,
    drop_records_after,
    locked,
    read_record,
    wait_for_workers,
    write_record,
)
from pipelines.tracking import Tracker
from pipelines.train_loop import POSITION, Job, checkpoint_name, train_loop


@dataclass(frozen=True)
class TrainReport:
    """What a training left behind."""

    model: Path
    steps: int
    seconds: float


def next_step(run: Path) -> int:
    """The step at which Ray Train will resume the run: that of the last checkpoint it has on record, 0 if none."""
    snapshot = run / "checkpoint_manager_snapshot.json"  # Ray Train's own list of committed checkpoints
    if not snapshot.is_file():
        return 0
    latest = json.loads(snapshot.read_text()).get("latest_checkpoint_result")
    if not latest:
        return 0
    return json.loads((run / latest["checkpoint_dir_name"] / POSITION).read_text())["step"]


def remaining_rows(groups: list[RowGroup], job: Job, run: Path, workers: int) -> ray.data.Dataset:
    """The stream of images from the run's last checkpoint on. Called anew whenever a worker group starts."""
    steps = job.steps_per_epoch
    begin = min(next_step(run), job.total_steps - 1)  # Ray Data wants rows even where all steps are done
    epochs, share = -(-job.total_steps // steps), job.solver.batch // workers
    return training_rows(training_plan(groups, job.solver.seed, epochs, steps, workers, share, begin))


def prepare(config: TrainConfig, manifest: Manifest) -> tuple[Job, dict[str, Any]]:
    """The workers' job, but for the mailbox, and the settings by which a run is recognised.

    Raises:
        InputError: the data set is smaller than one step, or layers would be frozen at random values.
    """
    if config.model.trained == "maskiou" and config.weights is None:
        raise InputError("--model.trained maskiou trains the MaskIoU head of a finished detector; give --weights")
    frozen = config.model.norm == "frozen_bn" or config.model.frozen_stages > 0
    if frozen and config.weights is None:
        raise InputError(
            "--model.norm frozen_bn and --model.frozen-stages freeze what nothing has trained; give --weights, or "
            "train from scratch with --model.norm group_norm --model.frozen-stages 0"
        )
    steps = manifest.rows // config.solver.batch
    if steps == 0:
        raise InputError(f"{config.shards}: {manifest.rows} images are fewer than --solver.batch "
                         f"{config.solver.batch}; lower it")  # fmt: skip
    model = replace(config.model, num_classes=len(manifest.categories))
    categories = tuple((c.number, c.source_id, c.name) for c in manifest.categories)
    total = steps * config.solver.epochs
    threads = config.threads or max(1, (os.cpu_count() or 1) // config.workers)
    job = Job(
        model,
        config.solver,
        config.data,
        categories,
        steps,
        min(total, config.max_steps or total),
        threads,
        str(config.run.absolute() / INITIAL) if config.weights else None,
        str(config.run.absolute()),
        None,
    )
    settings = {
        "model": to_dict(model),
        "solver": to_dict(config.solver),
        "data": to_dict(config.data),
        "dataset": {"name": manifest.name, "fingerprint": manifest.fingerprint, "images": manifest.rows},
        "weights": config.weights,
    }
    return job, settings


def left_out(job: Job, manifest: Manifest) -> str:
    """How many images of an epoch, fewer than a step's, are not used; others each epoch."""
    rest = manifest.rows - job.steps_per_epoch * job.solver.batch
    return f" ({rest} images left out of each epoch)" if rest else ""


def initial_model(config: TrainConfig, job: Job, log: Callable[[str], None]) -> MaskScoringRCNN:
    """The model that a run with `--weights` begins with; prints what came of loading them.

    Raises:
        InputError: the weights cannot be used.
    """
    assert config.weights is not None
    torch.manual_seed(job.solver.seed)  # what is missing in them begins as in a run without
    model = MaskScoringRCNN(job.model)
    report = load_weights(model, config.weights, [name for _, _, name in job.categories])
    for line in report.lines():
        log(line)
    absent = [name for name in report.missing if not name.startswith("maskiou.")]
    if job.model.trained == "maskiou" and absent:
        raise InputError(f"{config.weights}: {absent[0]} and {len(absent) - 1} more tensors are not in it, and "
                         "--model.trained maskiou does not train them; give a whole Mask R-CNN")  # fmt: skip
    return model


def train(config: TrainConfig, log: Callable[[str], None] = print) -> TrainReport:
    """Trains, or goes on with, the run in `config.run`.

    Raises:
        InputError: the shards or the run directory cannot be used.
    """
    run = config.run.absolute()
    manifest = read_manifest(config.shards)
    job, settings = prepare(config, manifest)
    record = read_record(run)
    if record is None and run.exists() and any(path.name not in (LOCK, WORKERS) for path in run.iterdir()):
        raise InputError(f"{run}: neither empty nor a run directory; choose another --run")
    if record is not None:
        check_same(run, record, settings)
        if (run / MODEL).is_file() and next_step(run) >= job.total_steps:
            log(f"{run}: already trained, nothing to do")
            return TrainReport(run / MODEL, job.total_steps, 0.0)
    begun = config.weights is None or next_step(run) > 0 or (run / INITIAL).is_file()
    initial = None if begun else initial_model(config, job, log)
    run.mkdir(parents=True, exist_ok=True)  # fails before anything is noted elsewhere
    with locked(run):
        return train_locked(config, job, manifest, settings, record, initial, log)


def train_locked(
    config: TrainConfig, job: Job, manifest: Manifest, settings: dict[str, Any], record: RunRecord | None,
    initial: MaskScoringRCNN | None, log: Callable[[str], None],
) -> TrainReport:  # fmt: skip
    """`train` from where the run directory is ours alone."""
    began = time.monotonic()
    run = config.run.absolute()
    address = config.tracking or (record.mlflow_address if record else None)
    tracker = Tracker(address, config.experiment, record.mlflow_run if record else None, run.name)
    if record is None:
        tracker.params({**settings, "workers": config.workers, "gpu": config.gpu})
        write_record(run, RunRecord(settings, tracker.run_id, tracker.address))
    if initial is not None:
        save_model(run / INITIAL, initial, job.data, job.categories)
        del initial
    log(f"training {manifest.name}: {manifest.rows} images, {len(manifest.categories)} categories, "
        f"{job.total_steps} steps of {config.solver.batch} images{left_out(job, manifest)}; "
        f"run directory {run}")  # fmt: skip
    try:
        with connect(config.address):
            check_resources(config)
            wait_for_workers(run, log)
            drop_records_after(run, next_step(run))
            (run / MODEL).unlink(missing_ok=True)  # of a training that --max-steps ended earlier
            fit(config, job, manifest, run, tracker, log)
        last = finished_checkpoint(run, job)
        tracker.artifact(last, "model")
        with written_aside(run / MODEL) as aside:  # its presence says that all is done
            aside.write_bytes(last.read_bytes())
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.close()
    seconds = time.monotonic() - began
    log(f"trained in {duration(seconds)}: {run / MODEL}")
    return TrainReport(run / MODEL, job.total_steps, seconds)


def worker_resources(config: TrainConfig) -> dict[str, float]:
    """What a worker asks of the cluster.

    Two cores must hold a worker and its readers: half a CPU leaves room for both.
    """
    return {"GPU": 1, "CPU": 1} if config.gpu else {"CPU": 0.5}


def check_resources(config: TrainConfig) -> None:
    """Raises InputError where the cluster can never hold the workers; Ray Train would wait for ever."""
    for name, need in worker_resources(config).items():
        wanted, there = need * config.workers, ray.cluster_resources().get(name, 0)
        if wanted > there:
            raise InputError(f"--workers {config.workers}: they need {wanted:g} {name}, the Ray cluster has {there:g}; "
                             "ask for fewer, leave out --gpu, or join another --address")  # fmt: skip


def fit(
    config: TrainConfig, job: Job, manifest: Manifest, run: Path, tracker: Tracker, log: Callable[[str], None]
) -> None:
    """Runs the worker group to the end, following what it reports."""
    mailbox = Mailbox.remote()  # type: ignore[attr-defined]
    groups = row_groups(manifest)
    options = ray.data.ExecutionOptions(preserve_order=True)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": replace(job, mailbox=mailbox)},
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=config.gpu, resources_per_worker=worker_resources(config)
        ),
        run_config=RunConfig(
            name=run.name, storage_path=str(run.parent), checkpoint_config=CheckpointConfig(num_to_keep=2)
        ),
        datasets={"train": partial(remaining_rows, groups, job, run, config.workers)},
        dataset_config=ray.train.DataConfig(execution_options=options, enable_shard_locality=False),
    )
    reporter = Reporter(job, tracker, log)
    with Follower(mailbox, run / METRICS, reporter) as follower:
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit()
        except SystemExit:  # what Ray Train makes of Ctrl-C
            raise KeyboardInterrupt from None
        except ray.train.WorkerGroupError as error:
            for failure in error.worker_failures.values():
                if isinstance(failure, InputError):
                    raise failure from None
            raise
        finally:  # it leaves its own handler behind
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)
    if follower.error is not None:
        log(f"warning: not every record was reported ({follower.error}); see {run / METRICS}")


class Reporter:
    """Prints each record as one plain line and logs it to MLflow."""

    def __init__(self, job: Job, tracker: Tracker, log: Callable[[str], None]) -> None:
        self.job, self.tracker, self.log = job, tracker, log

    def __call__(self, record: dict[str, Any]) -> None:
        left = (self.job.total_steps - record["step"]) * self.job.solver.batch / record["images_per_second"]
        parts = " ".join(
            f"{name.removeprefix('loss/')} {value:.3f}" for name, value in record.items() if name.startswith("loss/")
        )
        self.log(
            f"epoch {record['epoch']:5.2f}  step {record['step']}/{self.job.total_steps}  {parts}  "
            f"lr {record['lr']:.4f}  {record['images_per_second']:.1f} images/s  "
            f"waiting for data {record['data_wait']:.0%}  left {duration(left)}"
        )
        self.tracker.metrics({k: v for k, v in record.items() if k != "step"}, record["step"])


def finished_checkpoint(run: Path, job: Job) -> Path:
    """The model file of the run's last checkpoint, which must be that of the last step."""
    step = next_step(run)
    if step < job.total_steps:
        raise RuntimeError(f"{run}: the last checkpoint is at step {step} of {job.total_steps}")
    return run / checkpoint_name(step) / MODEL
