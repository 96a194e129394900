"""A training's checkpoints: what is in one, how it gets into the run directory and out of it again.

step-00001000/model.pt       weights and all that is needed to rebuild the model around them
step-00001000/training.pt    the optimiser's state and the step that comes next

That is all a training needs to go on as if nothing had happened. The schedule and the position in the epoch follow
from the step. There are no states of random generators: order, flips and samples are drawn from (seed, epoch, image).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from msrcnn.detector import MaskScoringRCNN
from msrcnn.weights import load_model, read_plain, save_model, write_aside
from pipelines.checkpoint_list import ASIDE, PREFIX, TRAINING, checkpoint_name
from pipelines.job import Job
from pipelines.mailbox import Post
from pipelines.run_directory import MODEL
from pipelines.storage import Location, locate, on_disk

WAITS = (5.0, 30.0, 120.0)
"""Seconds before storing a checkpoint is tried again."""


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
    # Not by `Checkpoint.as_directory`: workers of a node share its copy, which a late one writes under the others.
    folder = locate(job.run) / Path(checkpoint.path).name
    with on_disk(folder / MODEL) as path:
        model.load_state_dict(load_model(path).model.state_dict())
    with on_disk(folder / TRAINING) as path:
        state = read_plain(path, "a training state")
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


class NotStoredError(Exception):
    """A checkpoint could not be stored. Its text has nothing of the storage's: some of that, as "AWS Error UNKNOWN",
    makes Ray Train store a checkpoint again, which was tried often enough and is deleted here by then."""


class Checkpoints:
    """Takes checkpoints in rank 0 and stores them while training goes on."""

    def __init__(self, job: Job, post: Post, model: MaskScoringRCNN, optimizer: torch.optim.Optimizer) -> None:
        self.job, self.post, self.model, self.optimizer = job, post, model, optimizer
        self._last = time.monotonic()
        self._idle = threading.Event()
        self._idle.set()
        if post.rank == 0:
            self._clean()

    def wanted(self) -> bool:
        """Whether it is time for one: asked of rank 0, whose word is all workers'. Not while one is being stored."""
        late = time.monotonic() - self._last > self.job.checkpoint_seconds
        return self.post.rank == 0 and late and self._idle.is_set()

    def take(self, step: int) -> None:
        """Hands Ray Train a checkpoint of the state after `step` steps; all workers call it after the same step."""
        checkpoint = None
        if self.post.rank == 0:
            self._idle.wait()  # where epochs are shorter than storing: the local disk must not fill up
            self._idle.clear()
            folder = Path(tempfile.mkdtemp(prefix=f"{self._prefix}{os.getpid()}-"))
            save_model(folder / MODEL, self.model, self.job.data, self.job.categories)
            write_aside(folder / TRAINING, {"optimizer": self.optimizer.state_dict(), "step": step})
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(
            {"step": step}, checkpoint=checkpoint, checkpoint_dir_name=checkpoint_name(step),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC, checkpoint_upload_fn=self._store,
        )  # fmt: skip
        self._last = time.monotonic()

    def _store(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Copies a checkpoint into the run directory, on Ray Train's thread, and deletes the local one.

        Raises:
            NotStoredError: the storage failed each time; the driver is told why.
        """
        try:
            for wait in (*WAITS, None):
                try:
                    target = self._copy(Path(checkpoint.path), name)
                    break
                except Exception as error:
                    if wait is None:
                        self.post.failed(error)
                        raise NotStoredError(f"{name} could not be stored") from error
                    self.post.put("note", f"{name} cannot be stored now ({error}); tried again in {wait:.0f} s")
                    time.sleep(wait)
        finally:
            shutil.rmtree(checkpoint.path, ignore_errors=True)
            self._idle.set()
        storage = ray.train.get_context().get_storage()
        return Checkpoint(target.path, filesystem=storage.storage_filesystem)

    def _copy(self, source: Path, name: str) -> Location:
        run = locate(self.job.run)
        target = run / name
        aside = run / name.replace(PREFIX, ASIDE) if run.renames else target
        for folder in (target, aside):  # of an attempt that was killed
            folder.remove_folder()
        aside.make_folder()
        for file in (MODEL, TRAINING):
            locate(source / file).copy_to(aside / file)
        if aside is not target:
            run.filesystem.move(aside.path, target.path)
        return target

    @property
    def _prefix(self) -> str:
        """Of this run's folders among this machine's temporary files."""
        return f"msrcnn-checkpoint-{hashlib.sha256(self.job.run.encode()).hexdigest()[:12]}-"

    def _clean(self) -> None:
        """Deletes the folders of workers of this run that were killed."""
        for folder in Path(tempfile.gettempdir()).glob(f"{self._prefix}*"):
            owner = folder.name.removeprefix(self._prefix).partition("-")[0]
            if not Path("/proc", owner).exists():
                shutil.rmtree(folder, ignore_errors=True)
