"""Numbers of some steps at a time, to the driver. They are summed on the device and read only for a record."""

from __future__ import annotations

import time

import psutil
import torch
import torch.distributed
from torch import Tensor

from msrcnn.solver import learning_rate
from pipelines.job import Job
from pipelines.lineage import Seen
from pipelines.mailbox import Post

REPORT_STEPS = 20
"""Steps between two records."""


class Meter:
    """Counts a worker's steps; rank 0 makes a record of what all had.

    Args:
        step: that comes next, counted over the training.
        workers: of the group.
    """

    def __init__(self, job: Job, post: Post, workers: int, step: int, device: torch.device) -> None:
        self.job, self.post, self.workers, self.device = job, post, workers, device
        self.process = psutil.Process()
        self.process.cpu_percent()  # counts from here
        self._reset(step, None)

    def _reset(self, step: int, now: float | None) -> None:
        self.first, self.waited, self.began = step, 0.0, now
        self.told = self.post.seconds
        self.sums: dict[str, Tensor] = {}
        self.images: list[list[int]] = []

    def arrived(self, asked: float) -> None:
        """Counts the time since `asked` as waiting for images; the first time is the start of the pipeline."""
        now = time.perf_counter()
        if self.began is None:
            self.began = now
        else:
            self.waited += now - asked

    def add(self, losses: dict[str, Tensor], norm: Tensor, images: list[int]) -> None:
        """Counts a step.

        Args:
            losses: this worker's share of each loss: over all workers they add up to the step's.
            norm: of the gradient.
            images: ids of the worker's images.
        """
        self.images.append(images)
        for name, value in {**losses, "gradient_norm": norm / self.workers}.items():
            self.sums[name] = value.detach() + self.sums.get(name, 0)

    def due(self, done: int) -> bool:
        """Whether a record comes after `done` steps."""
        return done % REPORT_STEPS == 0 or done == self.job.total_steps or done % self.job.steps_per_epoch == 0

    def send(self, done: int) -> None:
        """Makes a record of the steps since the last one; all workers do so after the same step."""
        if done == self.first:
            return
        steps, seconds = done - self.first, time.perf_counter() - (self.began or 0.0)
        self.post.put("images", Seen(self.post.rank, done, self.images))
        wait = torch.tensor(self.waited / seconds / self.workers, device=self.device)
        sums = torch.stack([*(value.float() for value in self.sums.values()), wait])  # [losses + 2]
        if self.workers > 1:
            torch.distributed.all_reduce(sums)
        values = sums.tolist()
        if self.post.rank == 0:
            means = {name: value / steps for name, value in zip(self.sums, values, strict=False)}
            norm = means.pop("gradient_norm")
            losses = {f"loss/{name}": value for name, value in means.items()}
            record = {
                "step": done,
                "time": time.time(),
                "epoch": done / self.job.steps_per_epoch,
                **losses,
                "loss/total": sum(losses.values()),
                "gradient_norm": norm,
                "lr": learning_rate(self.job.solver, done - 1, self.job.steps_per_epoch),
                "images_per_second": steps * self.job.solver.batch / seconds,
                "data_wait": values[-1],
                "workers": self.workers,
                "telling_milliseconds_a_step": 1000 * (self.post.seconds - self.told) / steps,
                **self.system(),
            }
            self.post.put("record", record)
        self._reset(done, time.perf_counter())

    def system(self) -> dict[str, float]:
        """What rank 0's process and machine use, by the names under which MLflow shows system metrics."""
        memory = psutil.virtual_memory()
        found = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_percentage": memory.percent,
            "system/worker_cpu_percentage": self.process.cpu_percent(),
            "system/worker_memory_megabytes": self.process.memory_info().rss / 1e6,
        }
        if self.device.type == "cuda":
            found["system/gpu_memory_peak_megabytes"] = torch.cuda.max_memory_allocated(self.device) / 1e6
            free, total = torch.cuda.mem_get_info(self.device)
            found["system/gpu_memory_usage_percentage"] = 100 * (total - free) / total
        return found
