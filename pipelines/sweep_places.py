"""How many trials of a sweep the cluster holds at a time, and whether they reach MLflow."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import ray

from msrcnn.errors import InputError
from pipelines.node_facts import node_resources
from pipelines.options import TrainConfig
from pipelines.pool import LEAST_CPUS
from pipelines.reading import READER_CPUS, READERS
from pipelines.sweep_options import SweepConfig
from pipelines.sweep_plan import Plan
from pipelines.sweep_tune import TRIAL_CPUS
from pipelines.tracking import SQLITE
from pipelines.train_setup import check_resources, worker_resources


def places(config: SweepConfig, plan: Plan) -> int:
    """How many trials run at a time: as many as were asked for; else those that the cluster holds, and without GPUs
    no more than it has a processor for each thread of, which Ray does not count.

    Raises:
        InputError: the cluster does not hold one trial, or not as many as were asked for.
    """
    train = plan.examples()[0].train
    check_resources(train)
    share = share_of(train)
    room = room_for(share)
    if config.concurrent > max(room, 1):
        raise InputError(f"--concurrent {config.concurrent}: a trial needs {share}, the Ray cluster has "
                         f"room for {max(room, 1)}; ask for fewer, lower --workers or --cpus, or join another "
                         "--address")  # fmt: skip
    computing = {} if train.gpu else {"CPU": float(train.worker_range[1] * threads_on_nodes(train))}
    return config.concurrent or max(1, min(room, room_for(computing)))


def check_tracking(address: str) -> None:
    """That every trial reaches MLflow, wherever it runs.

    Raises:
        InputError: it is a file, and there is more than one machine.
    """
    machines = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if address.startswith(SQLITE) and len(machines) > 1:
        raise InputError(
            f"--tracking {address}: a file of this machine, which trials on {len(machines) - 1} others cannot write; "
            "start `mlflow server` where all nodes reach it, with this file as --backend-store-uri if the sweep began "
            "with it, and give its address"
        )


def threads_on_nodes(train: TrainConfig) -> int:
    """CPU threads of a worker, where a trial runs on the node with the most processors."""
    widest = max((int(has.get("CPU", 1)) for has in node_resources()), default=1)
    return train.threads or max(1, widest // train.worker_range[1])


def room_for(share: Mapping[str, float]) -> int:
    """How many times the cluster has as much."""
    cluster = ray.cluster_resources()
    return int(min((cluster.get(name, 0) / need for name, need in share.items()), default=sys.maxsize) + 1e-9)


def share_of(train: TrainConfig) -> dict[str, float]:
    """What a trial takes of the cluster: driver, the most workers, readers, and what validates beside them."""
    _, workers = train.worker_range
    share = {name: value * workers for name, value in worker_resources(train).items()}
    share["CPU"] += TRIAL_CPUS + READERS * READER_CPUS + (LEAST_CPUS if train.validation is not None else 0)
    return share
