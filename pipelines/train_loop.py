"""What each training worker runs: an ordinary PyTorch loop over the images that Ray Data streams to it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from msrcnn.config import DataConfig, ModelConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.solver import learning_rate, make_optimizer, set_learning_rate
from msrcnn.structures import Batch
from msrcnn.weights import load_model, read_plain, save_model, write_aside
from pipelines.ingest import TrainingCollate
from pipelines.run_directory import MODEL, working

REPORT_STEPS = 20
"""Steps between two records; the losses stay on the device until then."""
PREFETCH = 4
"""Batches decoded ahead, by as many threads."""
DELIVERY_SECONDS = 60.0
"""How long a checkpoint waits for records on their way to the driver; training goes on without them then."""
TRAINING = "training.pt"
POSITION = "position.json"


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    model: ModelConfig
    solver: SolverConfig
    data: DataConfig
    categories: tuple[tuple[int, int, str], ...]
    steps_per_epoch: int
    total_steps: int
    threads: int
    initial: str | None
    """model file to begin with, if it is not random weights"""
    run: str
    """run directory"""
    mailbox: Any


def total_of(losses: dict[str, Tensor]) -> Tensor:
    """What is minimised: the sum of the losses."""
    return torch.stack(list(losses.values())).sum()


class Meter:
    """Sums on the device and reads it, for a record to the driver, only every `REPORT_STEPS` steps."""

    def __init__(self, job: Job, rank: int, step: int) -> None:
        self.job, self.rank = job, rank
        self.on_the_way: list[Any] = []
        self._reset(step, None)

    def _reset(self, step: int, now: float | None) -> None:
        self.first, self.waited, self.began = step, 0.0, now
        self.sums: dict[str, Tensor] = {}

    def arrived(self, asked: float) -> None:
        """Counts the time since `asked` as waiting for a batch; the first one's is the start of the pipeline."""
        now = time.perf_counter()
        if self.began is None:
            self.began = now
        else:
            self.waited += now - asked

    def add(self, step: int, losses: dict[str, Tensor], norm: Tensor) -> None:
        """Counts step `step` (from 0)."""
        for name, value in {**losses, "total": total_of(losses), "gradient_norm": norm}.items():
            self.sums[name] = value.detach() + self.sums.get(name, 0)
        done = step + 1
        if done % REPORT_STEPS == 0 or done == self.job.total_steps or done % self.job.steps_per_epoch == 0:
            self._send(done)

    def _send(self, done: int) -> None:
        steps, seconds = done - self.first, time.perf_counter() - (self.began or 0.0)
        means = {name: float(value) / steps for name, value in self.sums.items()}
        bad = sorted(name for name, value in means.items() if not abs(value) < float("inf"))
        if bad:
            raise InputError(f"step {done}: {', '.join(bad)} not finite; lower --solver.lr or set --solver.clip-norm")
        if self.rank == 0:
            norm = means.pop("gradient_norm")
            record = {
                "step": done,
                "epoch": done / self.job.steps_per_epoch,
                **{f"loss/{name}": value for name, value in means.items()},
                "gradient_norm": norm,
                "lr": learning_rate(self.job.solver, done - 1, self.job.steps_per_epoch),
                "images_per_second": steps * self.job.solver.batch / seconds,
                "data_wait": self.waited / seconds,
            }
            self.on_the_way.append(self.job.mailbox.put.remote(record))
        self._reset(done, time.perf_counter())

    def deliver(self) -> None:
        """Waits until every record has arrived: what is still on the way dies with the worker's process."""
        if self.on_the_way:
            ray.wait(self.on_the_way, num_returns=len(self.on_the_way), timeout=DELIVERY_SECONDS)
        self.on_the_way = []


def checkpoint_name(step: int) -> str:
    """The folder, in the run directory, of the checkpoint taken after `step` steps."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path, job: Job, model: MaskScoringRCNN, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Writes the model, the optimiser's state and the position of the next step."""
    save_model(folder / MODEL, model, job.data, job.categories)
    write_aside(folder / TRAINING, {"optimizer": optimizer.state_dict(), "step": step})
    (folder / POSITION).write_text(json.dumps({"step": step}))


def restore_checkpoint(job: Job, model: MaskScoringRCNN, optimizer: torch.optim.Optimizer) -> int:
    """Loads the run's last checkpoint into model and optimiser; gives the next step.

    Without one that is step 0, of the initial model if the job has one.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        if job.initial is not None:
            model.load_state_dict(load_model(Path(job.initial)).model.state_dict())
        return 0
    with checkpoint.as_directory() as folder:
        model.load_state_dict(load_model(Path(folder) / MODEL).model.state_dict())
        state = read_plain(Path(folder) / TRAINING, "a training state")
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def batches(job: Job, device: torch.device) -> Iterator[Batch]:
    """This worker's share of every step's images, from the step on that comes next."""
    shard = ray.train.get_dataset_shard("train")
    feed = shard.iter_torch_batches(
        batch_size=job.solver.batch // ray.train.get_context().get_world_size(),
        collate_fn=TrainingCollate(job.data, job.solver.seed),
        prefetch_batches=PREFETCH,
        drop_last=True,
    )
    for batch in feed:
        yield batch.to(device, non_blocking=True)


def train_loop(config: dict[str, Job]) -> None:
    """What Ray Train runs in each worker of the group."""
    job = config["job"]
    with working(Path(job.run)):
        train_steps(job)


def train_steps(job: Job) -> None:
    """The training loop, from the step after the run's last checkpoint on."""
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.solver.seed)
    model = MaskScoringRCNN(job.model).to(device)
    if device.type == "cuda" and ray.train.get_context().get_world_size() > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # only where there is a BatchNorm to train
    optimizer = make_optimizer(model, job.solver)
    step = restore_checkpoint(job, model, optimizer)
    network = ray.train.torch.prepare_model(model, move_to_device=False)
    network.train()

    feed = batches(job, device)
    meter = Meter(job, rank, step)
    limit = job.solver.clip_norm or float("inf")
    while step < job.total_steps:
        asked = time.perf_counter()
        batch = next(feed)
        meter.arrived(asked)

        with torch.autocast(device.type, torch.bfloat16, enabled=job.solver.precision == "bfloat16"):
            losses = network(batch)
        optimizer.zero_grad(set_to_none=True)
        total_of(losses).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        set_learning_rate(optimizer, learning_rate(job.solver, step, job.steps_per_epoch))
        optimizer.step()

        meter.add(step, losses, norm)
        step += 1
        if step % job.steps_per_epoch == 0 or step == job.total_steps:
            meter.deliver()
            report_checkpoint(job, rank, model, optimizer, step)


def report_checkpoint(job: Job, rank: int, model: MaskScoringRCNN, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Hands a checkpoint to Ray Train; a barrier for all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            save_checkpoint(Path(folder), job, model, optimizer, step)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=checkpoint_name(step))
