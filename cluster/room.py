"""How many workers of one size fit onto nodes: counted node by node, since a worker cannot be cut in two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PARTS = 10_000
"""Ray counts resources in ten-thousandths."""


def fitting(
    nodes: Sequence[Mapping[str, float]], worker: Mapping[str, float], helpers: int = 0, helper_cpus: float = 0.0
) -> int:
    """The most workers that fit at the same time as all helpers, which may be on any node; -1 if not even those fit.

    Args:
        nodes: what each has to give, by Ray's names of resources.
        worker: what one takes; at least one thing.
        helpers: how many processes there must be beside them.
        helper_cpus: what each of those takes.
    """
    best = [0] + [-1] * helpers  # [h]: most workers on the nodes seen so far with h helpers there; -1: impossible
    for node in nodes:
        have, reached = {name: _parts(value) for name, value in node.items()}, [-1] * (helpers + 1)
        for workers in range(_times(have, worker) + 1):
            left = have.get("CPU", 0) - workers * _parts(worker.get("CPU", 0))
            places = min(helpers, left // _parts(helper_cpus)) if _parts(helper_cpus) else helpers
            for before, most in enumerate(best):
                if most >= 0:
                    now = min(helpers, before + places)
                    reached[now] = max(reached[now], most + workers)
        # Fewer helpers than there are places for is possible as well, but never of use.
        best = reached
    return best[helpers]


def _times(have: Mapping[str, int], worker: Mapping[str, float]) -> int:
    """How often a node holds a worker."""
    return min(have.get(name, 0) // _parts(need) for name, need in worker.items() if _parts(need))


def _parts(value: float) -> int:
    return round(value * PARTS)
