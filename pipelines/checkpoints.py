"""A training's checkpoints: what is in one, how it gets into the run directory, and what is found there again.

step-00001000/model.pt       weights and all that is needed to rebuild the model around them
step-00001000/training.pt    the optimiser's state and the step that comes next

That is all a training needs to go on as if nothing had happened. The schedule and the position in the epoch follow
from the step. There are no states of random generators: order, flips and samples are drawn from (seed, epoch, image).

Ray Train keeps the list of checkpoints (checkpoint_manager_snapshot.json) and deletes old ones. A folder that is not on
the list is what a killed process left; one on it is whole, for it gets there when the last byte is stored.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from pyarrow import fs
from ray.train import Checkpoint, CheckpointUploadMode

from msrcnn.detector import MaskScoringRCNN
from msrcnn.weights import load_model, read_plain, save_model, write_aside
from pipelines.job import Job
from pipelines.storage import Location, locate, on_disk

MODEL = "model.pt"
TRAINING = "training.pt"
PREFIX = "step-"
ASIDE = f".{PREFIX}"
"""How a folder begins that is still being written, where it can be renamed."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's own list of the checkpoints."""


def checkpoint_name(step: int) -> str:
    """The folder, in the run directory, of the checkpoint taken after `step` steps."""
    return f"{PREFIX}{step:08d}"


def step_of(name: str) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(name.removeprefix(PREFIX))


# In the driver


def committed(run: Location) -> list[int]:
    """The steps of the checkpoints on Ray Train's list, the newest last; empty if there is none.

    Raises:
        ValueError: the list cannot be read: it is being written, or its writer was killed.
    """
    place = run / SNAPSHOT
    if place.size() is None:
        return []
    snapshot = json.loads(place.read())
    return sorted(step_of(result["checkpoint_dir_name"]) for result in snapshot["checkpoint_results"])


def next_step(run: Location) -> int:
    """The step at which the run goes on: that of its last checkpoint, 0 if there is none."""
    return max(committed(run), default=0)


def tidy(run: Location, log: Callable[[str], None]) -> None:
    """Repairs the list of checkpoints if its writer was killed over it, and deletes what is not on it."""
    try:
        known = committed(run)
    except ValueError:
        known = sorted(step_of(name) for name in _folders(run) if {MODEL, TRAINING} <= (run / name).list().keys())
        log(f"{run / SNAPSHOT}: cut short; written again from the checkpoints that are there")
        (run / SNAPSHOT).write(_snapshot(known))
    kept = [checkpoint_name(step) for step in known]
    for name in [*_folders(run), *_folders(run, ASIDE)]:
        if name not in kept:
            log(f"{run / name}: left by a process that ended before it was stored; deleted")
            (run / name).remove_folder()


def _folders(run: Location, prefix: str = PREFIX) -> list[str]:
    return [name for name, size in run.list().items() if size is None and name.startswith(prefix)]


def _snapshot(steps: list[int]) -> bytes:
    results = [{"version": 0, "checkpoint_dir_name": checkpoint_name(s), "metrics": {"step": s}} for s in steps]
    value: dict[str, Any] = {
        "ray_version": ray.__version__, "version": 0, "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(steps))), "current_report_index": len(steps),
        "latest_checkpoint_result": results[-1] if results else None, "pending_training_results": [],
        "pending_validation_specs": [], "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [], "failed_validation_checkpoint_dir_names": [],
    }  # fmt: skip
    return json.dumps(value).encode()


# In the workers


def restore(job: Job, model: MaskScoringRCNN, optimizer: torch.optim.Optimizer) -> int:
    """Loads the run's last checkpoint into model and optimiser; gives the next step.

    Without one that is step 0, of the initial model if the job has one.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        if job.initial is not None:
            with on_disk(locate(job.initial)) as path:
                model.load_state_dict(load_model(path).model.state_dict())
        return 0
    with checkpoint.as_directory() as folder:
        model.load_state_dict(load_model(Path(folder) / MODEL).model.state_dict())
        state = read_plain(Path(folder) / TRAINING, "a training state")
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


class Checkpoints:
    """Takes checkpoints in rank 0 and stores them while training goes on."""

    def __init__(self, job: Job, rank: int, model: MaskScoringRCNN, optimizer: torch.optim.Optimizer) -> None:
        self.job, self.rank, self.model, self.optimizer = job, rank, model, optimizer
        self._last = time.monotonic()
        self._storing = threading.Event()

    def wanted(self) -> bool:
        """Whether it is time for one: asked of rank 0, whose word is all workers'. Not while one is being stored."""
        late = time.monotonic() - self._last > self.job.checkpoint_seconds
        return self.rank == 0 and late and not self._storing.is_set()

    def take(self, step: int) -> None:
        """Hands Ray Train a checkpoint of the state after `step` steps; all workers call it after the same step."""
        checkpoint = None
        if self.rank == 0:
            folder = Path(tempfile.mkdtemp(prefix="msrcnn-checkpoint-"))
            save_model(folder / MODEL, self.model, self.job.data, self.job.categories)
            write_aside(folder / TRAINING, {"optimizer": self.optimizer.state_dict(), "step": step})
            checkpoint = Checkpoint.from_directory(folder)
            self._storing.set()
        ray.train.report(
            {"step": step}, checkpoint=checkpoint, checkpoint_dir_name=checkpoint_name(step),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC, checkpoint_upload_fn=self._store,
        )  # fmt: skip
        self._last = time.monotonic()

    def _store(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Copies a checkpoint into the run directory, on Ray Train's thread, and deletes the local one."""
        run = locate(self.job.run)
        target = run / name
        aside = run / name.replace(PREFIX, ASIDE) if run.renames else target
        for folder in (target, aside):  # of an attempt that was killed
            folder.remove_folder()
        aside.make_folder()
        fs.copy_files(checkpoint.path, aside.path, destination_filesystem=aside.filesystem)
        if aside is not target:
            run.filesystem.move(aside.path, target.path)
        shutil.rmtree(checkpoint.path, ignore_errors=True)
        self._storing.clear()
        storage = ray.train.get_context().get_storage()
        return Checkpoint(target.path, filesystem=storage.storage_filesystem)
