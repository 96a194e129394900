"""How many processes detect, and what each asks of the cluster."""

from __future__ import annotations

from dataclasses import dataclass

import ray
import ray.data

from msrcnn.errors import InputError

ACTOR_CPUS = 0.8
"""What an inference process asks of a machine without GPUs: its readers need the rest of each CPU."""
RESERVED_CPUS = 0.4
"""Left to the readers and writers of a training and of an evaluation beside it."""
LEAST_CPUS = 0.1
"""With less for inference, an evaluation beside a training is refused."""


@dataclass(frozen=True)
class Pool:
    """The processes of the inference stage, from `least` to `most` of them."""

    least: int
    most: int
    threads: int
    cpus: float
    gpus: float

    @classmethod
    def of_cluster(cls, actors: int, gpu: bool, groups: int) -> Pool:
        """For an evaluation that has the cluster.

        Args:
            actors: so many processes, but no more than can be; 0: from one to as many as the cluster has room for.
            gpu: a GPU each.
            groups: how many pieces of work there are.

        Raises:
            InputError: GPUs are asked for and there is none.
        """
        resources = ray.cluster_resources()
        available = int(resources.get("GPU" if gpu else "CPU", 0))
        if gpu and available == 0:
            raise InputError("--gpu: the Ray cluster has no GPU; leave it out or join another --address")
        most = max(1, min(actors or groups, available))
        least = most if actors else 1
        if gpu:
            return cls(least, most, 1, 1.0, 1.0)
        # As many threads as keep all cores of a node busy when fewer processes than cores were asked for.
        node = max(int(n["Resources"].get("CPU", 1)) for n in ray.nodes() if n["Alive"])
        threads = max(1, min(node, available // most))
        return cls(least, most, threads, ACTOR_CPUS * threads, 0.0)

    @classmethod
    def beside(cls, cpus: float, gpus: float) -> Pool | None:
        """What processes that reserve so much leave free of the cluster as it is now; None if that is nothing."""
        resources = ray.cluster_resources()
        left = resources.get("CPU", 0) - cpus - RESERVED_CPUS
        free = min(int(resources.get("GPU", 0) - gpus), int(left))
        if free > 0:
            return cls(free, free, 1, 1.0, 1.0)
        if left < LEAST_CPUS:
            return None
        actors = max(1, int(left / ACTOR_CPUS))
        return cls(actors, actors, 1, min(ACTOR_CPUS, left), 0.0)

    @property
    def strategy(self) -> ray.data.ActorPoolStrategy:
        """As Ray Data takes it."""
        if self.least == self.most:
            return ray.data.ActorPoolStrategy(size=self.most)
        return ray.data.ActorPoolStrategy(min_size=self.least, max_size=self.most)
