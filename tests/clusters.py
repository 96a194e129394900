"""Ray clusters of several nodes on this machine, and their processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil


@contextmanager
def nodes(*cpus: float) -> Iterator[tuple[Any, list[Any]]]:
    """A Ray cluster: a head for the driver, and nodes of so many CPUs."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield cluster, [cluster.add_node(num_cpus=number) for number in cpus]
    finally:
        cluster.shutdown()


def processes_of(node: Any, title: str) -> list[int]:
    """Ids of the processes with `title` in their command line that a node of such a cluster has started."""
    found = []
    for raylet in node.all_processes["raylet"]:
        for child in psutil.Process(raylet.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if title in " ".join(child.cmdline()):
                    found.append(child.pid)
    return found
