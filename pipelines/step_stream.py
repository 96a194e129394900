"""The training's images as Ray Train deals them to a worker group. Imports no torch: Ray's own processes run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import ray.train

from pipelines.checkpoint_list import next_step
from pipelines.job import Job
from pipelines.reading import RowGroup, TrainingPlan, training_rows
from pipelines.storage import locate


@dataclass(frozen=True)
class Remaining:
    """The images from a step of the training on."""

    groups: list[RowGroup]
    job: Job
    step: int

    def rows(self, workers: int) -> ray.data.Dataset:
        """Their stream, for a group of so many workers."""
        job, steps = self.job, self.job.steps_per_epoch
        begin = min(self.step, job.total_steps - 1)  # Ray Data wants rows even where all steps are done
        epochs = -(-job.total_steps // steps)
        return training_rows(
            TrainingPlan(self.groups, job.solver.seed, epochs, steps, job.solver.batch, workers, begin)
        )


def remaining(groups: list[RowGroup], job: Job) -> Remaining:
    """What Ray Train calls whenever a worker group starts, in its controller."""
    step = next_step(locate(job.run))
    ray.get(job.mailbox.begin.remote(step))
    return Remaining(groups, job, step)


class StepStream(ray.train.DataConfig):
    """Cuts the stream of images for as many workers as a group has: its blocks depend on their number."""

    def configure(
        self,
        datasets: dict[str, Any],
        world_size: int,
        worker_handles: Any,  # noqa: ARG002  Ray's own signature
        worker_node_ids: Any,  # noqa: ARG002
        **_: Any,
    ) -> list[dict[str, Any]]:
        """An iterator for each worker."""
        (name, left), = datasets.items()  # fmt: skip
        rows = left.rows(world_size)
        rows.context.execution_options = self._resolve_execution_options(name)
        rows.context.execution_options.preserve_order = True
        return [{name: part} for part in rows.streaming_split(world_size, equal=True)]
