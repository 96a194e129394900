"""A training's checkpoints: what is in one, how it gets into the run directory and out of it again.

step-00001000/model.pt       weights and all that is needed to rebuild the model around them
step-00001000/training.pt    the optimiser's state and the step that comes next

That is all a training needs to go on as if nothing had happened. The schedule and the position in the epoch follow
from the step. There are no states of random generators: order, flips and samples are drawn from (seed, epoch, image).
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from pathlib import Path

import ray
import ray.train
import torch
from pyarrow import fs
from ray.train import Checkpoint, CheckpointUploadMode

from msrcnn.detector import MaskScoringRCNN
from msrcnn.weights import load_model, read_plain, save_model, write_aside
from pipelines.checkpoint_list import ASIDE, MODEL, PREFIX, TRAINING, checkpoint_name
from pipelines.job import Job
from pipelines.storage import locate, on_disk


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
