"""The options of `msrcnn doctor`. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

from dataclasses import dataclass

from msrcnn.config import require
from pipelines.options import worker_range, worker_share


@dataclass(frozen=True)
class DoctorConfig:
    """Check a Ray cluster before a long job starts: every node's versions, network, disks, GPUs; room for the workers;
    shards, storage and tracking server as the nodes see them.

    Prints a line a check and, where one fails, what to do. Exit code 1 if any failed.
    """

    shards: tuple[str, ...] = ()
    """folders that `msrcnn shard` made, local paths or URLs: whole, and readable from every node"""
    storage: tuple[str, ...] = ()
    """folders that run directories or detections are going to lie in, local paths or URLs: writable from every node,
    and the same folder on each"""
    tracking: str | None = None
    """MLflow tracking address; MLFLOW_TRACKING_URI if absent, else sqlite:///mlflow.db"""
    workers: str = "1"
    """training processes that are wanted: a number, or MIN:MAX"""
    cpus: float = 0.0
    """CPUs that a worker reserves; 0: as `msrcnn train` chooses"""
    gpu: bool = False
    """one GPU a worker; compares Ray's GPUs with those that torch sees"""
    address: str | None = None
    """Ray cluster to join; a local Ray if absent"""

    def __post_init__(self) -> None:
        worker_range(self.workers)
        require(self.cpus >= 0, "--cpus", self.cpus, "0 or more")

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return worker_range(self.workers)

    @property
    def worker(self) -> dict[str, float]:
        """What a worker asks of the cluster."""
        return worker_share(self.cpus, self.gpu)
