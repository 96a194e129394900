"""The options of `msrcnn serve`. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from msrcnn.config import Precision, check_precision, require
from pipelines.options import worker_range


@dataclass(frozen=True)
class ServiceOptions:
    """What is served, and by how much; also the arguments of `pipelines.serving:app`."""

    model: tyro.conf.Positional[str | Path]
    """run directory of a finished training, or a model file; a local path, which on a cluster every node must see, or
    a URL"""
    replicas: str = "1"
    """processes that detect: a number, or MIN:MAX to have as many as the requests that wait ask for"""
    gpu: bool = False
    """one GPU a replica"""
    cpus: float = 1.0
    """CPUs that a replica reserves; it computes with as many threads"""
    batch: int = 0
    """the most images a step of the network; 0: 8 on a GPU, 1 on a CPU, which more at a time slow down"""
    precision: Precision = "float32"
    """what layers compute in; bfloat16 is faster where the device has instructions for it and gives nearly the same
    detections: scores, boxes and masks stay float32"""
    queue: int = 128
    """requests that may wait for a replica, on each node that listens; further ones are told at once that it is
    overloaded"""
    max_mb: float = 32.0
    """the largest image file, megabytes"""
    max_megapixels: float = 50.0
    """the largest image, millions of pixels: each takes 3 MB or more, however small its file"""

    def __post_init__(self) -> None:
        worker_range(self.replicas, "--replicas")
        require(self.cpus > 0, "--cpus", self.cpus, "above 0")
        require(self.batch >= 0, "--batch", self.batch, "0 or more")
        check_precision("--precision", self.precision)
        require(self.queue >= 1, "--queue", self.queue, "at least 1")
        require(0 < self.max_mb <= 1000, "--max-mb", self.max_mb, "above 0, at most 1000")
        require(0 < self.max_megapixels <= 268, "--max-megapixels", self.max_megapixels, "above 0, at most 268")

    @property
    def share(self) -> dict[str, float]:
        """What a replica asks of the cluster, by Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": 1.0} if self.gpu else {})


@dataclass(frozen=True)
class ServeConfig(ServiceOptions):
    """Answer images sent over HTTP with their detections, until Ctrl-C."""

    host: str = "127.0.0.1"
    """address that the nodes listen on; 0.0.0.0: all of theirs"""
    port: int = 8000
    """their port"""
    address: str | None = None
    """Ray cluster to join; a local Ray if absent"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.port < 2**16, "--port", self.port, "from 1 to 65535")
