"""A process on every node that answers questions: each question has a time limit, and none takes a CPU from a job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.reasons import reason

FIRST_SECONDS = 60.0
"""How long a node has for its first answer: it must start a process, which imports Ray."""
SECONDS = 30.0
"""How long it has for another."""
AT_ONCE = 4
"""Questions that a process answers at a time: one that hangs on a storage does not keep it from others."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster that is alive.

    Attributes:
        id: Ray's.
        host: its host name.
        address: its IP address.
        resources: all that it offers, by Ray's names.
        head: whether it is the head.
    """

    id: str
    host: str
    address: str
    resources: Mapping[str, float] = field(compare=False)
    head: bool = False

    @property
    def name(self) -> str:
        """For messages; several nodes may share a machine, so its host name and the begin of its id."""
        return f"{self.host} {self.id[:6]}"


@dataclass(frozen=True)
class Answers:
    """What nodes answered, and why others did not."""

    values: dict[Node, Any]
    failures: dict[Node, str]


def alive_nodes() -> list[Node]:
    """The nodes of the cluster that Ray believes alive, the head first."""
    nodes = [
        Node(n["NodeID"], n["NodeManagerHostname"], n["NodeManagerAddress"], n["Resources"],
             "node:__internal_head__" in n["Resources"])
        for n in ray.nodes() if n["Alive"]
    ]  # fmt: skip
    return sorted(nodes, key=lambda node: (not node.head, node.host, node.id))


class Answerer:
    """What runs on a node."""

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns there. It comes by name: the node's own copy of our code runs."""
        return function(*arguments)


class Probes:
    """A process on each node; see `probing`.

    Attributes:
        nodes: those that have answered all questions so far.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        self._asked = False
        self._actors = {node: _start(node) for node in nodes}

    def ask(
        self, function: Callable[..., Any], arguments: Callable[[Node], tuple[Any, ...]] = lambda _: (),
        nodes: Sequence[Node] | None = None, seconds: float | None = None,
    ) -> Answers:  # fmt: skip
        """Runs a function of an importable module on nodes, on all of them at the same time.

        A node that does not answer in time, or whose process ends, is asked nothing any more.

        Args:
            arguments: of the function, by node.
            nodes: all that have answered so far, if absent.
            seconds: how long a node has; if absent FIRST_SECONDS for the first question, later SECONDS.
        """
        limit = seconds or (SECONDS if self._asked else FIRST_SECONDS)
        self._asked = True
        asked = [node for node in self.nodes if nodes is None or node in nodes]
        calls = {self._actors[node].run.remote(function, *arguments(node)): node for node in asked}
        ready, late = ray.wait([*calls], num_returns=len(calls), timeout=limit) if calls else ([], [])
        values, failures = {}, {calls[call]: f"no answer within {limit:g} s" for call in late}
        gone = set(failures)
        for call in ready:
            try:
                values[calls[call]] = ray.get(call)
            except RayActorError as error:
                failures[calls[call]] = reason(error)
                gone.add(calls[call])
            except Exception as error:  # what the function raised, or what cannot be unpickled here
                failures[calls[call]] = reason(error)
        self.nodes = [node for node in self.nodes if node not in gone]
        return Answers(values, failures)

    def close(self) -> None:
        """Ends the processes."""
        for actor in self._actors.values():
            with suppress(Exception):
                ray.kill(actor)


def _start(node: Node) -> Any:
    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(Answerer).options(num_cpus=0, max_concurrency=AT_ONCE, scheduling_strategy=there).remote()


@contextmanager
def probing() -> Iterator[Probes]:
    """A process on every node of the cluster that this process has joined, for the length of a block."""
    probes = Probes(alive_nodes())
    try:
        yield probes
    finally:
        probes.close()


def within(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns; it runs in a thread, which is left behind where it takes longer.

    Raises:
        TimeoutError: it has not returned in time.
        Exception: what it raised.
    """
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, function(*arguments)))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    good, value = outcome[0]
    if not good:
        raise value
    return value
