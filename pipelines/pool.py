"""How many processes detect, and what each asks of the cluster."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.data

from cluster.room import fitting
from msrcnn.errors import InputError
from pipelines.node_facts import free_resources, node_resources
from pipelines.reading import READER_CPUS, READERS

ACTOR_CPUS = 0.8
"""What an inference process asks of a CPU, the most beside a GPU: readers need the rest."""
RESERVED_CPUS = 0.4
"""Left to the readers and writers of a training and of an evaluation beside it."""
LEAST_CPUS = 0.1
"""With less for inference, an evaluation beside a training is refused."""
LOADER_CPUS = 4
"""Left to the threads that decode images for a training worker with a GPU; they reserve nothing."""


@dataclass(frozen=True)
class NodeRoom:
    """What a node has in all and what nobody uses at the moment, by Ray's names of resources."""

    total: Mapping[str, float]
    free: Mapping[str, float]

    @property
    def empty(self) -> NodeRoom:
        """The node without those who use it now."""
        return replace(self, free=self.total)


def node_rooms() -> list[NodeRoom]:
    """Of every node that is there."""
    free = free_resources()
    return [NodeRoom(n["Resources"], free.get(n["NodeID"], {})) for n in ray.nodes() if n["Alive"]]


@dataclass(frozen=True)
class Pool:
    """The processes of the inference stage, from `least` to `most` of them.

    Attributes:
        threads, cpus, gpus: of each.
        avoids_gpus: whether nodes with GPUs are the last that they go to.
    """

    least: int
    most: int
    threads: int
    cpus: float
    gpus: float
    avoids_gpus: bool = False

    @classmethod
    def of_cluster(cls, actors: int, gpu: bool, groups: int) -> Pool:
        """For an evaluation that has the cluster.

        Args:
            actors: so many processes, but no more than can be; 0: from one to as many as the cluster has room for.
            gpu: a GPU each.
            groups: how many pieces of work there are.

        Raises:
            InputError: GPUs are asked for and there is none, or no CPU either.
        """
        resources = ray.cluster_resources()
        available = int(resources.get("GPU" if gpu else "CPU", 0))
        if gpu and available == 0:
            raise InputError("--gpu: the Ray cluster has no GPU; leave it out or join another --address")
        if available == 0:  # a head that does no work, and its nodes are still to come
            raise InputError("the Ray cluster has no CPU to work with yet; give the command again when its nodes are "
                             "there, or join another --address")  # fmt: skip
        most = max(1, min(actors or groups, available))
        least = most if actors else 1
        if gpu:  # with as many CPUs as GPUs the readers must find a place too
            return cls(least, most, 1, ACTOR_CPUS * min(1.0, resources.get("CPU", 0) / most), 1.0)
        # As many threads as keep all cores of a node busy when fewer processes than cores were asked for.
        node = max(int(has.get("CPU", 1)) for has in node_resources())
        threads = max(1, min(node, available // most))
        return cls(least, most, threads, ACTOR_CPUS * threads, 0.0)

    @classmethod
    def beside(cls, nodes: Sequence[NodeRoom], worker: Mapping[str, float], workers: int, groups: int) -> Pool | None:
        """For an evaluation beside a training; None if that leaves it nothing.

        Begins with one process and waits for no other: a place that is counted here may be taken by then.

        Args:
            nodes: of the cluster.
            worker: what a training worker reserves.
            workers: how many there are, or will be again: those of a group that has died hold nothing.
            groups: how many pieces of work there are.
        """
        cpus, gpus = (
            sum(node.total.get(name, 0) for node in nodes) - worker.get(name, 0) * workers for name in ("CPU", "GPU")
        )
        left = cpus - RESERVED_CPUS
        if (free := min(int(gpus), int(left), groups)) > 0:
            return cls(1, free, 1, 1.0, 1.0)
        if left < LEAST_CPUS:
            return None
        if actors := min(places_beside(nodes, worker, workers), int(left / ACTOR_CPUS + 1e-9), groups):
            return cls(1, actors, 1, ACTOR_CPUS, 0.0, avoids_gpus=True)
        widest = max(node.free.get("CPU", 0) for node in nodes) - RESERVED_CPUS
        return cls(1, 1, 1, min(ACTOR_CPUS, left, max(widest, LEAST_CPUS)), 0.0, avoids_gpus=True)

    def map(self, rows: ray.data.Dataset, process: type, job: Any) -> ray.data.Dataset:
        """A stream of what the processes make of blocks.

        Args:
            rows: of which each block is a piece of work.
            process: a class: `process(job, gpu, threads)`, once a process, takes a block (Arrow table) and gives one.
            job: what every process is told.
        """
        share: dict[str, Any] = {"num_cpus": self.cpus} | ({"num_gpus": self.gpus} if self.gpus else {})
        if self.avoids_gpus:  # Ray Data's own, SPREAD, would take nodes with GPUs as any others
            share["scheduling_strategy"] = "DEFAULT"
        return rows.map_batches(
            process,
            fn_constructor_kwargs={"job": job, "gpu": self.gpus > 0, "threads": self.threads},
            compute=ray.data.ActorPoolStrategy(min_size=self.least, max_size=self.most),
            batch_size=None,
            batch_format="pyarrow",
            **share,
        )


def places_beside(nodes: Sequence[NodeRoom], worker: Mapping[str, float], workers: int) -> int:
    """How many inference processes without GPUs find a place beside a training, counted by node.

    Each has its place on a node at the moment; with all of them there, the workers still fit, whether they fill one
    node after another or go to one after another. Nodes with GPUs are used only where no other has room.
    """
    room = [_places(node, worker, workers) for node in nodes]
    plain = [0 if node.total.get("GPU") else places for node, places in zip(nodes, room, strict=True)]
    turns = [(turn, at) for at, places in enumerate(plain if any(plain) else room) for turn in range(places)]
    filled, spread = ([at for _, at in order] for order in (turns, sorted(turns)))

    def too_many(processes: int) -> bool:
        return workers > 0 and any(not fit(Counter(taken[:processes])) for taken in (filled, spread))

    def fit(on: Counter[int]) -> bool:
        left = [{**node.total, "CPU": node.total.get("CPU", 0) - ACTOR_CPUS * on[at]} for at, node in enumerate(nodes)]
        return fitting(left, worker, READERS, READER_CPUS) >= workers

    return bisect_left(range(1, len(turns) + 1), True, key=too_many)


def _places(node: NodeRoom, worker: Mapping[str, float], workers: int) -> int:
    """How many processes a node has room for, beside its workers' threads if they need a GPU."""
    free = node.free.get("CPU", 0)
    if worker.get("GPU"):
        here = min(workers, int(node.total.get("GPU", 0) / worker["GPU"]))
        free = min(free, node.total.get("CPU", 0) - here * worker["CPU"]) - here * LOADER_CPUS
    return max(int((free - RESERVED_CPUS) / ACTOR_CPUS + 1e-9), 0)
