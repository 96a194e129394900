"""How many trials of a sweep the cluster holds at a time."""

from __future__ import annotations

import ray

from msrcnn.errors import InputError
from pipelines.options import TrainConfig
from pipelines.pool import LEAST_CPUS
from pipelines.reading import READER_CPUS, READERS
from pipelines.sweep_options import SweepConfig
from pipelines.sweep_plan import Plan
from pipelines.sweep_tune import TRIAL_CPUS
from pipelines.train_setup import check_resources, worker_resources


def places(config: SweepConfig, plan: Plan) -> int:
    """How many trials run at a time.

    Raises:
        InputError: the cluster does not hold one trial, or not as many as were asked for.
    """
    train = plan.examples()[0].train
    check_resources(train)
    share = share_of(train)
    room = int(min(ray.cluster_resources().get(name, 0) / need for name, need in share.items()) + 1e-9)
    if config.concurrent > max(room, 1):
        raise InputError(f"--concurrent {config.concurrent}: a trial needs {share}, the Ray cluster has "
                         f"room for {max(room, 1)}; ask for fewer, lower --workers or --cpus, or join another "
                         "--address")  # fmt: skip
    return config.concurrent or max(room, 1)


def share_of(train: TrainConfig) -> dict[str, float]:
    """What a trial takes of the cluster: driver, the most workers, readers, and what validates beside them."""
    _, workers = train.worker_range
    share = {name: value * workers for name, value in worker_resources(train).items()}
    share["CPU"] += TRIAL_CPUS + READERS * READER_CPUS + (LEAST_CPUS if train.validation is not None else 0)
    return share
